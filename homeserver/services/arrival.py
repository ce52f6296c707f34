"""What is known of an event from outside until it has its place, and what of its room's head matters to it.

The decision (`event_placement.py`) and what works out for it what a head does not tell (`fork_placement.py`)
hand this to each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys, select_auth_events
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.history_visibility import HISTORY_VISIBILITY
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from storage.placement import Placed
from storage.room_heads import Extremity, RoomHead, RoomRef, StoredEvent
from storage.state_deltas import ForkState


class Verdict(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    SOFT_FAILED = "soft-failed"
    REJECTED = "rejected"


class MissingParents(Exception):
    """Events that an event has among its prev_events are not here."""

    def __init__(self, pdu: Pdu, missing: Iterable[EventId]) -> None:
        self.pdu = pdu
        self.missing = frozenset(missing)
        super().__init__(f"{pdu.event_id} builds on what is not here: {', '.join(sorted(self.missing))}")


class MissingAuthEvents(MissingParents):
    """Events that an event has among its auth_events are not here."""


@dataclass(slots=True, eq=False)
class Arrival:
    """An event from outside that is to be stored.

    `nid`: its number, new or that of its row where `is_promoted`. `flags`: those that hold if it is accepted.
    `is_fixed`: it is stored only if it is accepted; otherwise the decision raises NotAllowed. `before`: the
    state before it where that cannot be had from stored parents, those in `missing` being absent for good.
    """

    pdu: Pdu
    nid: int
    is_promoted: bool = False
    flags: int = 0
    is_fixed: bool = False
    before: ForkState | None = None
    missing: frozenset[EventId] = frozenset()
    verdict: Verdict | None = None
    reason: str = ""
    """Why it is not accepted."""
    auth: AuthFacts | None = None
    fork: ForkFacts | None = None


@dataclass(frozen=True, slots=True)
class AuthFacts:
    """The auth events that an event names, and what they say about it: the same for ever."""

    nids: tuple[int, ...]
    refusal: str | None
    """Why they do not allow the event."""


@dataclass(frozen=True, slots=True)
class ForkFacts:
    """What was worked out about an event that does not just follow the extremities, for one kind of head."""

    fits: Hashable
    """What the head has to be like: see `kind_of_head`."""
    placed: Placed
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class HeadView:
    """A head, as far as it matters to a fork; it does not change any more."""

    room: RoomRef
    state_ver: int
    extremities: tuple[Extremity, ...]
    current: Mapping[StateKey, StoredEvent]
    """The current state, as far as it matters to the event."""

    @classmethod
    def of(cls, head: RoomHead, pdu: Pdu) -> HeadView:
        """What is seen of a head for an event. Raises Needs."""
        keys = keys_that_matter(head.version, pdu)
        current = {key: stored for key in keys if (stored := head.stored(key)) is not None}
        return cls(head.room, head.state_ver, head.extremities, current)

    def pdus(self, keys: Iterable[StateKey]) -> dict[StateKey, Pdu]:
        """The current events of some keys that matter, less those that have none."""
        return {key: self.current[key].pdu for key in keys if key in self.current}


def keys_that_matter(version: RoomVersion, pdu: Pdu) -> list[StateKey]:
    """The keys of the current state that may be looked at when an event gets its place."""
    keys = auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
    own = () if pdu.state_key is None else (pdu.key,)
    return list(dict.fromkeys([CREATE, HISTORY_VISIBILITY, *keys, *own]))


def kind_of_head(
    state_ver: int, extremities: Iterable[Extremity], covers: Iterable[EventId] | None
) -> Hashable:
    """What decides how an event changes a head: its state, and the states of the extremities that stay.

    Messages that come on top of an extremity meanwhile change none of that.
    """
    covered = set(covers or ())
    staying = frozenset(
        0 if extremity.is_sole and extremity.seq >= state_ver else extremity.nid
        for extremity in extremities
        if extremity.event_id not in covered
    )
    return (
        state_ver,
        staying,
        frozenset(extremity.event_id for extremity in extremities if extremity.event_id in covered),
    )


def names_just(version: RoomVersion, pdu: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    """Whether the auth events of an event are just those that a state has for it."""
    selected = select_auth_events(version, pdu.type, pdu.sender, pdu.state_key, pdu.content, state)
    return len(selected) == len(pdu.auth_events) and set(selected) == set(pdu.auth_events)


def nids_of_named(pdu: Pdu, stored: Iterable[StoredEvent]) -> tuple[int, ...]:
    """The numbers of those of some events that are among the auth events of an event."""
    named = set(pdu.auth_events)
    return tuple(one.nid for one in stored if one.pdu.event_id in named)


def levels_keys(pdu: Pdu) -> list[StateKey]:
    """What decides whether a redaction takes effect on events of others."""
    return [CREATE, POWER_LEVELS] if pdu.type == "m.room.redaction" else []
