"""Events from outside, on their way into their rooms.

They have passed the gate (PduGate). What can be placed at once is stored before the sender gets its answer;
what lacks something waits in the database, while a task asks other servers for what is missing: one for each
room and server that sent some, so neither rooms nor servers wait for each other's gaps.
Source: Server-Server API, "Transactions", "PDUs", "Soft failure".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from homeserver.errors import Forbidden, Unavailable
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, server_name_of
from homeserver.services.event_intake import EventIntake
from homeserver.services.gap_filling import Filling, GapFilling, Outcome
from homeserver.services.server_access import ServerAccess
from storage import shared_rooms, waiting_pdus
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.dictionaries import Dictionaries
from storage.persister import Persister
from storage.room_heads import RoomRef
from storage.waiting_pdus import WaitingPdu

log = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
"""How long a sender waits for its events to be placed; then they wait in the database."""
EVENTS_AT_ONCE: Final = 100
QUEUES_READ_AT_ONCE: Final = 20
MAX_WAITING_IN_ROOM: Final = 20_000
MAX_WAITING_OF_SERVER: Final = 2000
MAX_WAITING_FOR_JOIN: Final = 200
MAX_WAITING_OF_STRANGERS: Final = 500
MAX_WAITING_OF_STRANGER: Final = 50
"""While so many events of a room wait, in all or of one server, no more are taken: they will be asked for
when a later event builds on them. Strangers are servers that are not in the room; while it is being joined,
that is not known of any."""
MAX_GAPS_AT_ONCE: Final = 50
MAX_GAPS_OF_SERVER: Final = 5
MAX_GAPS_OF_STRANGERS: Final = 5
"""So many gaps are filled at once: before events of all servers, of one, and of all strangers together."""
GAP_PATIENCE_S: Final = 300.0
"""How long filling one may take."""
OTHERS_PATIENCE_S: Final = 15.0
"""So long a gap waits, once, for others of the room that are being filled: mostly the same events lack."""
MAX_LATER: Final = 20
"""Where so many gaps of a queue cannot be filled just now, the others have to wait for the next time."""
PAUSE_S: Final = 1.0
"""After the database could not be reached, or servers that had to be asked; longer each time."""
MAX_PAUSE_S: Final = 60.0
GIVE_UP_S: Final = 3600.0
"""So long an event waits for servers that cannot be reached."""


class TooManyWait(Exception):
    """So many events wait in a room already that these were not taken."""

    def __init__(self, room_id: RoomId, origin: ServerName, event_ids: Collection[EventId]) -> None:
        super().__init__(f"too many events wait in room {room_id}, or too many of {origin}")
        self.event_ids = event_ids


@dataclass(frozen=True, slots=True)
class _Queue:
    """What waits in a room, of one server."""

    ref: RoomRef
    origin: ServerName


@dataclass(frozen=True, slots=True)
class _Lacking:
    """An event that cannot be placed, and what is missing before it."""

    event_id: EventId
    missing: frozenset[EventId]


@dataclass(slots=True, eq=False)
class _Pass:
    """One way through a queue, from older events to newer ones."""

    queue: _Queue
    is_member: bool
    """Whether the server is in the room."""
    waits_since: Mapping[EventId, float]
    """Since when events wait for servers that cannot be reached, by the time of the event loop."""
    had_turn: Collection[EventId]
    """Those that are not tried now: they had their turn the last time, when others had none."""
    put_off: list[EventId] = field(default_factory=list)
    """Those that were tried and have to wait."""
    waited_for: set[_Queue] = field(default_factory=set)
    """Whose gaps took longer than others wait for them."""
    lost: set[EventId] = field(default_factory=set)
    later: set[EventId] = field(default_factory=set)
    """What could not be had, and is not asked for again; and what may be had the next time."""

    @property
    def is_over(self) -> bool:
        """Whether so much could not be had that the rest is left for the next time."""
        return len(self.put_off) >= MAX_LATER


class IncomingEvents:
    """Takes events from outside. `run` does what goes on beside the requests."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        persister: Persister,
        intake: EventIntake,
        gaps: GapFilling,
        access: ServerAccess,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._persister = persister
        self._intake = intake
        self._gaps = gaps
        self._access = access
        self._server_name = server_name
        self._news: dict[_Queue, asyncio.Event] = {}
        """Of the queues that a task sees to: set when something has been added."""
        self._reading = asyncio.Semaphore(QUEUES_READ_AT_ONCE)
        self._reading_in_room: WeakValueDictionary[RoomId, asyncio.Lock] = WeakValueDictionary()
        self._filling: dict[RoomId, dict[_Queue, asyncio.Future[None]]] = {}
        """Whose gaps are being filled just now."""
        self._turns = asyncio.Semaphore(MAX_GAPS_AT_ONCE)
        self._turns_of_strangers = asyncio.Semaphore(MAX_GAPS_OF_STRANGERS)
        self._turns_of_server: WeakValueDictionary[ServerName, asyncio.Semaphore] = WeakValueDictionary()
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """See to what waited when the server stopped, and to what has to wait from now on; for ever."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._see_to_waiting(None)
                await asyncio.Event().wait()
            finally:
                self._tasks = None  # while the others end nothing begins

    def resume(self, ref: RoomRef) -> None:
        """See to the events that wait in a room: a join that they waited for is done, say."""
        if self._tasks is not None:
            self._tasks.create_task(self._see_to_waiting(ref))

    def heard(self) -> None:
        """A server that failed was heard from: it may know what events wait for."""
        for news in self._news.values():
            news.set()

    async def receive(self, origin: ServerName, ref: RoomRef, pdus: Sequence[Pdu], *, wait: bool) -> None:
        """Take events of a room that a server has pushed: when this returns, they are stored.

        What lacks something is kept until that is found, or found to be nowhere. `wait`: all are only to
        wait: the room is being joined. Raises TooManyWait; Unavailable where nothing can be stored.
        """
        rest = list(pdus)
        if not wait:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    rest = [blocked.pdu for blocked in await self._intake.place(ref, pdus)]
            except TimeoutError:
                log.info("events wait: room %s is busy", ref.room_id)
            except Unavailable as error:
                log.info("events of room %s wait: %s", ref.room_id, error.error)
            except UnknownRoom:
                log.info("events of room %s are left out: this server has left it", ref.room_id)
                return
        if rest:
            is_member = wait or await self._is_member(ref, origin)
            if wait:
                most = MAX_WAITING_FOR_JOIN
            else:
                most = MAX_WAITING_OF_SERVER if is_member else MAX_WAITING_OF_STRANGER
            await self._let_wait(ref, origin, rest, most, is_member=is_member)
            self._see_to(_Queue(ref, origin))

    async def add_fixed(self, room_id: RoomId, pdu: Pdu, *, fed: bool) -> None:
        """Store one event that must stay as it is: others have signed it. `fed`: we relay it to others.

        Where it is not on top of the room's newest event, it comes over a fork. Raises Forbidden when the
        state before it, or the current one, does not allow it; UnknownRoom.
        """
        if not pdu.prev_events:
            raise Forbidden("the event has no prev_events: only the one that makes a room has none")
        ref = (await self._persister.newest_head(room_id)).room
        try:
            blocked = await self._intake.place_fixed(ref, pdu, fed=fed)
        except NotAllowed as error:
            raise Forbidden(str(error)) from None
        if blocked is not None:
            raise Forbidden("the event builds on events that are not known here: make it anew")

    # -- what waits

    async def _is_member(self, ref: RoomRef, origin: ServerName) -> bool:
        """Whether a server is in a room."""
        return (await self._access.standing(origin, ref.room_id)).is_in_room

    async def _let_wait(
        self, ref: RoomRef, origin: ServerName, pdus: Sequence[Pdu], most_of_server: int, *, is_member: bool
    ) -> None:
        async with self._database.connection() as tx:
            waiting = await waiting_pdus.counts(tx, ref.nid, origin)
            if is_member:
                in_all, most = waiting.in_room - waiting.by_strangers, MAX_WAITING_IN_ROOM
            else:
                in_all, most = waiting.by_strangers, MAX_WAITING_OF_STRANGERS
            if in_all >= most or waiting.of_server >= most_of_server:
                raise TooManyWait(ref.room_id, origin, [pdu.event_id for pdu in pdus])
            await waiting_pdus.add(tx, ref, origin, pdus, by_stranger=not is_member)

    async def _see_to_waiting(self, ref: RoomRef | None) -> None:
        """See to all that waits, in one room or in all."""
        while True:
            try:
                async with self._database.connection() as tx:
                    found = await waiting_pdus.queues(tx, None if ref is None else ref.nid)
                break
            except Unavailable:
                await asyncio.sleep(PAUSE_S)
            except Exception:
                log.exception("what events wait cannot be found out")
                await asyncio.sleep(MAX_PAUSE_S)
        for room, origin in found:
            self._see_to(_Queue(room, origin))

    def _see_to(self, queue: _Queue) -> None:
        if queue in self._news:
            self._news[queue].set()
        elif self._tasks is not None:
            self._news[queue] = asyncio.Event()
            self._tasks.create_task(self._work(queue))

    async def _work(self, queue: _Queue) -> None:
        """Place what waits in a queue, until nothing does."""
        news, room_id = self._news[queue], queue.ref.room_id
        pause_s = PAUSE_S
        waits_since: dict[EventId, float] = {}
        had_turn: set[EventId] = set()
        try:
            while True:
                news.clear()
                try:
                    this = await self._work_off(queue, waits_since, had_turn)
                    if not (this.later or this.is_over):
                        if not news.is_set():
                            return
                        pause_s = PAUSE_S
                        continue
                    had_turn = had_turn.union(this.put_off) if this.is_over else set()
                    waits_since |= dict.fromkeys(this.later - waits_since.keys(), _now())
                except (Unavailable, UnknownRoom) as error:  # this server may have left the room meanwhile
                    log.info("the events of room %s go on waiting: %s", room_id, error)
                except Exception:
                    log.exception("the events that wait in room %s cannot be seen to", room_id)
                await asyncio.sleep(PAUSE_S)
                try:
                    async with asyncio.timeout(pause_s):
                        await news.wait()
                except TimeoutError:
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            del self._news[queue]

    async def _work_off(
        self, queue: _Queue, waits_since: Mapping[EventId, float], had_turn: Collection[EventId]
    ) -> _Pass:
        """Place what waits in a queue, and fetch what it lacks. What cannot be had is left out.

        It is not remembered: it may come again.
        """
        ref = queue.ref
        own_nid = await self._dictionaries.atoms.nid(self._server_name)
        this = _Pass(queue, await self._is_member(ref, queue.origin), waits_since, had_turn)
        after = 0
        while not this.is_over:
            # Queues of one room would wait for each other in placing: not with a turn in reading.
            async with self._reading_in_room.setdefault(ref.room_id, asyncio.Lock()), self._reading:
                async with self._database.connection() as tx:
                    waiting = await waiting_pdus.oldest(tx, ref, queue.origin, after, EVENTS_AT_ONCE)
                    shared = await shared_rooms.find_one(tx, ref.room_id, own_nid)
                if not waiting or (shared is not None and shared.is_joining and not shared.is_resident):
                    break  # it is resumed when the join has come to an end
                if shared is None or not shared.is_resident:
                    log.info("events of room %s are left out: this server is not in it", ref.room_id)
                    await self._end_waiting(ref, [one.pdu.event_id for one in waiting])
                    blocked: list[_Lacking] = []
                else:
                    blocked = await self._place(queue, waiting)
            if not await self._fill(this, blocked):
                after = waiting[-1].number
        return this

    async def _place(self, queue: _Queue, waiting: Sequence[WaitingPdu]) -> list[_Lacking]:
        """Place events that the room's ACL allows by now; those that lack something, the parents first."""
        ref, origin = queue.ref, queue.origin
        acl = (await self._access.standing(origin, ref.room_id)).acl
        pdus = [one.pdu for one in waiting]
        if acl is not None:
            denied = [
                pdu for pdu in pdus if not (acl.allows(origin) and acl.allows(server_name_of(pdu.sender)))
            ]
            if denied:
                log.info("events of room %s from %s are refused: the room's server ACL", ref.room_id, origin)
                await self._end_waiting(ref, [pdu.event_id for pdu in denied], origin)
                pdus = [pdu for pdu in pdus if pdu not in denied]
        blocked = [
            _Lacking(one.pdu.event_id, one.problem.missing) for one in await self._intake.place(ref, pdus)
        ]
        lacking = {one.event_id for one in blocked}
        await self._end_waiting(ref, [pdu.event_id for pdu in pdus if pdu.event_id not in lacking])
        return blocked

    async def _fill(self, this: _Pass, blocked: Sequence[_Lacking]) -> bool:
        """Fill the gaps before some events; whether what was fetched may let others of them be placed.

        Where not, all were tried, or the pass is over.
        """
        for index, one in enumerate(blocked):
            if one.event_id in this.had_turn or not one.missing.isdisjoint(this.later):
                filling = Filling(Outcome.LATER, one.missing)
            elif not one.missing.isdisjoint(this.lost):
                filling = Filling(Outcome.LOST, one.missing)
            else:
                filling = await self._fill_one(this, one)
                if filling.outcome is Outcome.LATER:
                    this.put_off.append(one.event_id)
            await self._note(this, one.event_id, filling)
            if this.is_over:
                return False
            come = {one.event_id, *one.missing} - filling.missing - this.lost - this.later
            if any(not come.isdisjoint(other.missing) for other in blocked[index + 1 :]):
                return True
        return False

    async def _note(self, this: _Pass, event_id: EventId, filling: Filling) -> None:
        """Take note of what became of an event that lacked something."""
        ref, now = this.queue.ref, _now()
        waits_s = now - this.waits_since.get(event_id, now)
        if filling.outcome is Outcome.FILLED:
            await self._end_waiting(ref, [event_id])
        elif filling.outcome is Outcome.LATER and waits_s < GIVE_UP_S:
            this.later |= {event_id, *filling.missing}
        else:
            this.lost |= {event_id, *filling.missing}
            log.info("%s in room %s is left out: what it builds on cannot be had", event_id, ref.room_id)
            await self._end_waiting(ref, [event_id], this.queue.origin)

    async def _fill_one(self, this: _Pass, lacking: _Lacking) -> Filling:
        """Fill the gap before an event when its turn has come."""
        queue, ref, event_id = this.queue, this.queue.ref, lacking.event_id
        await self._let_others_fill(this)
        turns = self._turns if this.is_member else self._turns_of_strangers
        async with self._turn_of(queue.origin), turns:
            async with self._database.connection() as tx:
                pdu = await waiting_pdus.find(tx, ref, queue.origin, event_id)
            if pdu is None:
                return Filling(Outcome.FILLED)  # it came another way
            filling = self._filling.setdefault(ref.room_id, {})
            done = filling[queue] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(GAP_PATIENCE_S):
                    return await self._gaps.fill(ref, pdu, queue.origin, is_member=this.is_member)
            except TimeoutError:
                log.info("what %s in room %s builds on takes too long to be had", event_id, ref.room_id)
                return Filling(Outcome.LATER, lacking.missing)
            except Unavailable as error:
                log.info("what %s in room %s builds on has to wait: %s", event_id, ref.room_id, error.error)
                return Filling(Outcome.LATER, lacking.missing)
            except UnknownRoom:
                raise
            except Exception:
                log.exception("what %s in room %s builds on cannot be asked for", event_id, ref.room_id)
                return Filling(Outcome.LOST, lacking.missing)
            finally:
                done.set_result(None)
                del filling[queue]
                if not filling and self._filling.get(ref.room_id) is filling:
                    del self._filling[ref.room_id]

    async def _let_others_fill(self, this: _Pass) -> None:
        """Wait for the gaps of a room that are being filled: mostly that fills this one too."""
        filling = self._filling.get(this.queue.ref.room_id, {})
        others = {queue: done for queue, done in filling.items() if queue not in this.waited_for}
        if others:
            await asyncio.wait(others.values(), timeout=OTHERS_PATIENCE_S)
            this.waited_for |= {queue for queue, done in others.items() if not done.done()}

    def _turn_of(self, origin: ServerName) -> asyncio.Semaphore:
        return self._turns_of_server.setdefault(origin, asyncio.Semaphore(MAX_GAPS_OF_SERVER))

    async def _end_waiting(
        self, ref: RoomRef, event_ids: Collection[EventId], origin: ServerName | None = None
    ) -> None:
        """These events do not wait any more; `origin`: not as what this server sent."""
        if event_ids:
            async with self._database.connection() as tx:
                await waiting_pdus.remove(tx, ref.nid, event_ids, origin)


def _now() -> float:
    return asyncio.get_running_loop().time()
