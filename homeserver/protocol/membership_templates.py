"""Membership events that we send into rooms that we are not in, from templates of servers that are.

We sign only what we have made: of a template nothing is taken but where the event goes (the room version,
prev_events, auth_events and depth), and who lets a user into a restricted room.
Source: Server-Server API, "Joining Rooms", "Leaving Rooms", "Restricted rooms".
"""

from __future__ import annotations

from typing import Any, Final, Literal

from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.errors import InvalidEvent, InvalidIdentifier, UnknownRoomVersion
from homeserver.protocol.events import EventDraft, Pdu, build_pdu, greatest_depth
from homeserver.protocol.identifiers import (
    EventId,
    RoomId,
    ServerName,
    UserId,
    is_user_id,
    parse_event_id,
    server_name_of,
)
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64

_WITHOUT_VERSION: Final = "1"
"""What a server means that names no room version."""


def version_of_template(answer: JsonObject) -> RoomVersion:
    """The version of the room that an answer to make_join or make_leave is about.

    Raises UnknownRoomVersion, also for what is no version at all.
    """
    version = answer.get("room_version", _WITHOUT_VERSION)
    if not isinstance(version, str):
        raise UnknownRoomVersion("room_version: no string")
    return room_version(version)


def build_from_template(
    version: RoomVersion,
    template: object,
    *,
    server_name: ServerName,
    room_id: RoomId,
    user_id: UserId,
    membership: Literal["join", "leave"],
    content: JsonObject,
    origin_server_ts: int,
) -> Pdu:
    """The membership event of a user of ours, hashed but not signed.

    `template`: the `event` that `server_name` proposes, any JSON value. `content`: what the event says beside
    its membership; an authoriser in it is left out, and taken from the template where that is for a join
    into a restricted room. Raises InvalidEvent for a template of another event, or one without a place for
    it; EventTooLarge and BadJson for a content that no event can have.
    """
    if not isinstance(template, dict):
        raise InvalidEvent("event: no object")
    proposed = template.get("content")
    if not isinstance(proposed, dict):
        raise InvalidEvent("event.content: no object")
    wanted = {"type": "m.room.member", "room_id": room_id, "sender": user_id, "state_key": user_id}
    for key, value in wanted.items():
        if template.get(key) != value:
            raise InvalidEvent(f"event.{key}: not {value}")
    if proposed.get("membership") != membership:
        raise InvalidEvent(f"event.content.membership: not {membership}")
    said = {key: value for key, value in content.items() if key != AUTHORISER}
    said["membership"] = membership
    if membership == "join" and version.restricted_join_rules and AUTHORISER in proposed:
        said[AUTHORISER] = _authoriser(proposed[AUTHORISER], server_name)
    prev_events, prev_hashes = _references(version, template, "prev_events")
    auth_events, auth_hashes = _references(version, template, "auth_events")
    return build_pdu(
        version,
        room_id=room_id,
        draft=EventDraft("m.room.member", said, user_id),
        sender=user_id,
        prev_events=prev_events,
        auth_events=auth_events,
        depth=_depth(version, template.get("depth")),
        origin_server_ts=origin_server_ts,
        reference_hashes=prev_hashes | auth_hashes,
    )


def _authoriser(named: Any, server_name: ServerName) -> UserId:
    """Who lets the user in: somebody of the server that proposes it, for only that server can sign for it."""
    if not is_user_id(named) or server_name_of(named) != server_name:
        raise InvalidEvent(f"event.content.{AUTHORISER}: no user of {server_name}")
    return UserId(named)


def _references(
    version: RoomVersion, template: JsonObject, key: str
) -> tuple[list[EventId], dict[EventId, str]]:
    """The events that a list names, each once, and the hashes beside them, where references have one."""
    listed = template.get(key)
    if not isinstance(listed, list) or not listed:
        raise InvalidEvent(f"event.{key}: no list of references to events")
    event_ids: dict[EventId, None] = {}
    hashes: dict[EventId, str] = {}
    for reference in listed:
        event_id, of_event = reference, None
        if version.has_chosen_event_ids:
            event_id, of_event = _pair(reference, key)
        if not isinstance(event_id, str):
            raise InvalidEvent(f"event.{key}: an entry is no string")
        try:
            event_ids[parse_event_id(event_id)] = None
        except InvalidIdentifier as error:
            raise InvalidEvent(f"event.{key}: {error}") from None
        if of_event is not None:
            hashes[EventId(event_id)] = of_event
    return list(event_ids), hashes


def _pair(reference: Any, key: str) -> tuple[Any, str | None]:
    """An event ID and the hash beside it. Other servers do not have the hashes of all old events."""
    match reference:
        case [event_id, {"sha256": str(hash_)}] if decode_base64(hash_) is not None:
            return event_id, hash_
        case [event_id, dict()]:
            return event_id, None
    raise InvalidEvent(f"event.{key}: an entry is no event ID with its hashes")


def _depth(version: RoomVersion, depth: Any) -> int:
    greatest = greatest_depth(version)
    if type(depth) is not int or not 0 <= depth <= greatest:
        raise InvalidEvent(f"event.depth: no integer from 0 to {greatest}")
    return depth
