"""Fetching history from other servers when a reader comes to where it is missing.

Each gap of a room is filled by one task at a time, a piece at a time, beside the requests: a reader may wait
for it, but need not. Everything is bounded: how many gaps are filled at once, whom we ask, for how many
events, and how long all that may take. A gap before which nobody gives anything is left alone for a while.
Source: Server-Server API, "Backfilling and retrieving missing events".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from federation.outbound import room_requests
from federation.outbound.signed_client import BackingOff, DestinationDenied, FederationError, SignedClient
from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import EventId, ServerName, server_name_of
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.clock import Clock
from homeserver.services.fetched_history import FetchedHistory
from homeserver.services.missing_events import IncompleteState
from homeserver.services.servers_to_ask import servers_to_ask
from storage import fetched_history, shared_rooms
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.room_heads import RoomRef

log = logging.getLogger(__name__)

EVENTS_AT_ONCE: Final = 100
"""How many events one request asks for: as many as most servers give."""
STARTS_AT_ONCE: Final = 20
"""Of so many missing events one request names."""
MAX_SERVERS: Final = 4
"""So many servers are asked in turn, those not counted that failed lately."""
MAX_CANDIDATES: Final = 12
LIMIT_S: Final = 60.0
"""How long a piece of history may take."""
GAPS_AT_ONCE: Final = 20
FIRST_PAUSE_MS: Final = 10_000
LONGEST_PAUSE_MS: Final = 3600 * 1000
SKIPPING_AFTER: Final = 2
"""Events that stand in the way because they cannot be verified do so for so many attempts."""
REMEMBERED: Final = 10_000

_Place: TypeAlias = tuple[int, int]
"""The number of a room, and the room_seq of the live event after a gap."""


class Outcome(Enum):
    """What came of waiting for history."""

    MORE = "there is more"
    NONE = "nobody gives any for now"
    LATER = "it takes longer"


@dataclass(frozen=True, slots=True)
class _Pause:
    """A gap before which nobody gave anything."""

    attempts: int
    until: int


class HistoryFetching:
    """Fills gaps, while `run` goes on."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        client: SignedClient,
        history: FetchedHistory,
        server_name: ServerName,
        clock: Clock,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._client = client
        self._history = history
        self._server_name = server_name
        self._clock = clock
        self._running: dict[_Place, asyncio.Task[bool]] = {}
        self._pauses: BoundedCache[_Place, _Pause] = BoundedCache(REMEMBERED)
        self._helpful: BoundedCache[int, ServerName] = BoundedCache(REMEMBERED)
        """Which server gave history of a room last, or let us in."""
        self._turns = asyncio.Semaphore(GAPS_AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Let gaps be filled; for ever."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await asyncio.Event().wait()
        finally:
            self._tasks = None

    def prefer(self, room: RoomRef, server_name: ServerName) -> None:
        """Ask a server first: it has let us into the room, and so can be reached."""
        self._helpful.put(room.nid, server_name, 1)

    def may_fill(self, room: RoomRef, seq: int) -> bool:
        """Whether there is hope for the gap before a live event now."""
        if self._tasks is None:
            return False
        pause = self._pauses.get((room.nid, seq))
        return (room.nid, seq) in self._running or pause is None or pause.until <= self._clock()

    def start(self, room: RoomRef, seq: int) -> asyncio.Task[bool] | None:
        """Fetch the next piece before a live event, if that is not under way; None where there is no hope."""
        if self._tasks is None or not self.may_fill(room, seq):
            return None
        place = room.nid, seq
        if place not in self._running:
            task = self._running[place] = self._tasks.create_task(self._fill(room, seq))
            task.add_done_callback(lambda _task: self._running.pop(place))
        return self._running[place]

    async def fill(self, room: RoomRef, seq: int, limit_s: float) -> Outcome:
        """Wait so long for the next piece before a live event; it comes even if nobody waits any more."""
        task = self.start(room, seq)
        if task is None:
            return Outcome.NONE
        await asyncio.wait((task,), timeout=limit_s)
        if not task.done():
            return Outcome.LATER
        return Outcome.MORE if not task.cancelled() and task.result() else Outcome.NONE

    async def _fill(self, room: RoomRef, seq: int) -> bool:
        """Fetch a piece; whether it came. That none did is remembered."""
        place = room.nid, seq
        pause = self._pauses.get(place)
        attempts = 0 if pause is None else pause.attempts
        has_come = False
        try:
            async with self._turns, asyncio.timeout(LIMIT_S):
                has_come = await self._ask_all(room, seq, attempts)
        except TimeoutError:
            log.info("history of %s takes too long", room.room_id)
        except Unavailable as error:
            log.warning("history of %s cannot be stored: %s", room.room_id, error.error)
        except Exception:
            log.exception("history of %s cannot be fetched", room.room_id)
        if has_come:
            self._pauses.drop(place)
        else:
            wait_ms = min(FIRST_PAUSE_MS << min(attempts, 30), LONGEST_PAUSE_MS)
            self._pauses.put(place, _Pause(attempts + 1, self._clock() + wait_ms), 1)
        return has_come

    async def _ask_all(self, room: RoomRef, seq: int, attempts: int) -> bool:
        """Ask one server after another, until one gives something that can be used."""
        own_nid = await self._dictionaries.atoms.nid(self._server_name)
        async with self._database.connection() as tx:
            shared = await shared_rooms.find_one(tx, room.room_id, own_nid)
            missing = await fetched_history.missing(tx, room.nid, seq)
        starts = [event_id for event_id, at in missing.items() if at == seq]
        if not starts:
            return True  # all has come by other ways
        if shared is None or not shared.is_resident:
            return False
        first = attempts * STARTS_AT_ONCE % len(starts)  # so that none of very many is never asked for
        starts = (starts[first:] + starts[:first])[:STARTS_AT_ONCE]
        servers = await self._servers(room, seq)
        if await self._ask_in_turn(room, seq, starts, servers, skipping=False):
            return True
        return attempts >= SKIPPING_AFTER and await self._ask_in_turn(
            room, seq, starts, servers, skipping=True
        )

    async def _ask_in_turn(
        self,
        room: RoomRef,
        seq: int,
        starts: list[EventId],
        servers: Sequence[ServerName],
        *,
        skipping: bool,
    ) -> bool:
        asked = 0
        for server_name in servers:
            try:
                if await self._ask(room, seq, starts, server_name, skipping=skipping):
                    self.prefer(room, server_name)
                    return True
            except (BackingOff, DestinationDenied):
                continue
            except (FederationError, IncompleteState) as error:
                log.info("%r gives no history of %s: %s", server_name, room.room_id, error)
            asked += 1
            if asked == MAX_SERVERS:
                break
        return False

    async def _ask(
        self, room: RoomRef, seq: int, starts: list[EventId], server_name: ServerName, *, skipping: bool
    ) -> bool:
        """Ask one server; whether less is missing now. Raises FederationError, IncompleteState."""
        events = await room_requests.backfill_room(
            self._client, server_name, room.room_id, starts, EVENTS_AT_ONCE
        )
        return await self._history.take(
            room, seq, starts, events[:EVENTS_AT_ONCE], server_name, skipping=skipping
        )

    async def _servers(self, room: RoomRef, seq: int) -> list[ServerName]:
        """Whom to ask: who helped last, who sent the oldest event that is known, who has the most members."""
        async with self._database.connection() as tx:
            oldest = await fetched_history.oldest_known(tx, room.nid, seq)
        named: list[ServerName] = []
        if (helpful := self._helpful.get(room.nid)) is not None:
            named.append(helpful)
        if oldest is not None:
            named.append(server_name_of(oldest.pdu(room).sender))
        return await servers_to_ask(
            self._database, room.room_id, named, own=self._server_name, most=MAX_CANDIDATES
        )
