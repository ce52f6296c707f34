"""The one loop that writes events: it drains all that waits into one call, which is one durable commit.

A service hands over a decision, a pure function of the room's head. The loop asks it when the room's turn
has come, and asks again on the newer head when another process was first. No decision ever waits in the
loop: what it needs is loaded beside it, and the decision is queued again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

import asyncpg

from homeserver.errors import Unavailable
from homeserver.metrics import Metrics
from homeserver.protocol.identifiers import EventId, RoomId
from storage.batch_results import BatchResult, sort_out
from storage.database import CONNECTION_LOST, Database
from storage.decisions import Decision, Request, UnknownRoom
from storage.dictionaries import Dictionaries
from storage.event_batch import EventBatch, NewRoom, TxnKey
from storage.events import event_ids_of, stored_event_ids
from storage.head_loading import HeadLoading
from storage.new_events import NewEvents, UnknownTexts
from storage.nids import NidBlocks
from storage.persist_connection import RECONNECT_PAUSES_S, PersistConnection
from storage.room_batch import MAX_DECISION_EVENTS, RoomBatch
from storage.room_heads import Needs, NeedsCommit, NeedsWork, RoomHead, RoomHeads, RoomRef
from storage.stream import Stream, StreamEvent
from storage.txn_ids import find_txn

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 300
MAX_BATCH_EVENTS: Final = 1000
"""A batch takes no further decision once it has so many events: the lock is held while they are stored."""
MAX_QUEUE: Final = 20_000
MAX_ROUNDS: Final = 100
"""How often a decision may ask for more, or be overtaken, before it fails."""


class Persister:
    """Writes events; every process has one. `run` does the work, `append` and `create` hand it over."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        heads: RoomHeads,
        stream: Stream,
        metrics: Metrics,
        clock_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._heads = heads
        self._stream = stream
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._nids = NidBlocks(database)
        self._new_events = NewEvents(dictionaries, self._nids)
        self._connection = PersistConnection(database)
        self._queue: deque[Request] = deque()
        self._batches: deque[list[Request]] = deque()
        """Requests that are to be written together, before the queue."""
        self._work = asyncio.Event()
        self._txns: dict[TxnKey, asyncio.Future[list[EventId]]] = {}
        self._tasks: asyncio.TaskGroup
        self._loading: HeadLoading
        self._open: set[Request] = set()
        self._closing = False

    async def append(
        self, room_id: RoomId, decide: Decision, *, key: TxnKey | None = None, joining: bool = False
    ) -> list[EventId]:
        """Add to a room what `decide` makes of its head; returns the IDs of the events once they are durable.

        With a key that was used before, the event that it made then. `joining`: the room may have no live
        event yet, just the state at trunk(0). Raises what `decide` raises, UnknownRoom, and Unavailable when
        too much waits or the database cannot be reached (the outcome is then unknown).
        """
        if key is not None and (running := self._txns.get(key)) is not None:
            return await asyncio.shield(running)
        return await self._submit(room_id, decide, key, joining=joining)

    async def consider(self, room_id: RoomId, decide: Callable[[RoomHead], T]) -> T:
        """What a pure function makes of a room's newest head, as far as this process knows; writes nothing.

        Raises what `decide` raises, and UnknownRoom.
        """
        for _ in range(MAX_ROUNDS):
            head = await self._heads.get(room_id)
            if head is None:
                raise UnknownRoom(room_id)
            try:
                return decide(head)
            except Needs as needs:
                head.learn(await self._heads.load_keys(head, needs.keys))
            except NeedsWork as needs:
                await needs.work()
        raise Unavailable("the room is too busy; try again")

    async def newest_head(self, room_id: RoomId) -> RoomHead:
        """A room's newest head, as far as this process knows; not to be changed. Raises UnknownRoom."""
        return await self.consider(room_id, lambda head: head)

    async def create(self, new_room: NewRoom, decide: Decision) -> list[EventId]:
        """Make a room out of what `decide` builds on an empty head: all of it or nothing.

        Raises AliasTaken, and what `append` raises.
        """
        return await self._submit(new_room, decide, None)

    async def run(self) -> None:
        """Write until `close`; returns when all that was handed over before is answered.

        If it ends in another way, what waits is answered with Unavailable: nobody will write it.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._loading = HeadLoading(
                    self._heads, self._dictionaries, self._tasks, self._requeue, self._refuse
                )
                while not (self._closing and not self._open):
                    await self._work.wait()
                    self._work.clear()
                    while self._queue or self._batches:
                        await self._write(self._take())
        finally:
            self._closing = True
            for request in list(self._open):
                self._finish(request, Unavailable("the server stops; try again"))
            self._connection.close()

    def close(self) -> None:
        """Take nothing more; `run` ends once what waits is written."""
        self._closing = True
        self._work.set()

    @property
    def pending(self) -> int:
        """Decisions that are not answered yet."""
        return len(self._open)

    async def _submit(
        self, target: RoomId | NewRoom, decide: Decision, key: TxnKey | None, *, joining: bool = False
    ) -> list[EventId]:
        if len(self._open) >= MAX_QUEUE or self._closing:
            raise Unavailable("the server is busy; try again")
        request = Request(target, decide, key, asyncio.get_running_loop().create_future(), joining)
        self._open.add(request)
        if key is not None:
            self._txns[key] = request.answer
        self._queue.append(request)
        self._work.set()
        # A client that goes away does not undo what is being written: the answer then goes nowhere.
        return await asyncio.shield(request.answer)

    def _finish(self, request: Request, result: list[EventId] | BaseException) -> None:
        self._open.remove(request)
        if request.joining and isinstance(request.target, str):
            self._heads.forget_unborn(request.target)
        if request.key is not None:
            del self._txns[request.key]
        if isinstance(result, BaseException):
            request.answer.set_exception(result)
            request.answer.exception()  # nobody may be waiting any more
        else:
            request.answer.set_result(result)
        if self._closing:
            self._work.set()

    def _requeue(self, requests: Collection[Request]) -> None:
        """Ask again, before all that came later; what was overtaken too often fails."""
        again = []
        for request in requests:
            request.rounds += 1
            if request.rounds > MAX_ROUNDS:
                log.warning("a change of room %s was overtaken %d times", request.target, MAX_ROUNDS)
                self._finish(request, Unavailable("the room is too busy; try again"))
            else:
                again.append(request)
        self._queue.extendleft(reversed(again))
        self._work.set()

    def _take(self) -> list[Request]:
        if self._batches:
            return self._batches.popleft()
        return [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]

    # -- from decisions to events

    async def _write(self, requests: list[Request]) -> None:
        rooms: dict[object, RoomBatch] = {}
        events = 0
        first_of_next: list[Request] = []
        for index, request in enumerate(requests):
            if events >= MAX_BATCH_EVENTS:
                self._queue.extendleft(reversed(requests[index:]))
                break
            try:
                await self._nids.reserve(1 + MAX_DECISION_EVENTS)
                room = rooms.get(request.room)
                if room is None:
                    room = rooms[request.room] = RoomBatch.on(self._base(request))
                events += room.ask(request, self._new_events)
            except (Needs, NeedsWork, UnknownTexts) as reason:
                self._loading.set_aside(request, reason)
            except NeedsCommit:
                first_of_next.append(request)
            except Exception as error:
                self._refuse(request, error)
        self._requeue(first_of_next)
        decided = [room for room in rooms.values() if room.decided]
        if decided:
            await self._store(decided)

    def _base(self, request: Request) -> RoomHead:
        """What is committed of a request's room. Raises Needs where that is not in memory."""
        if isinstance(request.target, NewRoom):
            return RoomHead.of_new_room(RoomRef(self._nids.take(), RoomId(""), request.target.version))
        head = self._heads.cached(request.target, joining=request.joining)
        if head is None:
            raise Needs(())
        return head

    def _refuse(self, request: Request, error: Exception) -> None:
        """A decision that fails fails only its own request; but its lost first try may have succeeded."""
        if request.key is None:
            self._finish(request, error)
        else:
            self._tasks.create_task(self._refuse_unless_sent(request, request.key, error))

    async def _refuse_unless_sent(self, request: Request, key: TxnKey, error: Exception) -> None:
        try:
            async with self._database.connection() as tx:
                sent = await find_txn(tx, key)
        except Exception as unavailable:
            self._finish(request, unavailable)
        else:
            self._finish(request, error if sent is None else [sent])

    # -- from events to answers

    async def _store(self, rooms: list[RoomBatch]) -> None:
        started = time.perf_counter()
        batch = EventBatch(self._clock_ms())
        try:
            for room in rooms:
                room.add_to(batch)
        except Exception as error:  # something that no row can be made of
            self._bisect(rooms, error)
            return
        try:
            outcome = await self._connection.persist(batch)
        except ValueError as error:  # what asyncpg could not even send
            self._bisect(rooms, error)
            return
        except CONNECTION_LOST:
            await self._after_lost_connection(rooms)
            return
        except asyncpg.PostgresError as error:
            self._bisect(rooms, error)
            return
        result = sort_out(rooms, batch, outcome)
        self._go_on_from(result)
        if result.visible:
            await self._publish(outcome.first_pos, outcome.last_pos, result.visible)
            self._metrics.persist_batch_events.observe({}, len(result.visible))
            self._metrics.persist_batch_seconds.observe({}, time.perf_counter() - started)
        for room in result.stored:
            for decided in room.decided:
                if decided.error is None:
                    self._finish(decided.request, list(decided.event_ids))
                else:
                    self._refuse(decided.request, decided.error)

    def _go_on_from(self, result: BatchResult) -> None:
        """Take the heads and the queue to where a batch has left them, and answer what it has left out."""
        for room in result.stored:
            room.base.absorb(room.head)
            self._heads.keep(room.base)
        for room_id in result.stale:
            self._heads.forget(room_id)
        for request, error in result.failed:
            self._finish(request, error)
        for request, nid in result.repeated:
            self._tasks.create_task(self._answer_with(request, nid))
        self._batches.extend(result.delayed)
        self._requeue(result.overtaken)

    async def _answer_with(self, request: Request, nid: int) -> None:
        """Answer a repeated transaction with the event that it made the first time."""
        try:
            async with self._database.connection() as tx:
                event_id = (await event_ids_of(tx, [nid]))[nid]
        except Exception as error:
            self._finish(request, error)
        else:
            self._finish(request, [event_id])

    async def _publish(self, first_pos: int, last_pos: int, events: Sequence[StreamEvent]) -> None:
        try:
            await self._stream.publish(first_pos, last_pos, events)
        except Unavailable as error:
            log.warning("what was stored cannot be told yet: %s", error.error)
            self._tasks.create_task(self._tell_later())

    async def _tell_later(self) -> None:
        """Tell what is stored when the database can be read again."""
        for pause_s in RECONNECT_PAUSES_S:
            await asyncio.sleep(pause_s)
            if self._closing:
                return
            try:
                await self._stream.catch_up()
            except Unavailable as error:
                log.warning("what was stored cannot be told yet: %s", error.error)
            else:
                return

    def _bisect(self, rooms: Sequence[RoomBatch], error: Exception) -> None:
        """Find the one poisoned decision: it fails, the others are written."""
        requests = [request for room in rooms for request in room.requests]
        if len(requests) == 1:
            log.error("a change of room %s cannot be stored: %s", requests[0].target, error)
            self._finish(requests[0], error)
        else:
            middle = len(requests) // 2
            self._batches.extend((requests[:middle], requests[middle:]))

    async def _after_lost_connection(self, rooms: Sequence[RoomBatch]) -> None:
        """The batch may be stored or not: find out, answer what is, and ask again for what is not."""
        entries = [decided for room in rooms for decided in room.decided]
        last_ids = [decided.events[-1].pdu.event_id for decided in entries if decided.events]
        for room in rooms:
            self._heads.forget(room.base.room.room_id)
        try:
            await self._connection.reconnect()
            async with self._database.connection() as tx:
                stored = await stored_event_ids(tx, last_ids)
            await self._stream.catch_up()
        except Exception as error:
            log.error("the database is gone and did not come back: %s", error or type(error).__name__)
            for decided in entries:
                self._finish(decided.request, Unavailable("the database cannot be reached; try again"))
            return
        again = []
        for decided in entries:
            if decided.events and decided.events[-1].pdu.event_id in stored:
                self._finish(decided.request, list(decided.event_ids))
            else:
                again.append(decided.request)
        self._requeue(again)
