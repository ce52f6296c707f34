"""What waits in memory for one other server, and up to where that server has got what it is owed.

Positions are those of the stream. A queue that is live gets every new event that is owed to its server. Where
that is too much, or the server fails, the queue keeps nothing: what is owed is read from the database after
the position that the server has reached, until the queue has caught up and is live again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from homeserver.protocol.identifiers import EventId
from storage.room_servers import Server

MAX_EVENTS: Final = 500
"""So many events wait in memory for one server; with more they are read when they are needed."""
MAX_PDUS: Final = 50
"""In one transaction. Source: Server-Server API, "Transactions"."""
_MORE_PDUS: Final = 10
"""So many more are sent after each success, where a failure had made them fewer."""
MAX_PDU_BYTES: Final = 1024 * 1024
"""In one transaction that has more than one event."""
READ_WINDOW: Final = 20_000
"""So many positions are looked through by one reading, however few of them are owed to the server."""
TRIES_OF_REFUSED: Final = 3
"""So often an event is sent alone to a server that refuses it, before it is suspected to be the reason."""
TRIES_OF_FAILING: Final = 10
"""The same for a server that fails in another way: mostly it is not the event's fault."""
CONVICTIONS: Final = 3
"""So often in a row a server has to take an empty transaction and then fail at the suspected event: that a
server was away, and goes away once more, is no reason to give an event up."""


@dataclass(slots=True, eq=False)
class OutgoingEvent:
    """An event as it leaves this server, shared by all queues that hold it."""

    pos: int
    event_id: EventId
    data: bytes
    """Its canonical JSON, signed."""
    holders: int = 0


class Budget:
    """How many bytes the events in all queues take together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether events have to go."""
        return self.used_bytes > self.max_bytes

    def hold(self, event: OutgoingEvent) -> None:
        """One more queue holds an event."""
        if event.holders == 0:
            self.used_bytes += len(event.data)
        event.holders += 1

    def release(self, events: Iterable[OutgoingEvent]) -> None:
        """A queue lets go of events."""
        for event in events:
            event.holders -= 1
            if event.holders == 0:
                self.used_bytes -= len(event.data)


class Turn(Enum):
    """Where a queue stands in the order in which servers are served."""

    NONE = "none"
    WAITING = "waiting"
    """Its server is left alone for a while."""
    READY = "ready"
    SERVED = "served"


