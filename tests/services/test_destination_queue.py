"""A queue loses and repeats nothing, whatever comes between: failures, overflow, reading meanwhile."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from random import Random

import pytest

from homeserver.protocol.identifiers import EventId, ServerName
from homeserver.services import destination_queue
from homeserver.services.destination_queue import Budget, DestinationQueue, OutgoingEvent
from storage.room_servers import Server

SERVER = Server(1, ServerName("tea.test"))


@dataclass
class World:
    """A queue, and what stands around it: events that are stored, and a server that takes them or not."""

    random: Random
    position: int = 0
    owed: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    events: dict[int, OutgoingEvent] = field(default_factory=dict)
    on_way: list[int] | None = None
    reading: tuple[int, int] | None = None
    budget: Budget = field(default_factory=lambda: Budget(10_000))

    def __post_init__(self) -> None:
        self.queue = DestinationQueue(SERVER, 0, self.budget, is_live=self.random.random() < 0.5)

    def event(self, pos: int) -> OutgoingEvent:
        return self.events.setdefault(pos, OutgoingEvent(pos, EventId(f"${pos}"), b"x" * (pos % 7)))

    def give_out(self) -> None:
        pos = self.position + self.random.randint(1, 3)
        if self.random.random() < 0.6:
            self.owed.append(pos)
            self.queue.add(self.event(pos), self.position)
        self.position = pos

    def begin_reading(self) -> None:
        if self.queue.must_read and self.on_way is None and self.reading is None:
            self.reading = self.queue.begin_reading(self.position)

    def end_reading(self) -> None:
        if self.reading is None:
            return
        (after, upto), self.reading = self.reading, None
        if self.random.random() < 0.1:
            self.queue.give_up_reading()
            return
        due = self.owed[bisect_right(self.owed, after) : bisect_right(self.owed, upto)]
        most = self.random.randint(1, 6)
        covered = upto if len(due) < most else due[most - 1]
        self.queue.end_reading([self.event(pos) for pos in due[:most]], covered, is_all=covered >= upto)

    def take(self) -> None:
        if self.reading is None and self.on_way is None:
            self.on_way = [event.pos for event in self.queue.take()] or None

    def answer(self) -> None:
        if self.on_way is None:
            return
        if self.random.random() < 0.7:
            self.queue.delivered()
            self.taken.extend(self.on_way)
        else:
            self.queue.failed(tries_needed=None)
        self.on_way = None

    def fall_behind(self) -> None:
        if self.random.random() < 0.2:
            self.queue.fall_behind()

    def check(self) -> None:
        assert self.taken == self.owed[: len(self.taken)]
        assert self.queue.sent <= self.position
        assert bisect_right(self.owed, self.queue.sent) <= len(self.taken)
        if self.queue.is_settled:
            assert self.taken == self.owed
        assert self.budget.used_bytes == sum(len(one.data) for one in self.events.values() if one.holders)

    def finish(self) -> None:
        while not self.queue.is_settled:
            self.begin_reading()
            self.end_reading()
            self.take()
            self.answer()
            self.check()


@pytest.mark.parametrize("seed", range(300))
def test_everything_arrives_once_and_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination_queue, "MAX_EVENTS", 5)
    monkeypatch.setattr(destination_queue, "MAX_PDUS", 3)
    monkeypatch.setattr(destination_queue, "READ_WINDOW", 7)
    world = World(Random(seed))
    steps = [
        world.give_out,
        world.give_out,
        world.begin_reading,
        world.end_reading,
        world.take,
        world.answer,
        world.fall_behind,
    ]
    for _ in range(300):
        world.random.choice(steps)()
        world.check()
    world.finish()

    assert world.taken == world.owed
    assert bisect_left(world.owed, world.position + 1) == len(world.taken)
    assert world.budget.used_bytes == 0


def live_queue(*positions: int) -> DestinationQueue:
    """A queue with events in memory."""
    queue = DestinationQueue(SERVER, 0, Budget(10_000), is_live=True)
    for pos in positions:
        queue.add(OutgoingEvent(pos, EventId(f"${pos}"), b"{}"), pos - 1)
    return queue


def refill(queue: DestinationQueue, *positions: int) -> None:
    """Read what is owed next."""
    queue.begin_reading(max(positions))
    events = [OutgoingEvent(pos, EventId(f"${pos}"), b"{}") for pos in positions if pos > queue.sent]
    queue.end_reading(events, max(positions), is_all=True)


def test_fewer_events_are_sent_after_a_failure_and_slowly_more_after_successes() -> None:
    positions = range(1, 201)
    queue = live_queue(*positions)
    sizes = []
    for is_taken in (True, False, False, True, True, True, True, True):
        if queue.must_read:
            refill(queue, *positions)
        sizes.append(len(queue.take()))
        if is_taken:
            queue.delivered()
        else:
            queue.failed(tries_needed=None)

    assert sizes == [50, 50, 25, 12, 22, 32, 42, 42]


def test_an_event_is_given_up_only_if_the_server_takes_an_empty_transaction() -> None:
    queue = live_queue(1, 2)
    for _ in range(4):
        assert not queue.is_probing
        assert queue.failed(tries_needed=3) is None
        refill(queue, 1, 2)
        queue.take()
    queue.failed(tries_needed=3)
    probed = [queue.is_probing, not queue.take()]
    refused_probe = queue.failed(tries_needed=3)  # not even an empty transaction is taken
    probed += [queue.is_probing, not queue.take()]
    given_up = None
    for _ in range(destination_queue.CONVICTIONS):
        assert given_up is None
        queue.delivered()
        probed.append(not queue.is_probing)
        refill(queue, 1, 2)
        [taken] = queue.take()
        given_up = queue.failed(tries_needed=3)
        if given_up is None:
            probed += [queue.is_probing, not queue.take()]
    refill(queue, 1, 2)

    assert all(probed)
    assert refused_probe is None
    assert given_up is not None
    assert given_up is taken
    assert (given_up.pos, queue.sent) == (1, 1)
    assert [event.pos for event in queue.take()] == [2]


def test_prom_fed_a_server_that_was_away_and_breaks_off_again_loses_nothing() -> None:
    queue = live_queue(1)
    while not queue.is_probing:
        assert queue.failed(tries_needed=destination_queue.TRIES_OF_FAILING) is None
        refill(queue, 1)
        queue.take()
    queue.delivered()  # it is back
    refill(queue, 1)
    queue.take()
    broke_off = queue.failed(tries_needed=destination_queue.TRIES_OF_FAILING)
    queue.take()
    queue.delivered()
    refill(queue, 1)
    [taken] = queue.take()
    queue.delivered()

    assert broke_off is None
    assert (taken.pos, queue.sent) == (1, 1)
