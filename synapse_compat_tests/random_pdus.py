"""Events of a random room as PDUs of its version: mostly as they should be, now and then not quite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from homeserver.protocol.auth_events import AUTHORISER, select_auth_events
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, is_user_id, server_in
from homeserver.protocol.strict_json import JsonObject
from synapse_compat_tests.odd_json import odd_value
from synapse_compat_tests.our_core import OurRoom
from synapse_compat_tests.random_drafts import PEOPLE, Draft

_START_MS: Final = 1_700_000_000_000
_HASH_OF_SOMETHING_ELSE: Final = "A" * 43
_SIGNATURE: Final = "A" * 86


@dataclass(frozen=True)
class Place:
    """A place in the history of a room: an event, and the state after it."""

    pdu: Pdu
    state: Mapping[StateKey, EventId]


@dataclass
class PduBuilder:
    """Makes drafts to events of one room."""

    random: Random
    room: OurRoom
    room_id: str | None
    """None until it is made of the create event."""

    @property
    def version(self) -> int:
        return int(self.room.version.version)

    def build(self, draft: Draft, parents: Sequence[Place], state: Mapping[StateKey, EventId]) -> JsonObject:
        """An event after some places; `state` is that before it, of which it takes its auth events."""
        by_key = {key: self.room.events[event_id] for key, event_id in state.items()}
        auth_events = select_auth_events(
            self.room.version, draft.type, draft.sender, draft.state_key, draft.content, by_key
        )
        newest_ms = max((parent.pdu.origin_server_ts for parent in parents), default=_START_MS)
        depth = 1 + max((parent.pdu.depth for parent in parents), default=0)
        event: JsonObject = {
            "type": draft.type,
            "sender": draft.sender,
            "content": draft.content,
            "depth": self._seldom_of(depth, (0, 1, depth + 5, 2**52)),
            "origin_server_ts": newest_ms + self.random.randint(-3, 3),
            "prev_events": self._references([parent.pdu.event_id for parent in parents]),
            "auth_events": self._references(self._oddly_chosen(auth_events)),
            **draft.top_level,
        }
        if draft.state_key is not None:
            event["state_key"] = draft.state_key
        if self.room_id is not None:
            event["room_id"] = self.room_id
        if self.version <= 2:
            server = self._seldom_of(server_in(draft.sender), [server_in(user) for user in PEOPLE])
            event["event_id"] = f"${self.random.randrange(10**9)}:{server}"
        if self.random.random() < 0.1:
            event |= self._extra_keys()
        return self.hashed(event)

    def hashed(self, event: JsonObject) -> JsonObject:
        """The event with what stands for signatures and, but for a few, with the right content hash."""
        event = {
            **event,
            "signatures": {server: {"ed25519:0": _SIGNATURE} for server in self._signers(event)},
            "hashes": {"sha256": _HASH_OF_SOMETHING_ELSE},
        }
        content_hash = self.room.describe(event).get("content_hash")
        if content_hash is not None and self.random.random() < 0.97:
            event["hashes"] = {"sha256": content_hash}
        return event

    def _signers(self, event: JsonObject) -> list[str]:
        """The servers without whose signatures Synapse would look no further."""
        signers = {server_in(event["sender"])}
        authoriser = event["content"].get(AUTHORISER)
        if is_user_id(authoriser):
            signers.add(server_in(authoriser))
        if self.version <= 2:
            signers.add(server_in(event["event_id"]))
        return sorted(signers)

    def _references(self, event_ids: Sequence[str]) -> list[Any]:
        if self.version > 2:
            return list(event_ids)
        return [[event_id, {"sha256": _HASH_OF_SOMETHING_ELSE}] for event_id in event_ids]

    def _oddly_chosen(self, auth_events: Sequence[EventId]) -> list[EventId]:
        """Auth events, now and then one too few, one too many, twice the same, or in another order."""
        chosen = list(auth_events)
        others = list(self.room.events)[1:]  # to name the create event is no PDU at all in version 12
        if not chosen or self.random.random() < 0.9:
            return chosen
        match self.random.randrange(4):
            case 0:
                chosen.remove(self.random.choice(chosen))
            case 1 if others:
                chosen.append(self.random.choice(others))
            case 2:
                chosen.append(self.random.choice(chosen))
            case _:
                self.random.shuffle(chosen)
        return chosen

    def _extra_keys(self) -> JsonObject:
        """Top-level keys that no rule reads, though redaction keeps some in some versions."""
        names = self.random.sample(("origin", "membership", "prev_state", "extra", "é"), 2)
        extra: JsonObject = {name: odd_value(self.random, self.version) for name in names}
        if self.random.random() < 0.3:
            extra["unsigned"] = {"age": 5, "extra": odd_value(self.random, self.version)}
        return extra

    def _seldom_of(self, usual: Any, others: Sequence[Any]) -> Any:
        return usual if self.random.random() < 0.95 else self.random.choice(others)