class DestinationQueue:
    """The queue of one server. Without events, live and not greeting it says nothing: it need not be kept."""

    __slots__ = (
        "_budget",
        "_convictions",
        "_covered",
        "_events",
        "_is_live",
        "_is_reading",
        "_limit",
        "_on_way",
        "_passed_probe",
        "_tries",
        "_tries_needed",
        "failures",
        "greets",
        "not_before",
        "retry_ts",
        "sent",
        "server",
        "turn",
    )

    def __init__(self, server: Server, sent: int, budget: Budget, *, is_live: bool) -> None:
        self.server = server
        self.sent = sent
        """The server has everything up to here; it may have more, once nothing waits."""
        self.turn = Turn.NONE
        self.retry_ts = 0
        """While waiting: when the turn comes, in ms."""
        self.not_before = 0.0
        """No try before that, in seconds of the event loop's time."""
        self.failures = 0
        """How often in a row sending failed."""
        self.greets = False
        """Whether a transaction is sent even if it is empty."""
        self._budget = budget
        self._is_live = is_live
        self._is_reading = False
        self._covered = sent
        """Unless live: what is owed up to here is in memory, and what comes later is not."""
        self._events: deque[OutgoingEvent] = deque()
        self._on_way: Sequence[OutgoingEvent] = ()
        self._limit = MAX_PDUS
        self._tries = 0
        self._tries_needed = TRIES_OF_FAILING
        self._passed_probe = False
        self._convictions = 0

    @property
    def is_settled(self) -> bool:
        """Whether the server has all that it is owed up to the newest event that was given out."""
        return self._is_live and not self._is_reading and not self._events and not self._on_way

    @property
    def must_read(self) -> bool:
        """Whether the next events have to be read first."""
        return not self._is_live and not self._events

    @property
    def waiting(self) -> int:
        """How many events are in memory."""
        return len(self._events) + len(self._on_way)

    @property
    def oldest(self) -> int | None:
        """The position of the oldest event in memory that is not on its way."""
        return self._events[0].pos if self._events else None

    # -- filling

    def add(self, event: OutgoingEvent, previous: int) -> None:
        """A new event is owed to the server; `previous`: the position of the event given out before it."""
        if not self._is_live:
            return
        if self.is_settled:
            self.sent = previous
        if len(self._events) >= MAX_EVENTS:
            self.fall_behind()
            return
        self._budget.hold(event)
        self._events.append(event)

    def fall_behind(self) -> None:
        """Keep nothing in memory but what is on its way."""
        self._budget.release(self._events)
        self._events.clear()
        self._is_live = False
        self._covered = self._on_way[-1].pos if self._on_way else self.sent

    def begin_reading(self, newest: int) -> tuple[int, int]:
        """After which position events are to be read, and up to which.

        `newest`: the position of the newest event given out. Once all up to that is read the queue is live:
        what is given out meanwhile is kept.
        """
        after, upto = self._covered, min(newest, self._covered + READ_WINDOW)
        self._is_reading = True
        self._is_live = upto == newest
        return after, upto

    def end_reading(self, events: Sequence[OutgoingEvent], covered: int, *, is_all: bool) -> None:
        """Take what was read: all up to `covered`; `is_all`: that is as far as was wanted."""
        self._is_reading = False
        if not is_all:
            self.fall_behind()
        for event in events:
            self._budget.hold(event)
        self._events.extendleft(reversed(events))
        self._covered = covered
        if not self._events:
            self.sent = covered

    def give_up_reading(self) -> None:
        """Nothing could be read."""
        self._is_reading = False
        self.fall_behind()

    # -- sending

    @property
    def is_probing(self) -> bool:
        """Whether an event is suspected: that the server takes an empty transaction would show it."""
        return self._tries >= self._tries_needed and not self._passed_probe

    def take(self) -> Sequence[OutgoingEvent]:
        """The events of the next transaction, which are on their way now."""
        size_bytes = 0
        taken: list[OutgoingEvent] = []
        while self._events and len(taken) < self._limit and not self.is_probing:
            size_bytes += len(self._events[0].data)
            if taken and size_bytes > MAX_PDU_BYTES:
                break
            taken.append(self._events.popleft())
        self._on_way = taken
        return taken

    def delivered(self) -> None:
        """The server has taken what was on its way."""
        self.failures = 0
        self.greets = False
        if not self._on_way:
            self._passed_probe = self.is_probing
            return
        self._tries, self._convictions, self._passed_probe = 0, 0, False
        self._limit = min(self._limit + _MORE_PDUS, MAX_PDUS)
        self.sent = self._on_way[-1].pos
        self._let_go()
        if not self._events and not self._is_live:
            self.sent = self._covered

    def failed(self, *, tries_needed: int | None) -> OutgoingEvent | None:
        """The server did not take what was on its way: less will be sent the next time.

        `tries_needed`: how often that must happen to one event before it is suspected; None for never. The
        suspected event that has failed again, each time after the server took an empty transaction, is given
        up: it is what is returned.
        """
        self.failures += 1
        self.greets = False
        given_up = None
        if len(self._on_way) > 1:
            self._limit = len(self._on_way) // 2
        elif self._on_way and tries_needed is not None:
            if self._passed_probe:
                self._convictions += 1
                if self._convictions == CONVICTIONS:
                    given_up = self._on_way[0]
                    self.sent = given_up.pos
                    self._tries, self._convictions, self._limit = 0, 0, MAX_PDUS
            else:
                self._tries += 1
                self._tries_needed = tries_needed
        self._passed_probe = False
        self._let_go()
        self.fall_behind()
        return given_up

    def withdraw(self) -> None:
        """What was taken was not even sent."""
        self._let_go()
        self.fall_behind()

    def _let_go(self) -> None:
        self._budget.release(self._on_way)
        self._on_way = ()
