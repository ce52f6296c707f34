"""Bringing the forks of rooms together where nobody speaks who would: forks make each later event dearer.

An event of ours names all forward extremities, so it leaves one; where there are too many, one is sent that
does nothing else. Servers get it like any event, clients are not shown it. A room gets one now and then, and
one more whenever an event could not name all extremities any more: the state before it would not be what
comes of those that it names.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from homeserver.errors import MatrixError
from homeserver.protocol.auth_events import CREATE, POWER_LEVELS
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, ServerName, UserId, is_user_id, server_name_of
from homeserver.protocol.power_levels import PowerLevels, creators_of
from homeserver.services.clock import Clock
from homeserver.services.event_building import build_event
from storage import memberships
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.event_batch import DUMMY_TYPE
from storage.event_flags import EventFlag
from storage.persister import Persister
from storage.room_heads import RoomHead
from storage.stream import StreamEvent

log = logging.getLogger(__name__)

MAX_EXTREMITIES: Final = 10
"""With more of them than this a room's forks are brought together."""
PAUSE_S: Final = 60.0
"""So long at least a room is left alone then."""
MAX_SENDERS_TRIED: Final = 20
"""Of our members so many are looked at for one who may send the event, and of those with power as many."""
MAX_REMEMBERED_ROOMS: Final = 10_000


class ForwardExtremities:
    """Looks at rooms that have forked, as a listener of the stream, and brings forks together in `run`."""

    def __init__(
        self,
        persister: Persister,
        database: Database,
        server_name: ServerName,
        clock: Clock,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._persister = persister
        self._database = database
        self._server_name = server_name
        self._clock = clock
        self._pause_s = pause_s
        self._forked: OrderedDict[RoomId, None] = OrderedDict()
        """Rooms that are to be looked at."""
        self._resting: OrderedDict[RoomId, float] = OrderedDict()
        """Rooms that are left alone until a time of the event loop, in the order of these."""
        self._helpless: set[RoomId] = set()
        """Those of them whose forks nobody here may bring together."""
        self._again: set[RoomId] = set()
        """Those of them that have forked meanwhile."""
        self._news = asyncio.Event()
        self._looking = 0

    @property
    def waiting(self) -> int:
        """How many rooms are still to be looked at, less those that are left alone for a while."""
        return len(self._forked) + self._looking

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Take note of the rooms of which the next events of the stream leave more than one extremity."""
        for event in events:
            if not event.flags & EventFlag.SOLE:
                room_id = event.room.room_id
                if room_id in self._again or room_id in self._forked:
                    continue
                if room_id in self._resting:
                    self._again.add(room_id)
                else:
                    self._forked[room_id] = None
                self._news.set()

    async def run(self) -> None:
        """Bring forks together, for ever. One timer does for all rooms."""
        while True:
            self._end_rests()
            if not self._forked:
                await self._wait()
                continue
            room_id, _ = self._forked.popitem(last=False)
            self._looking = 1
            try:
                await self._look_at(room_id)
            except UnknownRoom:
                pass
            except MatrixError as error:
                log.info("the forks of room %s are left for now: %s", room_id, error.error)
            except Exception:
                log.exception("the forks of room %s cannot be brought together", room_id)
            finally:
                self._looking = 0

    async def _wait(self) -> None:
        """Wait for a room that has forked, or for the end of a rest."""
        self._news.clear()
        until = next(iter(self._resting.values()), None) if self._again else None
        try:
            async with asyncio.timeout_at(until):
                await self._news.wait()
        except TimeoutError:
            pass

    def _end_rests(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._resting:
            room_id, until = next(iter(self._resting.items()))
            if until > now and len(self._resting) <= MAX_REMEMBERED_ROOMS:
                break
            del self._resting[room_id]
            self._helpless.discard(room_id)
            if room_id in self._again:
                self._again.remove(room_id)
                self._forked[room_id] = None

    async def bring_together(self, room_id: RoomId) -> None:
        """Bring the forks of a room together at once, if a user of ours may. Raises what `append` raises."""
        if room_id in self._helpless and self._resting.get(room_id, 0) > asyncio.get_running_loop().time():
            return
        await self._look_at(room_id)

    async def _look_at(self, room_id: RoomId) -> None:
        if not await self._persister.consider(room_id, _is_frayed):
            return
        self._resting[room_id] = asyncio.get_running_loop().time() + self._pause_s
        self._resting.move_to_end(room_id)
        async with self._database.connection() as tx:
            members = await memberships.joined_users_of_server(
                tx, room_id, self._server_name, MAX_SENDERS_TRIED
            )
        is_frayed = True

        def decide(head: RoomHead) -> list[Pdu]:
            nonlocal is_frayed
            is_frayed = _is_frayed(head)
            if not is_frayed:
                return []
            senders = self._senders(head, members)
            head.events([("m.room.member", user_id) for user_id in senders])  # loads all at once
            for user_id in senders:
                try:
                    return [build_event(head, EventDraft(DUMMY_TYPE, {}), user_id, self._clock())]
                except NotAllowed:
                    continue
            return []

        if await self._persister.append(room_id, decide) or not is_frayed:
            self._helpless.discard(room_id)
        else:
            log.info("nobody here may bring the forks of room %s together", room_id)
            self._helpless.add(room_id)

    def _senders(self, head: RoomHead, members: Sequence[UserId]) -> list[UserId]:
        """Users of ours who have the level to send the event, if they are in the room: such members first."""
        create, power_levels = head.event(*CREATE), head.event(*POWER_LEVELS)
        assert create is not None
        levels = PowerLevels.of(head.version, create, power_levels)
        needed = levels.level_for_event(DUMMY_TYPE, is_state=False)
        named = None if power_levels is None else power_levels.content.get("users")
        powerful = [
            UserId(text)
            for text in (*creators_of(head.version, create), *(named if isinstance(named, dict) else ()))
            if is_user_id(text) and server_name_of(text) == self._server_name
        ]
        powerful.sort(key=levels.user_level, reverse=True)
        both = dict.fromkeys([*members, *powerful[:MAX_SENDERS_TRIED]])
        return [user_id for user_id in both if levels.user_level(user_id) >= needed]


def _is_frayed(head: RoomHead) -> bool:
    """Whether a room has too many forward extremities."""
    return len(head.extremities) > MAX_EXTREMITIES
