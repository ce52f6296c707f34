"""Stripped state: what someone is shown of a room who is not in it.

What comes from other servers is nothing but a claim: it is checked for its form and shown, never used.
Source: Client-Server API, "Stripped state"; Server-Server API, "Inviting to a room".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.canonical_json import canonical_json, check_canonical
from homeserver.protocol.errors import BadJson, EventTooLarge, InvalidEvent
from homeserver.protocol.events import MAX_EVENT_BYTES, MAX_FIELD_BYTES, Pdu
from homeserver.protocol.identifiers import RoomId, is_user_id, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

STRIPPED: Final = (
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
)
"""The types of the state that someone sees who is invited, besides who invites."""

MAX_ENTRIES: Final = 100
MAX_BYTES: Final = 512 * 1024
"""The most stripped state that another server may send, in all; one entry is as large as an event at most."""
MAX_SHOWN_BYTES: Final = 64 * 1024
"""What clients get of it, besides the create event and the invite itself."""
MAX_SIGNERS: Final = 20
"""So many servers at most may have signed the events: the keys of each have to be had."""

_ONLY_IN_PDUS: Final = frozenset({"auth_events", "prev_events", "hashes", "signatures"})


def stripped_event(
    version: RoomVersion,
    event_type: str,
    state_key: str,
    sender: str,
    content: JsonObject,
    origin_server_ts: int,
) -> JsonObject:
    """A state event as someone sees it who is not in the room.

    A create event that the room's ID is made of tells its time too.
    """
    stripped: JsonObject = {"type": event_type, "state_key": state_key, "sender": sender, "content": content}
    if version.room_id_is_create_hash and event_type == "m.room.create":
        stripped["origin_server_ts"] = origin_server_ts
    return stripped


def stripped_pdu(version: RoomVersion, pdu: Pdu) -> JsonObject:
    """The stripped form of a state event."""
    event_type, state_key = pdu.key
    return stripped_event(version, event_type, state_key, pdu.sender, pdu.content, pdu.origin_server_ts)


@dataclass(frozen=True, slots=True)
class ForeignState:
    """What another server says of a room, sorted by its form."""

    pdus: Sequence[JsonObject]
    """Those in the format of events; that they are events is still to be checked."""
    stripped: Sequence[JsonObject]
    """Those of the older format, in the form that clients get."""


def sort_foreign_state(version: RoomVersion, entries: object) -> ForeignState:
    """Tell the entries that are in the format of events from those in stripped form.

    Other servers send both: the specification wants events since v1.16. What is neither is left out, but in
    rooms whose ID is made of the create event it makes all of it invalid. Raises InvalidEvent, EventTooLarge.
    """
    strict = version.room_id_is_create_hash
    if not isinstance(entries, list):
        if strict and entries is not None:
            raise InvalidEvent("the stripped state is no list")
        entries = []
    if len(entries) > MAX_ENTRIES:
        raise EventTooLarge(f"the stripped state has more than {MAX_ENTRIES} entries")
    pdus, stripped, size_bytes = [], [], 0
    signers = set()
    for entry in entries:
        try:
            entry_bytes = _check_form(entry)
        except (BadJson, InvalidEvent) as error:
            if strict:
                raise InvalidEvent(f"an entry of the stripped state: {error}") from None
            continue
        size_bytes += entry_bytes
        if entry_bytes > MAX_EVENT_BYTES or size_bytes > MAX_BYTES:
            raise EventTooLarge("the stripped state is too large")
        if _is_pdu(entry):
            pdus.append(entry)
            signers.add(server_name_of(entry["sender"]))
            if len(signers) > MAX_SIGNERS:
                raise EventTooLarge(f"the stripped state has events of more than {MAX_SIGNERS} servers")
        else:
            stripped.append({key: entry[key] for key in ("type", "state_key", "sender", "content")})
    return ForeignState(pdus, stripped)


def for_invitee(
    version: RoomVersion, room_id: RoomId, given: ForeignState, checked: Iterable[Pdu | None], invite: Pdu
) -> list[JsonObject]:
    """The stripped state that someone sees who is invited: each key once, the invite itself last.

    Of very much state that which is recommended is kept first.
    `checked`: what became of the entries that are in the format of events, None for one that is no valid
    event. Invalid ones are left out, but in rooms whose ID is made of the create event they make all of it
    invalid, and that event must be there. Raises InvalidEvent.
    """
    strict = version.room_id_is_create_hash
    found: dict[tuple[str, str], JsonObject] = {}
    for pdu in checked:
        if pdu is None or pdu.state_key is None or pdu.room_id != room_id:
            if strict:
                raise InvalidEvent("the stripped state has what is no valid state event of the room")
            continue
        found.setdefault(pdu.key, stripped_pdu(version, pdu))
    if strict and CREATE not in found:
        raise InvalidEvent("the stripped state lacks the room's create event")
    for entry in given.stripped:
        found.setdefault((entry["type"], entry["state_key"]), entry)
    found.pop(invite.key, None)
    create = found.pop(CREATE, None)
    shown = [] if create is None else [create]
    left_bytes = MAX_SHOWN_BYTES
    for entry in sorted(found.values(), key=lambda entry: entry["type"] not in STRIPPED):
        if (size_bytes := len(canonical_json(entry))) <= left_bytes:
            left_bytes -= size_bytes
            shown.append(entry)
    return [*shown, stripped_pdu(version, invite)]


def _is_pdu(entry: JsonObject) -> bool:
    return not _ONLY_IN_PDUS.isdisjoint(entry)


def _check_form(entry: Any) -> int:
    """Check that an entry may be shown to clients; its size in bytes. Raises InvalidEvent, BadJson."""
    if type(entry) is not dict:
        raise InvalidEvent("it is no object")
    entry = {key: value for key, value in entry.items() if key != "unsigned"}
    check_canonical(entry)
    for key in ("type", "state_key", "sender"):
        text = entry.get(key)
        if type(text) is not str or len(text.encode()) > MAX_FIELD_BYTES:
            raise InvalidEvent(f"{key} is no text of at most {MAX_FIELD_BYTES} bytes")
    if not is_user_id(entry["sender"]):
        raise InvalidEvent("sender is no user ID")
    if type(entry.get("content")) is not dict:
        raise InvalidEvent("content is no object")
    return len(canonical_json(entry))
