"""Building an event of a local user on top of a room's head, and asking the rules about it.

This is where a message of a local user is authorised: `check_auth` below decides.
"""

from __future__ import annotations

from homeserver.errors import BadJson, Forbidden, InvalidParam, MatrixError, TooLarge
from homeserver.protocol.auth_events import auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import BadJson as BadJsonValue
from homeserver.protocol.errors import (
    EventTooLarge,
    FieldTooLong,
    InvalidContent,
    InvalidEvent,
    NotAllowed,
    ProtocolError,
)
from homeserver.protocol.event_hashes import reference_hash_text
from homeserver.protocol.events import EventDraft, Pdu, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.power_levels import check_sent_power_levels
from storage.room_heads import RoomHead


def build_event(
    head: RoomHead, draft: EventDraft, sender: UserId, origin_server_ts: int, *, room_id: RoomId | None = None
) -> Pdu:
    """The event that `draft` becomes as the next one of a room, if the authorization rules allow it.

    Raises NotAllowed, and BadJson, InvalidEvent or EventTooLarge for a draft that is no valid event.
    `room_id` is given for the create event of a room version whose room IDs are not made of it.
    Source: Server-Server API, "Auth events selection", "Authorization rules".
    """
    version = head.version
    keys = auth_state_keys(version, draft.type, sender, draft.state_key, draft.content)
    state = head.events(keys)
    hashes: dict[EventId, str] = {}
    if version.has_chosen_event_ids:
        hashes = head.prev_hashes | {
            one.event_id: reference_hash_text(version, one.json) for one in state.values()
        }
    pdu = build_pdu(
        version,
        room_id=room_id or head.room.room_id or None,
        draft=draft,
        sender=sender,
        prev_events=head.prev_events,
        auth_events=select_auth_events(version, draft.type, sender, draft.state_key, draft.content, state),
        depth=head.next_depth,
        origin_server_ts=origin_server_ts,
        reference_hashes=hashes,
    )
    check_auth(version, pdu, state)
    if pdu.type == "m.room.power_levels":
        check_sent_power_levels(pdu.content)
    return pdu


def changed_or_current(head: RoomHead, event: Pdu) -> Pdu:
    """A new state event, or the current one of its key when that says the same and is of the same sender."""
    current = head.event(*event.key)
    if (
        current is not None
        and current.sender == event.sender
        and canonical_event(head.version, current.content) == canonical_event(head.version, event.content)
    ):
        return current
    return event


def as_answer(error: ProtocolError) -> MatrixError:
    """What a client is told when its event cannot be built or is not allowed."""
    match error:
        case FieldTooLong():
            return InvalidParam(str(error))
        case EventTooLarge():
            return TooLarge(str(error))
        case BadJsonValue() | InvalidEvent() | InvalidContent():
            return BadJson(str(error))
        case NotAllowed():
            return Forbidden(str(error))
        case _:
            raise error
