"""The algorithm of room version 1: for each key one of the events in conflict, without their auth chains.

Source: Room Version 1, "State resolution".
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final, Generic, TypeAlias

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.errors import MissingEvents
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution.auth_graph import Ref
from homeserver.protocol.state_resolution.conflicts import Conflicts

_Pass: TypeAlias = Callable[[StateKey], bool]

_AUTH_PASSES: Final[tuple[_Pass, ...]] = (
    lambda key: key == POWER_LEVELS,
    lambda key: key[0] == "m.room.join_rules",
    lambda key: key[0] == "m.room.member",
)
"""The keys that the rules read, in the order in which they are settled; all others come after them."""


@dataclass(slots=True, eq=False)
class ReplayV1(Generic[Ref]):
    """One resolution: what it reads, and the state that it has settled so far."""

    version: RoomVersion
    conflicts: Conflicts[Ref]
    events: Mapping[Ref, Pdu]
    rejected: Container[Ref]
    absent: Container[Ref]
    refused: dict[Ref, str] | None
    state: dict[StateKey, Ref] = field(default_factory=dict)

    def settle(self) -> dict[StateKey, Ref]:
        """The event of each key in conflict. Raises MissingEvents for those that are not loaded."""
        self._require_events()
        left = dict.fromkeys(sorted(self.conflicts.conflicted))
        for belongs in _AUTH_PASSES:
            keys = [key for key in left if belongs(key)]
            self.state |= self._choose(keys, self._last_of_allowed)
            for key in keys:
                del left[key]
        self.state |= self._choose(left, self._newest_allowed)
        return self.state

    def _choose(self, keys: Iterable[StateKey], choose: Callable[[list[Ref]], Ref]) -> dict[StateKey, Ref]:
        """The choices of one pass: none of them sees another one."""
        candidates = {key: self._by_age(key) for key in keys}
        return {key: choose(refs) for key, refs in candidates.items() if refs}

    def _by_age(self, key: StateKey) -> list[Ref]:
        """The events in conflict by their depth, and by their hashes the other way round."""
        refs = [
            ref
            for ref in self.conflicts.conflicted[key]
            if ref not in self.rejected and ref not in self.absent
        ]
        refs.sort(key=self._hash, reverse=True)
        return sorted(refs, key=lambda ref: self.events[ref].depth)

    def _hash(self, ref: Ref) -> bytes:
        return sha1(self.events[ref].event_id.encode(), usedforsecurity=False).digest()

    def _last_of_allowed(self, refs: list[Ref]) -> Ref:
        """Each event on top of the one before it, until the rules refuse one."""
        chosen = refs[0]
        for index, ref in enumerate(refs[1:], 2):
            if not self._is_allowed(ref, chosen):
                if self.refused is not None:
                    why = f"{self.events[ref].event_id}, which comes before it, is refused"
                    self.refused.update(dict.fromkeys(refs[index:], why))
                break
            chosen = ref
        return chosen

    def _newest_allowed(self, refs: list[Ref]) -> Ref:
        """The deepest event that the rules allow; the specification does not say what to take without one."""
        return next((ref for ref in reversed(refs) if self._is_allowed(ref, None)), refs[0])

    def _is_allowed(self, ref: Ref, before: Ref | None) -> bool:
        """Whether the rules allow an event in the state so far, with `before` in the place of its own key."""
        event = self.events[ref]
        read: dict[StateKey, Pdu] = {}
        for key in self._keys_read(event):
            current = self._current(key)
            if current is not None and current in self.events and current not in self.rejected:
                read[key] = self.events[current]
        if before is not None:
            read[self.events[before].key] = self.events[before]
        why = why_refused(self.version, event, read)
        if why is not None and self.refused is not None:
            self.refused[ref] = why
        return why is None

    def _current(self, key: StateKey) -> Ref | None:
        return self.state[key] if key in self.state else self.conflicts.unconflicted(key)

    def _keys_read(self, event: Pdu) -> list[StateKey]:
        return auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)

    def _require_events(self) -> None:
        """All events in conflict, then those of the unconflicted state that the rules read for them."""
        needed = set(self.conflicts.full_conflicted_set)
        keys = {CREATE}
        for ref in self.conflicts.full_conflicted_set:
            if (event := self.events.get(ref)) is not None:
                keys.update(self._keys_read(event))
        unconflicted = (self.conflicts.unconflicted(key) for key in keys)
        needed.update(entry for entry in unconflicted if entry is not None)
        missing = {ref for ref in needed if ref not in self.events and ref not in self.absent}
        if missing:
            raise MissingEvents(missing)
