"""Events from outside, on their way into their rooms.

They have passed the gate (PduGate). What can be placed at once is stored before the sender gets its answer;
what lacks something waits in the database, while a task of its own asks other servers for what is missing.
Rooms do not wait for each other, and in a room servers do not wait long for each other's gaps.
Source: Server-Server API, "Transactions", "PDUs", "Soft failure".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from homeserver.errors import Forbidden, Unavailable
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.services.event_intake import Blocked, EventIntake
from homeserver.services.gap_filling import GapFilling
from storage import shared_rooms, waiting_pdus
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.dictionaries import Dictionaries
from storage.persister import Persister
from storage.room_heads import RoomRef

log = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
"""How long a sender waits for its events to be placed; then they wait in the database."""
EVENTS_AT_ONCE: Final = 100
MAX_WAITING_IN_ROOM: Final = 20_000
MAX_WAITING_OF_SERVER: Final = 2000
"""While so many events of a room wait, in all or from one server, no more are taken: they will be asked for
when a later event builds on them."""
MAX_GAPS_AT_ONCE: Final = 50
MAX_GAPS_OF_SERVER: Final = 5
"""So many gaps are filled at once, in all and before events of one server."""
GAP_PATIENCE_S: Final = 300.0
"""How long filling one may take."""
OTHERS_PATIENCE_S: Final = 15.0
"""So long servers wait for each other's gaps in a room: mostly they lack the same events."""
PAUSE_S: Final = 1.0
"""After the database could not be reached."""
MAX_PAUSE_S: Final = 300.0
"""After what waits could not be seen to, again and again."""


class TooManyWait(Exception):
    """So many events wait in a room already that no more are taken."""

    def __init__(self, room_id: RoomId, origin: ServerName) -> None:
        super().__init__(f"too many events wait in room {room_id}, or too many of {origin}")


@dataclass(frozen=True, slots=True)
class _Queue:
    """What waits in a room, of one server."""

    ref: RoomRef
    origin: ServerName


