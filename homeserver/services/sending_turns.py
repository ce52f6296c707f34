"""Whose turn it is to be sent something: many servers at once, each once at a time, and in a fair order.

A server that failed is left alone until Destinations says that it may be asked again, or that it was heard
from. Servers that failed the last time have places of their own, fewer than the others: they may all keep us
waiting, and nobody else waits for that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final, TypeAlias

from homeserver.protocol.identifiers import ServerName
from homeserver.services.clock import Clock
from homeserver.services.destination_queue import DestinationQueue, Turn
from homeserver.services.destination_queues import DestinationQueues
from homeserver.services.destinations import Destinations

MAX_AT_ONCE: Final = 100
"""Servers that something is sent to at the same time."""
MAX_RETRIES_AT_ONCE: Final = 30
"""Besides those, servers that failed the last time."""

SendNext: TypeAlias = Callable[[DestinationQueue], Awaitable[bool]]
"""Sends what is next in a queue, and says whether that went well. Raises nothing."""


class SendingTurns:
    """Gives the queues their turns, from `open` to `close`."""

    def __init__(
        self, queues: DestinationQueues, destinations: Destinations, clock: Clock, send_next: SendNext
    ) -> None:
        self._queues = queues
        self._destinations = destinations
        self._clock = clock
        self._send_next = send_next
        self._tasks: asyncio.TaskGroup | None = None
        self._ready: deque[DestinationQueue] = deque()
        self._ready_again: deque[DestinationQueue] = deque()
        """The same for servers that failed the last time."""
        self._sending = 0
        self._sending_again = 0
        self._waiting: list[tuple[int, int, DestinationQueue]] = []
        """A heap by the time of the turn; the entry of a queue that got it earlier counts for nothing."""
        self._numbers = count()

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """From now on there are turns, as tasks of this group."""
        self._tasks = tasks
        for queue in self._queues:
            self.schedule(queue)

    def close(self) -> None:
        """No more turns."""
        self._tasks = None

    def schedule(self, queue: DestinationQueue) -> None:
        """Give a queue its turn as soon as it may have one; a queue that is settled is dropped."""
        if queue.turn is not Turn.NONE:
            return
        if queue.is_settled and not queue.greets:
            self._queues.drop(queue)
            return
        retry_ts, loop = self._destinations.retry_ts(queue.server.name), asyncio.get_running_loop()
        if retry_ts is not None and retry_ts > self._clock():
            queue.fall_behind()
            queue.turn, queue.retry_ts = Turn.WAITING, retry_ts
            heappush(self._waiting, (retry_ts, next(self._numbers), queue))
            return
        if queue.not_before > loop.time():
            queue.fall_behind()
            queue.turn = Turn.WAITING
            loop.call_at(queue.not_before, self._wake, queue)
            return
        queue.turn = Turn.READY
        (self._ready if retry_ts is None and not queue.failures else self._ready_again).append(queue)
        self._start_ready()

    def heard(self, server_name: ServerName) -> None:
        """A server that failed was heard from: it need not wait any longer."""
        queue = self._queues.get(server_name)
        if queue is not None:
            self._wake(queue)

    def retry(self) -> None:
        """Give those who wait their turn if their time has come. To be called again and again."""
        now, due = self._clock(), []
        while self._waiting and self._waiting[0][0] <= now:
            retry_ts, _, queue = heappop(self._waiting)
            if queue.turn is Turn.WAITING and queue.retry_ts == retry_ts:
                queue.turn = Turn.NONE
                due.append(queue)
        for queue in due:
            self.schedule(queue)

    def _wake(self, queue: DestinationQueue) -> None:
        """Look again whether a queue that waits may have its turn."""
        if queue.turn is Turn.WAITING:
            queue.turn = Turn.NONE
            self.schedule(queue)

    def _start_ready(self) -> None:
        if self._tasks is None:
            return
        while self._ready and self._sending < MAX_AT_ONCE:
            self._sending += 1
            self._tasks.create_task(self._serve(self._ready.popleft()))
        while self._ready_again and self._sending_again < MAX_RETRIES_AT_ONCE:
            self._sending_again += 1
            self._tasks.create_task(self._serve_again(self._ready_again.popleft()))

    async def _serve(self, queue: DestinationQueue) -> None:
        """One transaction of a queue, or several while no other queue has to wait for that."""
        queue.turn = Turn.SERVED
        while await self._send_next(queue) and not queue.is_settled and not self._ready:
            pass
        self._sending -= 1
        self._end_turn(queue)

    async def _serve_again(self, queue: DestinationQueue) -> None:
        """One transaction to a server that failed the last time."""
        queue.turn = Turn.SERVED
        await self._send_next(queue)
        self._sending_again -= 1
        self._end_turn(queue)

    def _end_turn(self, queue: DestinationQueue) -> None:
        queue.turn = Turn.NONE
        self.schedule(queue)
        self._start_ready()
