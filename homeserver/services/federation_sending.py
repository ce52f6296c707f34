"""What waits for each other server: all events that it is owed are sent to it, in order, until it has them.

The newest events pass in memory. What a server missed, because it or this one was away, is read from the
database after the position that the server has reached. Sending twice does no harm, losing would: so a
position is noted now and then, and never before all events up to it have been taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from federation.outbound.signed_client import SignedClient
from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import ServerName
from homeserver.server_policy import ServerPolicy
from homeserver.services.clock import Clock
from homeserver.services.destination_queues import DestinationQueues
from homeserver.services.destinations import Destinations
from homeserver.services.outgoing_events import OutgoingEvents
from homeserver.services.outgoing_transactions import OutgoingTransactions
from homeserver.services.room_destinations import RoomDestinations
from homeserver.services.sending_turns import SendingTurns
from storage import room_servers, sent_positions
from storage.database import Database
from storage.stream import StreamEvent

log = logging.getLogger(__name__)

MAX_TOLD: Final = 20_000
"""So many events wait to be given out; with more, all servers read theirs from the database."""
GIVEN_OUT_AT_ONCE: Final = 100
GREETED_ROOMS_MS: Final = 3 * 24 * 3600 * 1000
"""When this server starts it greets the servers of rooms with an event so new."""
MAX_GREETED: Final = 1000
GREETING_INTERVAL_S: Final = 0.1
DELIVERY_PAUSE_S: Final = 0.05


class FederationSending:
    """The outbox. It listens to the stream from `position` on; the federation sender's loops drive it."""

    def __init__(
        self,
        database: Database,
        outgoing: OutgoingEvents,
        client: SignedClient,
        destinations: Destinations,
        policy: ServerPolicy,
        clock: Clock,
        *,
        position: int,
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._server_name = outgoing.own.server_name
        self._clock = clock
        self._rooms = RoomDestinations(database, policy)
        self._queues = DestinationQueues(position)
        self._transactions = OutgoingTransactions(database, outgoing, client, self._queues, clock)
        self._turns = SendingTurns(self._queues, destinations, clock, self._transactions.send_next)
        self._told: deque[StreamEvent] = deque()
        self._lost_upto = 0
        """Events up to here were too many to wait in `_told`; 0 once that is made up for."""
        self._news = asyncio.Event()
        self._saved: Mapping[int, int] = {}
        self._saved_position = 0

    @property
    def undistributed(self) -> int:
        """Events that nobody has looked at yet."""
        return len(self._told)

    @property
    def waiting_events(self) -> int:
        """Events in memory, counted for each server that they go to."""
        return self._queues.waiting_events

    @property
    def waiting_servers(self) -> int:
        """Servers that do not have everything."""
        return len(self._queues)

    @property
    def lag(self) -> int:
        """How many positions of the stream the server that is furthest behind lacks."""
        return self._queues.lag

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Take note of the next events of the stream."""
        self._told.extend(events)
        if len(self._told) > MAX_TOLD:
            log.info("so many events at once that servers have to read theirs from the database")
            self._lose_told()
        self._news.set()

    def heard(self, server_name: ServerName) -> None:
        """A server that failed was heard from: what waits for it may go."""
        self._turns.heard(server_name)

    def has_got_all(self, server_name: ServerName, pos: int) -> bool:
        """Whether a server has all that it is owed up to a position."""
        queue = self._queues.get(server_name)
        return self._queues.position >= pos and (queue is None or queue.is_settled or queue.sent >= pos)

    async def deliver(self, server_name: ServerName, pos: int, patience_s: float) -> bool:
        """Wait until a server has all that it is owed up to a position; False where that takes too long."""
        self._turns.heard(server_name)
        give_up = asyncio.get_running_loop().time() + patience_s
        while not self.has_got_all(server_name, pos):
            if asyncio.get_running_loop().time() > give_up:
                return False
            await asyncio.sleep(DELIVERY_PAUSE_S)
        return True

    async def start(self) -> None:
        """Find the servers that do not have everything."""
        async with self._database.connection() as tx:
            saved = await sent_positions.load(tx)
            news = await room_servers.with_news(tx, saved.others)
        self._saved = {server.nid: pos for server, pos in saved.behind.items()}
        self._saved_position = saved.others
        for server, pos in (*saved.behind.items(), *((server, saved.others) for server in news)):
            if self._rooms.may_send(server.name):
                self._queues.add_behind(server, pos)

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """From now on events are sent, by tasks of this group."""
        self._turns.open(tasks)

    def close(self) -> None:
        """Send nothing more."""
        self._turns.close()

    def retry(self) -> None:
        """Try the servers again that have been left alone for long enough. To be called again and again."""
        self._turns.retry()

    async def distribute(self) -> None:
        """Wait for events, and give some of them out: to the queues of all servers that are owed them."""
        if not self._told and not self._lost_upto:
            self._news.clear()
            await self._news.wait()
        while self._lost_upto:
            await self._make_up()
        events = list(islice(self._told, GIVEN_OUT_AT_ONCE))
        try:
            destinations = await self._rooms.of(events)
        except Unavailable:
            raise
        except Exception:
            log.exception("whom events go to cannot be told: servers have to read theirs from the database")
            self._lose_told()
            return
        for event, servers in zip(events, destinations, strict=True):
            if servers and (outgoing := self._transactions.of_stream(event)) is not None:
                for queue in self._queues.give_out(outgoing, servers):
                    self._turns.schedule(queue)
            self._queues.position = event.pos
        while events and self._told and self._told[0].pos <= events[-1].pos:
            self._told.popleft()
        if self._told:
            await asyncio.sleep(0)

    def _lose_told(self) -> None:
        if self._told:
            self._lost_upto = self._told[-1].pos
            self._told.clear()

    async def _make_up(self) -> None:
        """Events were lost on their way to here: the servers that may be owed some of them read them."""
        lost_upto, given_out = self._lost_upto, self._queues.position
        async with self._database.connection() as tx:
            news = await room_servers.with_news(tx, given_out)
        self._rooms.forget()
        self._queues.fall_behind()
        for server in news:
            if self._rooms.may_send(server.name):
                self._queues.add_behind(server, given_out)
        self._queues.position = lost_upto
        if self._lost_upto == lost_upto:
            self._lost_upto = 0
        for queue in self._queues:
            self._turns.schedule(queue)

    async def greet(self) -> None:
        """Let servers know that this one is there: they may have stopped sending while it was not.

        Those that get something anyway are not greeted, and those that fail are tried in their time.
        """
        async with self._database.connection() as tx:
            since_ts = self._clock() - GREETED_ROOMS_MS
            servers = await room_servers.in_active_rooms(tx, self._server_name, since_ts, MAX_GREETED)
        for server in servers:
            reached = self._transactions.reached or ()
            fails = self._destinations.retry_ts(server.name) is not None
            if self._rooms.may_send(server.name) and server.name not in reached and not fails:
                queue = self._queues.live(server)
                queue.greets = True
                self._turns.schedule(queue)
                await asyncio.sleep(GREETING_INTERVAL_S)
        self._transactions.reached = None

    async def save(self) -> None:
        """Note how far each server has got."""
        position, behind = self._queues.position, self._queues.behind()
        changed = {nid: pos for nid, pos in behind.items() if self._saved.get(nid) != pos}
        caught_up = [nid for nid in self._saved if nid not in behind]
        if changed or caught_up or position != self._saved_position:
            async with self._database.connection() as tx:
                await sent_positions.save(tx, position, changed, caught_up)
            self._saved, self._saved_position = behind, position

    async def sweep(self) -> None:
        """Forget which events servers were owed beside those of their rooms, once they have got them."""
        async with self._database.connection() as tx:
            await sent_positions.sweep_extra(tx)