class IncomingEvents:
    """Takes events from outside. `run` does what goes on beside the requests."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        persister: Persister,
        intake: EventIntake,
        gaps: GapFilling,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._persister = persister
        self._intake = intake
        self._gaps = gaps
        self._server_name = server_name
        self._seen_to: dict[_Queue, bool] = {}
        """Queues that a task sees to, and whether something has been added since it last looked."""
        self._filling: WeakValueDictionary[RoomId, asyncio.Lock] = WeakValueDictionary()
        self._turns = asyncio.Semaphore(MAX_GAPS_AT_ONCE)
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

    async def receive(self, origin: ServerName, ref: RoomRef, pdus: Sequence[Pdu], *, wait: bool) -> None:
        """Take events of a room that a server has pushed; when this returns none of them can be lost.

        `wait`: they are only to wait: the room is being joined. Raises TooManyWait.
        """
        rest = list(pdus)
        if not wait:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    rest = [blocked.pdu for blocked in await self._intake.place(ref, pdus)]
            except TimeoutError:
                log.info("events wait: room %s is busy", ref.room_id)
            except UnknownRoom:
                log.info("events of room %s are left out: this server has left it", ref.room_id)
                return
        if rest:
            await self._let_wait(ref, origin, rest)
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

    async def _let_wait(self, ref: RoomRef, origin: ServerName, pdus: Sequence[Pdu]) -> None:
        async with self._database.connection() as tx:
            waiting, of_server = await waiting_pdus.counts(tx, ref.nid, origin)
            if waiting >= MAX_WAITING_IN_ROOM or of_server >= MAX_WAITING_OF_SERVER:
                raise TooManyWait(ref.room_id, origin)
            await waiting_pdus.add(tx, ref.nid, origin, pdus)

    async def _see_to_waiting(self, ref: RoomRef | None) -> None:
        """See to all that waits, in one room or in all."""
        while True:
            try:
                async with self._database.connection() as tx:
                    found = await waiting_pdus.queues(tx, None if ref is None else ref.nid)
                break
            except Unavailable:
                await asyncio.sleep(PAUSE_S)
        for room, origin in found:
            self._see_to(_Queue(room, origin))

    def _see_to(self, queue: _Queue) -> None:
        if queue in self._seen_to:
            self._seen_to[queue] = True
        elif self._tasks is not None:
            self._seen_to[queue] = True
            self._tasks.create_task(self._work(queue))

    async def _work(self, queue: _Queue) -> None:
        """Place what waits in a queue, until nothing does."""
        pause_s = PAUSE_S
        try:
            while self._seen_to[queue]:
                self._seen_to[queue] = False
                try:
                    await self._work_off(queue)
                    continue
                except (Unavailable, UnknownRoom) as error:  # this server may have left the room meanwhile
                    log.info("the events of room %s go on waiting: %r", queue.ref.room_id, error)
                    pause_s = PAUSE_S
                except Exception:
                    log.exception("the events that wait in room %s cannot be seen to", queue.ref.room_id)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                self._seen_to[queue] = True
                await asyncio.sleep(pause_s)
        finally:
            del self._seen_to[queue]

    async def _work_off(self, queue: _Queue) -> None:
        ref = queue.ref
        own_nid = await self._dictionaries.atoms.nid(self._server_name)
        lost: set[EventId] = set()
        """What could not be had: nobody is asked for it again here."""
        while True:
            async with self._database.connection() as tx:
                waiting = await waiting_pdus.oldest(tx, ref, queue.origin, EVENTS_AT_ONCE)
                shared = await shared_rooms.find_one(tx, ref.room_id, own_nid)
            if not waiting:
                return
            if shared is not None and shared.is_resident:
                await self._settle(queue, waiting, lost)
            elif shared is not None and shared.is_joining:
                return  # it is resumed when the join has come to an end
            else:
                log.info("events of room %s are left out: this server is not in it", ref.room_id)
                await self._end_waiting(ref, [pdu.event_id for pdu in waiting])

    async def _settle(self, queue: _Queue, waiting: Sequence[Pdu], lost: set[EventId]) -> None:
        """Place events, and fetch what they lack; those for which that cannot be had are left out.

        These are not remembered: they may come again, when what they lack can be had.
        """
        ref = queue.ref
        blocked = await self._intake.place(ref, waiting)
        still = {one.pdu.event_id for one in blocked}
        await self._end_waiting(ref, [pdu.event_id for pdu in waiting if pdu.event_id not in still])
        while blocked:
            first, *rest = blocked
            event_id = first.pdu.event_id
            if lost.isdisjoint(first.problem.missing) and await self._fill(queue, first):
                rest = await self._intake.place(ref, [one.pdu for one in rest])
            else:
                log.info("%s in room %s is left out: what it builds on cannot be had", event_id, ref.room_id)
                lost |= {event_id, *first.problem.missing}
            left = {one.pdu.event_id for one in rest}
            await self._end_waiting(
                ref, [one.pdu.event_id for one in blocked if one.pdu.event_id not in left]
            )
            blocked = rest

    async def _fill(self, queue: _Queue, blocked: Blocked) -> bool:
        """Whether an event has its place now that what it lacked was asked for."""
        event_id, room_id = blocked.pdu.event_id, queue.ref.room_id
        async with AsyncExitStack() as turns:
            try:
                async with asyncio.timeout(OTHERS_PATIENCE_S):
                    await turns.enter_async_context(self._others(queue.ref))
            except TimeoutError:
                log.debug("a gap in room %s takes long to be filled", room_id)
            await turns.enter_async_context(self._turn_of(queue.origin))
            await turns.enter_async_context(self._turns)
            try:
                async with asyncio.timeout(GAP_PATIENCE_S):
                    return await self._gaps.fill(queue.ref, blocked.pdu, queue.origin)
            except TimeoutError:
                log.info("what %s in room %s builds on takes too long to be had", event_id, room_id)
            except (Unavailable, UnknownRoom):
                raise
            except Exception:
                log.exception("what %s in room %s builds on cannot be asked for", event_id, room_id)
        return False

    def _others(self, ref: RoomRef) -> asyncio.Lock:
        return self._filling.setdefault(ref.room_id, asyncio.Lock())

    def _turn_of(self, origin: ServerName) -> asyncio.Semaphore:
        return self._turns_of_server.setdefault(origin, asyncio.Semaphore(MAX_GAPS_OF_SERVER))

    async def _end_waiting(self, ref: RoomRef, event_ids: Collection[EventId]) -> None:
        if event_ids:
            async with self._database.connection() as tx:
                await waiting_pdus.remove(tx, ref.nid, event_ids)
