"""Rooms as documents: what `lair-chat room resolve` and `event check` read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Final

import pytest

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.events import EventDraft, Pdu, StateKey, build_pdu
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.rooms import V11, V12

ALICE: Final = "@alice:test"
BOB: Final = "@bob:test"
CARL: Final = "@carl:elsewhere"

both_versions = pytest.mark.parametrize("version", [V11, V12], ids=lambda version: version.version)
"""Run a test that takes a `version` with room IDs of servers, and with those made of the create event."""


class DocumentRoom:
    """A room that is written down event by event, under IDs that say what the events are."""

    def __init__(self, version: RoomVersion) -> None:
        self.version = version
        self.events: list[JsonObject] = []
        self.state: dict[StateKey, str] = {}
        self.newest: list[str] = []

    def start(self) -> None:
        """Alice made the room, which everyone may join; Bob has joined and has level 50."""
        create_content = {"room_version": self.version.version, "creator": ALICE}
        self.add("$create", "m.room.create", ALICE, "", create_content)
        self.add("$alice", "m.room.member", ALICE, ALICE, {"membership": "join"})
        users = {BOB: 50} if self.version.privileged_creators else {ALICE: 100, BOB: 50}
        self.add("$levels", "m.room.power_levels", ALICE, "", {"users": users})
        self.add("$rules", "m.room.join_rules", ALICE, "", {"join_rule": "public"})
        self.add("$bob", "m.room.member", BOB, BOB, {"membership": "join"})

    def add(
        self,
        event_id: str,
        event_type: str,
        sender: str,
        state_key: str | None = None,
        content: JsonObject | None = None,
        *,
        after: Sequence[str] | None = None,
        auth_events: Iterable[str] | None = None,
    ) -> JsonObject:
        """An event after the newest one, or after others, that counts as accepted; no rule is checked."""
        content = {} if content is None else content
        if auth_events is None:
            keys = auth_state_keys(self.version, event_type, sender, state_key, content)
            if self.version.room_id_is_create_hash:
                keys = keys[1:]
            auth_events = [self.state[key] for key in keys if key in self.state]
        event: JsonObject = {
            "event_id": event_id,
            "type": event_type,
            "sender": sender,
            "content": content,
            "prev_events": list(self.newest if after is None else after),
            "auth_events": list(auth_events),
            "origin_server_ts": len(self.events),
        }
        if event_type != "m.room.create" or not self.version.room_id_is_create_hash:
            event["room_id"] = "!create" if self.version.room_id_is_create_hash else "!room:test"
        if state_key is not None:
            event["state_key"] = state_key
            self.state[event_type, state_key] = event_id
        self.events.append(event)
        self.newest = [event_id]
        return event

    def document(self, **fields: Any) -> JsonObject:
        """The document of the room, with further fields."""
        return {"room_version": self.version.version, "events": deepcopy(self.events), **fields}


def changed(document: JsonObject, path: Sequence[str | int], value: Any) -> JsonObject:
    """A copy of a document with another value at a path; Ellipsis as the value takes away what is there."""
    document = deepcopy(document)
    at: Any = document
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


def computed_room(version: RoomVersion) -> tuple[list[JsonObject], list[Pdu]]:
    """A create event, a join and a message as a server would send them, but for the signatures."""
    pdus: list[Pdu] = []

    def add(draft: EventDraft) -> None:
        auth_events = [pdu.event_id for pdu in pdus if pdu.state_key is not None]
        room_id = pdus[0].room_id if pdus else RoomId("!room:test")
        pdu = build_pdu(
            version,
            room_id=None if version.room_id_is_create_hash and not pdus else room_id,
            draft=draft,
            sender=UserId(ALICE),
            prev_events=[pdus[-1].event_id] if pdus else [],
            auth_events=auth_events[1:] if version.room_id_is_create_hash else auth_events,
            depth=len(pdus) + 1,
            origin_server_ts=1,
        )
        pdus.append(pdu)

    add(EventDraft("m.room.create", {"room_version": version.version}, ""))
    add(EventDraft("m.room.member", {"membership": "join"}, ALICE))
    add(EventDraft("m.room.topic", {"topic": "tea"}, ""))
    return [deepcopy(pdu.json) for pdu in pdus], pdus


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a value but the value itself."""
    steps: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    return [place for step, below in steps for place in ((*path, step), *paths(below, (*path, step)))]
