"""Rooms as documents: what `lair-chat room resolve` and `event check` read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Final

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.events import StateKey
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

ALICE: Final = "@alice:test"
BOB: Final = "@bob:test"
CARL: Final = "@carl:elsewhere"


class DocumentRoom:
    """A room that is written down event by event, under IDs that say what the events are."""

    def __init__(self, version: RoomVersion) -> None:
        self.version = version
        self.events: list[JsonObject] = []
        self.state: dict[StateKey, str] = {}
        self.newest: list[str] = []

    def start(self) -> None:
        """Alice made the room, which everyone may join; Bob has joined and has level 50."""
        self.add("$create", "m.room.create", ALICE, "", {"room_version": self.version.version})
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
