"""Events from outside, on their way into their rooms.

They have passed the gate (PduGate). What can be placed at once is stored before the sender gets its answer;
what lacks something waits in the database, while a task of its own asks other servers for what is missing.
Rooms do not wait for each other, and no room is locked while the network is asked.
Source: Server-Server API, "Transactions", "PDUs", "Soft failure".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from homeserver.errors import Forbidden, Unavailable
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.services.clock import Clock
from homeserver.services.event_placement import (
    Arrival,
    Arrivals,
    MissingAuthEvents,
    MissingParents,
    Verdict,
)
from homeserver.services.fork_states import ForkStates
from homeserver.services.missing_events import MissingEvents, parents_first
from storage import memberships, shared_rooms, stored_places, waiting_pdus
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.nids import NidBlocks
from storage.persister import EventsStored, Persister, UnknownRoom
from storage.room_heads import RoomRef
from storage.state_deltas import ForkState

log = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
"""How long a sender waits for its events to be placed; then they wait in the database."""
EVENTS_AT_ONCE: Final = 100
MAX_WAITING_IN_ROOM: Final = 20_000
MAX_WAITING_OF_SERVER: Final = 2000
"""While so many events of a room wait, in all or from one server, no more are taken: they will be asked for
when a later event builds on them."""
MAX_ROOMS_AT_ONCE: Final = 20
"""In so many rooms at once missing events are asked for."""
SERVERS_TO_ASK: Final = 3
PAUSE_S: Final = 1.0
"""After the database could not be reached."""
MAX_PAUSE_S: Final = 300.0
"""After what waits in a room could not be seen to, again and again."""


@dataclass(slots=True, eq=False)
class _Room:
    """A room that events come to: one at a time places them."""

    ref: RoomRef
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    is_working: bool = False
    """Whether a task sees to the events that wait."""
    has_work: bool = False


@dataclass(frozen=True, slots=True)
class _Blocked:
    """An event that cannot be placed yet, and why."""

    pdu: Pdu
    problem: MissingParents


class TooManyWait(Exception):
    """So many events wait in a room already that no more are taken."""


class IncomingEvents:
    """Takes events from outside. `run` does what goes on beside the requests."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        persister: Persister,
        forks: ForkStates,
        missing_events: MissingEvents,
        server_name: ServerName,
        clock: Clock,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._persister = persister
        self._forks = forks
        self._missing_events = missing_events
        self._server_name = server_name
        self._clock = clock
        self._nids = NidBlocks(database)
        self._rooms: dict[RoomId, _Room] = {}
        self._turns = asyncio.Semaphore(MAX_ROOMS_AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """See to what waited when the server stopped, and to what has to wait from now on; for ever."""
        async with asyncio.TaskGroup() as self._tasks:
            for ref in await self._waiting_rooms():
                self.resume(ref)
            await asyncio.Event().wait()

    async def _waiting_rooms(self) -> list[RoomRef]:
        while True:
            try:
                async with self._database.connection() as tx:
                    return await waiting_pdus.rooms(tx)
            except Unavailable:
                await asyncio.sleep(PAUSE_S)

    def resume(self, ref: RoomRef) -> None:
        """See to the events that wait in a room: a join that they waited for is done, say."""
        room = self._enter(ref)
        try:
            self._start_work(room)
        finally:
            self._leave(room)

    async def receive(self, origin: ServerName, ref: RoomRef, pdus: Sequence[Pdu], *, wait: bool) -> None:
        """Take events of a room that a server has pushed; when this returns none of them can be lost.

        `wait`: they are only to wait: the room is being joined. Raises TooManyWait.
        """
        room = self._enter(ref)
        try:
            rest = list(pdus)
            if not wait:
                try:
                    async with asyncio.timeout(PATIENCE_S), room.lock:
                        rest = [blocked.pdu for blocked in await self._store(ref, pdus)]
                except TimeoutError:
                    log.info("events wait: room %s is busy", ref.room_id)
                except UnknownRoom:
                    log.info("events of room %s are left out: this server has left it", ref.room_id)
                    return
            if rest:
                await self._let_wait(ref, origin, rest)
                self._start_work(room)
        finally:
            self._leave(room)

    async def add_fixed(self, room_id: RoomId, pdu: Pdu, *, fed: bool) -> None:
        """Store one event that must stay as it is: others have signed it. `fed`: we relay it to others.

        Where it is not on top of the room's newest event, it comes over a fork. Raises Forbidden when the
        state before it, or the current one, does not allow it; UnknownRoom.
        """
        ref = await self._persister.consider(room_id, lambda head: head.room)
        room = self._enter(ref)
        try:
            async with room.lock:
                blocked = await self._store(ref, [pdu], flags=EventFlag.FED if fed else 0, is_fixed=True)
        except NotAllowed as error:
            raise Forbidden(str(error)) from None
        finally:
            self._leave(room)
        if blocked:
            raise Forbidden("the event builds on events that are not known here")

    # -- placing

    async def _store(
        self, ref: RoomRef, pdus: Iterable[Pdu], *, flags: int = 0, is_fixed: bool = False
    ) -> list[_Blocked]:
        """Place events, the parents first, as far as nothing is missing; those that cannot be placed yet."""
        ordered = parents_first(pdu for pdu in pdus if pdu.prev_events)  # another beginning is none
        async with self._database.connection() as tx:
            places = await stored_places.load(tx, ref.nid, [pdu.event_id for pdu in ordered])
        await self._nids.reserve(len(ordered))
        arrivals = []
        for pdu in ordered:
            place = places.get(pdu.event_id)
            if place is None:
                arrivals.append(Arrival(pdu, self._nids.take(), flags=flags, is_fixed=is_fixed))
            elif place.is_outlier:
                arrivals.append(Arrival(pdu, place.nid, is_promoted=True, flags=flags, is_fixed=is_fixed))
            elif place.is_refused and is_fixed:
                raise NotAllowed("authorization", "the event was refused before")
        return await self._place(ref, arrivals)

    async def _place(self, ref: RoomRef, arrivals: list[Arrival]) -> list[_Blocked]:
        """Hand events to the persister, all at once or, once something went wrong, one by one."""
        blocked: list[_Blocked] = []
        waiting: set[EventId] = set()
        at_once = len(arrivals)
        while arrivals:
            first = arrivals[0]
            if behind := waiting & set(first.pdu.prev_events):
                blocked.append(_Blocked(first.pdu, MissingParents(first.pdu, behind)))
                waiting.add(first.pdu.event_id)
                arrivals = arrivals[1:]
                continue
            decision = Arrivals(
                self._database, self._dictionaries, self._forks, self._server_name, arrivals[:at_once]
            )
            try:
                taken = await self._persister.append(ref.room_id, decision)
            except EventsStored as stored:
                arrivals = await self._not_placed(ref, arrivals, stored.event_ids)
            except MissingParents as problem:
                blocked.append(_Blocked(first.pdu, problem))
                waiting.add(first.pdu.event_id)
                arrivals = arrivals[1:]
            except (Unavailable, UnknownRoom, NotAllowed):
                raise
            except Exception:
                if at_once == 1:
                    log.exception("%s in room %s is left out", first.pdu.event_id, ref.room_id)
                    arrivals = arrivals[1:]
                at_once = 1
            else:
                self._tell_refused(ref, arrivals[: len(taken)])
                arrivals = arrivals[len(taken) :]
        return blocked

    async def _not_placed(
        self, ref: RoomRef, arrivals: Iterable[Arrival], stored: Collection[EventId]
    ) -> list[Arrival]:
        """Those of some events that have no place yet; some of them have got a row meanwhile."""
        async with self._database.connection() as tx:
            places = await stored_places.load(tx, ref.nid, stored)
        left = []
        for arrival in arrivals:
            place = places.get(arrival.pdu.event_id)
            if place is None:
                left.append(arrival)
            elif place.is_outlier:
                left.append(replace(arrival, nid=place.nid, is_promoted=True, fork=None))
        return left

    def _tell_refused(self, ref: RoomRef, arrivals: Iterable[Arrival]) -> None:
        for arrival in arrivals:
            if arrival.verdict is not Verdict.ACCEPTED and arrival.verdict is not None:
                log.info(
                    "%s in room %s is %s: %s",
                    arrival.pdu.event_id,
                    ref.room_id,
                    arrival.verdict.value,
                    arrival.reason,
                )

    # -- what waits

    async def _let_wait(self, ref: RoomRef, origin: ServerName, pdus: Sequence[Pdu]) -> None:
        async with self._database.connection() as tx:
            waiting, of_server = await waiting_pdus.counts(tx, ref.nid, origin)
            if waiting >= MAX_WAITING_IN_ROOM or of_server >= MAX_WAITING_OF_SERVER:
                raise TooManyWait
            await waiting_pdus.add(tx, ref.nid, origin, pdus, self._clock())

    def _start_work(self, room: _Room) -> None:
        room.has_work = True
        if not room.is_working and self._tasks is not None:
            room.is_working = True
            room.users += 1
            self._tasks.create_task(self._work(room))

    async def _work(self, room: _Room) -> None:
        """Place what waits in a room, until nothing does."""
        pause_s = PAUSE_S
        try:
            while room.has_work:
                room.has_work = False
                try:
                    async with self._turns:
                        await self._work_off(room)
                    continue
                except (Unavailable, UnknownRoom) as error:  # this server may have left it meanwhile
                    log.info("the events of room %s go on waiting: %r", room.ref.room_id, error)
                    pause_s = PAUSE_S
                except Exception:
                    log.exception("the events that wait in room %s cannot be seen to", room.ref.room_id)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                room.has_work = True
                await asyncio.sleep(pause_s)
        finally:
            room.is_working = False
            self._leave(room)

    async def _work_off(self, room: _Room) -> None:
        ref = room.ref
        own_nid = await self._dictionaries.atoms.nid(self._server_name)
        while True:
            async with self._database.connection() as tx:
                waiting = await waiting_pdus.oldest(tx, ref, EVENTS_AT_ONCE)
                shared = await shared_rooms.find_one(tx, ref.room_id, own_nid)
            if not waiting:
                return
            is_in = shared is not None and shared.is_resident
            if not is_in and shared is not None and shared.is_joining:
                return  # it is resumed when the join has come to an end
            origins = {one.pdu.event_id: one.origin for one in waiting}
            if is_in:
                async with room.lock:
                    blocked = await self._store(ref, [one.pdu for one in waiting])
                for one in blocked:
                    try:
                        await self._unblock(room, one, origins[one.pdu.event_id])
                    except (Unavailable, UnknownRoom):
                        raise
                    except Exception:
                        log.exception("%s in room %s is left out", one.pdu.event_id, ref.room_id)
            else:
                log.info("events of room %s are left out: this server is not in it", ref.room_id)
            async with self._database.connection() as tx:
                await waiting_pdus.remove(tx, ref.nid, origins)

    async def _unblock(self, room: _Room, blocked: _Blocked, origin: ServerName) -> None:
        """Fetch what an event lacks, and place it; one for which that cannot be had is left out.

        It is not remembered: it may come again, when what it lacks can be had.
        """
        ref, pdu = room.ref, blocked.pdu
        async with room.lock:  # what was missing may have come meanwhile
            problem = next(iter(await self._store(ref, [pdu])), None)
        if problem is None:
            return
        servers = await self._servers(ref, origin)
        if await self._fill(room, problem, servers) is None:
            return
        log.info("%s in room %s is left out: what it builds on cannot be had", pdu.event_id, ref.room_id)

    async def _fill(self, room: _Room, blocked: _Blocked, servers: Sequence[ServerName]) -> _Blocked | None:
        """Try to close the gap before an event, auth events first; what blocks it still, if anything."""
        ref, pdu = room.ref, blocked.pdu
        left: _Blocked | None = blocked
        if isinstance(blocked.problem, MissingAuthEvents):
            return await self._store_with_auth_events(room, [pdu], servers)
        async with self._database.connection() as tx:
            gaps = await stored_places.are_missing(tx, ref.nid, blocked.problem.missing)
        if gaps == blocked.problem.missing:  # it follows where a gap is already, such as that before our join
            return await self._bridge(room, blocked, [pdu], servers)
        head = await self._persister.newest_head(ref.room_id)
        earlier = await self._missing_events.before(ref, head, pdu, servers)
        left = await self._store_with_auth_events(room, [*earlier, pdu], servers)
        if left is not None and not isinstance(left.problem, MissingAuthEvents):
            left = await self._bridge(room, left, earlier, servers)
        return left

    async def _store_with_auth_events(
        self, room: _Room, pdus: Sequence[Pdu], servers: Sequence[ServerName]
    ) -> _Blocked | None:
        """Place events, fetching auth events that they lack; what blocks the last of them."""
        asked: set[EventId] = set()
        while True:
            async with room.lock:
                blocked = await self._store(room.ref, pdus)
            lacking = [
                one
                for one in blocked
                if isinstance(one.problem, MissingAuthEvents) and one.pdu.event_id not in asked
            ]
            if not lacking:
                return next((one for one in blocked if one.pdu is pdus[-1]), None)
            for one in lacking:
                asked.add(one.pdu.event_id)
                await self._missing_events.auth_events(room.ref, one.pdu, one.problem.missing, servers)

    async def _bridge(
        self, room: _Room, blocked: _Blocked, earlier: Sequence[Pdu], servers: Sequence[ServerName]
    ) -> _Blocked | None:
        """Leave a gap, and place the events after it on the state that another server tells.

        `earlier`: events that were asked for, or the event itself where the gap is known. One that was pushed
        does not bring a gap: whoever keeps back what it builds on could make it the room's one extremity.
        """
        ref = room.ref
        for pdu in earlier:
            async with room.lock:
                still = await self._store(ref, [pdu])
            if not still or isinstance(still[0].problem, MissingAuthEvents):
                continue
            missing = still[0].problem.missing
            head = await self._persister.newest_head(ref.room_id)
            before = await self._missing_events.state_before(ref, head, pdu, missing, servers)
            if before is None:
                return blocked
            async with room.lock:
                await self._store_after_gap(ref, pdu, before, missing)
        async with room.lock:
            return next(iter(await self._store(ref, [blocked.pdu])), None)

    async def _store_after_gap(
        self, ref: RoomRef, pdu: Pdu, before: ForkState, missing: frozenset[EventId]
    ) -> None:
        async with self._database.connection() as tx:
            place = (await stored_places.load(tx, ref.nid, [pdu.event_id])).get(pdu.event_id)
        if place is not None and not place.is_outlier:
            return
        await self._nids.reserve(1)
        nid = self._nids.take() if place is None else place.nid
        arrival = Arrival(
            pdu,
            nid,
            is_promoted=place is not None,
            flags=EventFlag.GAP,
            before=before,
            missing=missing,
        )
        await self._place(ref, [arrival])

    async def _servers(self, ref: RoomRef, origin: ServerName) -> list[ServerName]:
        """Whom to ask for what is missing: the one that sent the event, then others that are in the room."""
        async with self._database.connection() as tx:
            others = await memberships.servers_of(tx, ref.room_id, SERVERS_TO_ASK + 1)  # we may be among them
        servers = [one for one in dict.fromkeys([origin, *others]) if one != self._server_name]
        return servers[:SERVERS_TO_ASK]

    def _enter(self, ref: RoomRef) -> _Room:
        room = self._rooms.get(ref.room_id)
        if room is None or room.ref.nid != ref.nid:
            room = self._rooms[ref.room_id] = _Room(ref)
        room.users += 1
        return room

    def _leave(self, room: _Room) -> None:
        room.users -= 1
        if not room.users and self._rooms.get(room.ref.room_id) is room:
            del self._rooms[room.ref.room_id]
