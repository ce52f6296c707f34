"""RoomBatch: what one room gets in a batch, one decision on top of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.identifiers import EventId
from storage.decisions import Request
from storage.event_batch import EventBatch, NewEvent, NewRoom
from storage.new_events import NewEvents
from storage.placement import Placed
from storage.room_heads import Needs, NeedsCommit, NeedsWork, RoomHead, RoomRef

MAX_DECISION_EVENTS: Final = 2000
"""The most that one decision may add. createRoom needs the most."""


@dataclass(slots=True)
class Decided:
    """What a decision came to, told once the batch has shown that its head is the room's newest."""

    request: Request
    event_ids: Sequence[EventId] = ()
    """The answer."""
    events: Sequence[NewEvent] = ()
    error: Exception | None = None


@dataclass(slots=True)
class RoomBatch:
    """The decisions on one room: `head` lies over `base`, which stands for what is committed."""

    base: RoomHead
    head: RoomHead
    decided: list[Decided] = field(default_factory=list)

    @classmethod
    def on(cls, base: RoomHead) -> RoomBatch:
        """Nothing yet on top of a head."""
        return cls(base, base.overlay())

    @property
    def requests(self) -> list[Request]:
        """Those whose decisions are in the batch."""
        return [decided.request for decided in self.decided]

    @property
    def events(self) -> list[NewEvent]:
        """All events of the decisions."""
        return [event for decided in self.decided for event in decided.events]

    @property
    def new_room(self) -> NewRoom | None:
        """The room that comes into being with the batch; None for one that exists."""
        target = self.decided[0].request.target
        return target if isinstance(target, NewRoom) else None

    def ask(self, request: Request, new_events: NewEvents) -> int:
        """Ask one decision, on top of what the room has so far; the number of its events.

        Raises Needs, NeedsWork, NeedsCommit and UnknownTexts, and for a new room what the decision raises.
        For a room that exists, that and "nothing to add" are answers about its newest head, which the batch
        is to confirm.
        """
        try:
            additions = request.decide(self.head)
            if len(additions) > MAX_DECISION_EVENTS:
                raise ValueError(f"{len(additions)} events are too many for one decision")
        except (Needs, NeedsWork, NeedsCommit):
            raise
        except Exception as error:
            if isinstance(request.target, NewRoom):
                raise
            self.decided.append(Decided(request, error=error))
            return 0
        trial = self.head.overlay()
        events = new_events.put(trial, additions)
        if isinstance(request.target, NewRoom):
            self.base.room = RoomRef(self.base.room.nid, events[0].pdu.room_id, request.target.version)
        self.head.absorb(trial)
        event_ids = [
            (addition.pdu if isinstance(addition, Placed) else addition).event_id for addition in additions
        ]
        self.decided.append(Decided(request, event_ids, events))
        return len(events)

    def add_to(self, batch: EventBatch) -> None:
        """Add the room with its events. One that gets none has its head confirmed."""
        room = self.base.room
        if (new_room := self.new_room) is not None:
            batch.add_new_room(room, new_room, self.decided[0].events[0].sender_nid)
        else:
            batch.add_room(room, self.base.seq)
        if self.base.names_extremities or self.head.names_extremities:
            named = self.head.extremities if self.head.names_extremities else ()
            batch.add_extremities(room, [extremity.nid for extremity in named])
        for decided in self.decided:
            for event in decided.events:
                batch.add_event(room, event)
            if decided.request.key is not None and decided.events:
                batch.add_key(decided.request.key, room, decided.events[-1])
