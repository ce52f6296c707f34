"""Placed: an event with the place that it takes in its room, where that is not simply on top of everything.

Events of local users are built on the room's newest head, name all of its forward extremities and need none
of this. What comes from outside names parents of its own, and may bring forks together or start new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from storage.room_heads import RoomHead, StoredEvent
from storage.state_deltas import ForkState


@dataclass(frozen=True, slots=True)
class Placed:
    """An event and its place: what a decision may return instead of a Pdu that goes on top.

    A live event takes the room's next room_seq. One that is not is stored without: rejected or soft-failed.
    """

    pdu: Pdu
    nid: int
    """The number of the event: a new one (NidBlocks), or that of its row where `is_promoted`."""
    flags: int
    """Bits of EventFlag that hold for it; SOLE and the codec's are added."""
    auth_nids: tuple[int, ...]
    """The numbers of its auth events, as far as they are stored; counts for state events only."""
    prev_nids: tuple[int, ...] | None = None
    """The numbers of its prev_events, as far as they are stored; None: exactly the live event before it."""
    covers: frozenset[EventId] | None = None
    """The forward extremities that are none any more once it is live; None: all there are."""
    is_extremity: bool = True
    """Whether it is a forward extremity itself: not if a stored event has it among its prev_events."""
    state: ForkState | None = None
    """The state before it; None: trunk(room_seq - 1)."""
    changes: Mapping[StateKey, StoredEvent | None] | None = None
    """How the room's current state changes with it, None for a key that goes; None: by itself alone, if it is
    a state event."""
    keeps_out: frozenset[StateKey] = frozenset()
    """Members whom the changes bring into the room, but who stay out of it as far as this server goes."""
    is_live: bool = True
    is_promoted: bool = False
    """Whether it is stored already, as an outlier."""
    missing: frozenset[EventId] = field(default=frozenset())
    """Those of its prev_events that are not here."""
    fills_gap: bool = False
    """Whether it was among what is missing."""
    redacts_others: bool = False
    """Of a redaction: whether its sender's power level allows to redact the events of others."""

    @property
    def state_changes(self) -> Mapping[StateKey, StoredEvent | None]:
        """How the room's current state changes with it, told also where that is by itself alone."""
        if self.changes is not None:
            return self.changes
        if self.pdu.state_key is None or not self.is_live:
            return {}
        return {self.pdu.key: StoredEvent(self.nid, self.pdu)}

    @property
    def changes_by_itself(self) -> bool:
        """Whether the state changes by this event alone: not at all, if it is no state event."""
        changes = self.state_changes
        if self.pdu.state_key is None:
            return not changes
        stored = changes.get(self.pdu.key)
        return len(changes) == 1 and stored is not None and stored.nid == self.nid

    def put_into(self, head: RoomHead) -> None:
        """Let a head come after it; one that is not live leaves it as it is."""
        if self.is_live:
            covers = head.prev_events if self.covers is None else self.covers
            head.put(self.pdu, self.nid, self.state_changes, covers, is_extremity=self.is_extremity)
