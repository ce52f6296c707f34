"""Rooms made of events that were never hashed or signed, for tests of the rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pytest

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject

V11: Final = room_version("11")
V12: Final = room_version("12")

ALICE: Final = UserId("@alice:test")
"""Creates every room: outranks all in version 12, has level 0 in version 11 once there are power levels."""
ZOE: Final = UserId("@zoe:test")
"""Joined, level 100."""
MIA: Final = UserId("@mia:test")
"""Joined, level 50."""
MAX: Final = UserId("@max:test")
"""Joined, level 50."""
BOB: Final = UserId("@bob:test")
"""Joined, level 0."""
DAVE: Final = UserId("@dave:elsewhere")
"""Never was in the room."""
EVE: Final = UserId("@eve:elsewhere")
"""Banned."""
IVY: Final = UserId("@ivy:elsewhere")
"""Invited."""
KIM: Final = UserId("@kim:elsewhere")
"""Knocked."""
LEO: Final = UserId("@leo:elsewhere")
"""Left."""

VERSIONS: Final = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS)
"""Runs a test in each version."""

_numbers = count(1)


def make_event(
    version: RoomVersion,
    event_type: str,
    sender: str,
    state_key: str | None = None,
    content: JsonObject | None = None,
    *,
    room_id: str | None = None,
    prev_events: tuple[EventId, ...] = (EventId("$before"),),
    auth_events: tuple[EventId, ...] = (),
    depth: int = 1,
    origin_server_ts: int = 1_700_000_000_000,
    event_id: str | None = None,
) -> Pdu:
    """An event with a made-up ID. Without `room_id` it is a create event, whose room ID is derived or new."""
    event_id = event_id or f"${next(_numbers):043d}"
    is_without_room_id = room_id is None and version.room_id_is_create_hash
    if room_id is None:
        room_id = "!" + event_id[1:] + ("" if version.room_id_is_create_hash else ":test")
    json: JsonObject = {
        "type": event_type,
        "sender": sender,
        "content": content or {},
        "prev_events": list(prev_events),
        "auth_events": list(auth_events),
        "depth": depth,
        "origin_server_ts": origin_server_ts,
        "hashes": {"sha256": ""},
        "signatures": {},
    }
    if state_key is not None:
        json["state_key"] = state_key
    if not is_without_room_id:
        json["room_id"] = room_id
    return Pdu(
        event_id=EventId(event_id),
        room_id=RoomId(room_id),
        type=event_type,
        sender=UserId(sender),
        state_key=state_key,
        content=json["content"],
        prev_events=prev_events,
        auth_events=auth_events,
        depth=depth,
        origin_server_ts=origin_server_ts,
        json=json,
    )


def create_content_of(version: RoomVersion) -> JsonObject:
    """What the create event of a room of ALICE's says."""
    creator = {"creator": ALICE} if version.creator_in_content else {}
    return {"room_version": version.version, **creator}


@dataclass(frozen=True)
class Draft:
    """What an event says, before it belongs to a room."""

    type: str
    sender: str
    state_key: str | None = None
    content: JsonObject = field(default_factory=dict)


def member(user_id: str, membership: object, sender: str | None = None, **content: Any) -> Draft:
    """A membership, by default one that the user chose."""
    return Draft("m.room.member", sender or user_id, user_id, {"membership": membership, **content})


def join_rules(join_rule: object) -> Draft:
    return Draft("m.room.join_rules", ZOE, "", {"join_rule": join_rule})


def power_levels(sender: str = ZOE, **content: Any) -> Draft:
    """Power levels; the users are those of every room unless others are given."""
    return Draft("m.room.power_levels", sender, "", {"users": {ZOE: 100, MIA: 50, MAX: 50}, **content})


def message(sender: str) -> Draft:
    return Draft("m.room.message", sender, None, {"msgtype": "m.text", "body": "hello"})


class Room:
    """A room at one moment: its create event and its state, put there without a check."""

    def __init__(self, version: RoomVersion, **create_content: Any) -> None:
        self.version = version
        self.create = make_event(
            version,
            "m.room.create",
            ALICE,
            "",
            {**create_content_of(version), **create_content},
            prev_events=(),
        )
        self.state: dict[StateKey, Pdu] = {self.create.key: self.create}

    @classmethod
    def with_members(cls, version: RoomVersion, **create_content: Any) -> Room:
        """A public room with power levels and all the people that this module names."""
        room = cls(version, **create_content)
        room.put(power_levels(), join_rules("public"))
        room.put(*(member(user_id, "join") for user_id in (ALICE, ZOE, MIA, MAX, BOB)))
        room.put(
            member(EVE, "ban", ZOE), member(IVY, "invite", ZOE), member(KIM, "knock"), member(LEO, "leave")
        )
        return room

    def put(self, *drafts: Draft) -> None:
        """Make these events part of the state."""
        for draft in drafts:
            event = self.event(draft)
            self.state[event.key] = event

    def event(self, draft: Draft, *, prev_events: tuple[EventId, ...] = (EventId("$before"),)) -> Pdu:
        """An event of this room."""
        return make_event(
            self.version,
            draft.type,
            draft.sender,
            draft.state_key,
            draft.content,
            room_id=self.create.room_id,
            prev_events=prev_events,
        )
