"""Joining rooms through servers that are in them: one attempt at a time, and another where it broke off.

What these servers are asked is in `join_handshakes.py`. From the first join that is sent the room is leased,
so that only one such attempt goes on at a time, in all processes, and events that already come for it wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from homeserver.errors import BadGateway, MatrixError, Unavailable
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import Clock
from homeserver.services.incoming_events import IncomingEvents
from homeserver.services.join_handshakes import JoinHandshakes
from homeserver.services.join_imports import RoomIsHere
from storage import room_imports
from storage.database import Database
from storage.room_heads import RoomRef
from storage.room_imports import Lease, LeaseLost, PendingJoin

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 10
"""How often a join that broke off is tried again."""
LEASE_MS: Final = 60 * 1000
LEASE_RENEWAL_S: Final = 20.0
PATIENCE_S: Final = 120.0
"""How long to wait for somebody else who joins the same room."""
LEASE_PAUSE_S: Final = 0.25


@dataclass(slots=True)
class _Attempt:
    """An attempt to join a room, and what it holds from the first join that it sends to its end."""

    wanted: PendingJoin
    held: tuple[RoomRef, Lease] | None = None


class RemoteJoins:
    """Joins rooms for users of this server, through other servers."""

    def __init__(
        self, database: Database, handshakes: JoinHandshakes, incoming: IncomingEvents, clock: Clock
    ) -> None:
        self._database = database
        self._handshakes = handshakes
        self._incoming = incoming
        self._clock = clock
        self._running: dict[RoomId, asyncio.Future[None]] = {}

    async def join(
        self, user_id: UserId, room_id: RoomId, content: JsonObject, servers: Iterable[str]
    ) -> EventId:
        """Join a room through another server, whether this one is in it or not; the ID of the join.

        `content`: what the member event says beside its membership. `servers`: names of servers that may be
        in the room, the best first; others that we know to be are asked after them.

        Raises RoomIsHere where this server came into the room meanwhile, NotFound where nobody knows the
        room, Forbidden where its rules do not let the user in, IncompatibleRoomVersion, UnableToGrantJoin
        and UnableToAuthoriseJoin, BadGateway where no server gives an answer that can be used, Unavailable
        where somebody else takes long to join it, BadJson and TooLarge for a content that no event can have.
        """
        return await self._join_in_turn(PendingJoin(user_id, room_id, content, list(servers)))

    async def finish_broken_off(self) -> None:
        """Go on with the joins of processes that have died: other servers may take us to be in the room."""
        async with self._database.connection() as tx:
            broken_off = await room_imports.take_broken_off(tx, self._clock())
        for room, wanted in broken_off:
            if await self._make_again(wanted):
                async with self._database.connection() as tx:
                    await room_imports.give_up(tx, room.nid, self._clock())
                self._incoming.resume(room)

    async def _make_again(self, wanted: PendingJoin) -> bool:
        """Make a join that broke off; whether this was the last time."""
        is_last = wanted.attempts >= MAX_ATTEMPTS
        try:
            await self._join_in_turn(wanted)
        except RoomIsHere:
            log.info("%s was joined meanwhile", wanted.room_id)
        except (BadGateway, Unavailable) as error:
            log.info("%s cannot be joined yet: %s", wanted.room_id, error.error)
            return is_last
        except MatrixError as error:
            log.info("%s is not joined after all: %s", wanted.room_id, error.error)
        except Exception:
            log.exception("%s cannot be joined yet", wanted.room_id)
            return is_last
        return True

    async def _join_in_turn(self, wanted: PendingJoin) -> EventId:
        """Join a room when nobody else in this process does. Raises what `join` raises."""
        room_id = wanted.room_id
        if room_id in self._running:
            was_here, give_up = await self._handshakes.is_here(room_id), _now() + PATIENCE_S
            while (running := self._running.get(room_id)) is not None:
                await asyncio.wait((running,), timeout=give_up - _now())
                if not was_here and await self._handshakes.is_here(room_id):
                    raise RoomIsHere(room_id)
                if _now() > give_up:
                    raise _busy()
        self._running[room_id] = asyncio.get_running_loop().create_future()
        try:
            return await self._join(wanted)
        finally:
            self._running.pop(room_id).set_result(None)

    async def _join(self, wanted: PendingJoin) -> EventId:
        attempt = _Attempt(wanted)
        try:
            event_id = await self._while_renewed(
                attempt, lambda: self._handshakes.join(wanted, partial(self._lease_of, attempt))
            )
        except Exception as error:  # not where the server stops: then it is to be finished
            await self._end_lease(attempt, is_over=isinstance(error, RoomIsHere))
            raise
        await self._end_lease(attempt, is_over=True)
        return event_id

    async def _lease_of(self, attempt: _Attempt, room: RoomRef) -> Lease:
        """The one lease of an attempt, which it holds to its end. Raises RoomIsHere."""
        lease = await self._take_lease(room, attempt.wanted) if attempt.held is None else attempt.held[1]
        attempt.held = room, lease
        return lease

    async def _take_lease(self, room: RoomRef, wanted: PendingJoin) -> Lease:
        """Be the only one that joins a room; the lease may be of one that is here. Raises RoomIsHere."""
        give_up = _now() + PATIENCE_S
        while True:
            now = self._clock()
            async with self._database.connection() as tx:
                lease = await room_imports.take_lease(tx, room.nid, wanted, now, now + LEASE_MS)
            if lease is not None:
                return lease
            if await self._handshakes.is_here(room.room_id):
                raise RoomIsHere(room.room_id)
            if _now() > give_up:
                raise _busy()
            await asyncio.sleep(LEASE_PAUSE_S)

    async def _end_lease(self, attempt: _Attempt, *, is_over: bool) -> None:
        """Let others have the room, and see to what came for it.

        Unless it `is_over`, that goes on waiting where an earlier join is still to be made.
        """
        if attempt.held is None:
            return
        room, lease = attempt.held
        try:
            async with self._database.connection() as tx:
                if is_over or not lease.had_broken_off:
                    await room_imports.end_lease(tx, lease)
                else:
                    await room_imports.break_off(tx, lease, self._clock())
        except Unavailable:
            log.warning("the lease of %s is not ended: the database cannot be reached", room.room_id)
        self._incoming.resume(room)

    async def _while_renewed(self, attempt: _Attempt, work: Callable[[], Awaitable[EventId]]) -> EventId:
        """Do what may take long, and keep the lease of the room meanwhile, once it is held."""
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(self._renew(attempt))
            try:
                return await work()
            except Exception as error:  # which must not become one of a group
                failure = error
            finally:
                renewing.cancel()
        raise failure

    async def _renew(self, attempt: _Attempt) -> None:
        while True:
            await asyncio.sleep(LEASE_RENEWAL_S)
            if attempt.held is None:
                continue
            room, lease = attempt.held
            try:
                async with self._database.connection() as tx:
                    await room_imports.extend_lease(tx, lease, self._clock() + LEASE_MS)
            except LeaseLost:
                return  # what is written next fails
            except Unavailable:
                log.warning("the lease of %s is not renewed: the database cannot be reached", room.room_id)


def _busy() -> Unavailable:
    return Unavailable("somebody else is joining this room, and that takes long; try again")


def _now() -> float:
    return asyncio.get_running_loop().time()
