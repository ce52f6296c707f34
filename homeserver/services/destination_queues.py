"""The queues of all servers that do not have everything they are owed; a server without a queue has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

from homeserver.protocol.identifiers import ServerName
from homeserver.services.destination_queue import Budget, DestinationQueue, OutgoingEvent
from storage.room_servers import Server

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Of the events in all queues together."""


class DestinationQueues:
    """Queues by the names of their servers."""

    def __init__(self, position: int) -> None:
        self.position = position
        """Of the stream: all events up to here were given out to the queues."""
        self._queues: dict[ServerName, DestinationQueue] = {}
        self._budget = Budget(MAX_QUEUED_BYTES)

    def __len__(self) -> int:
        return len(self._queues)

    def __iter__(self) -> Iterator[DestinationQueue]:
        return iter(list(self._queues.values()))

    def get(self, server_name: ServerName) -> DestinationQueue | None:
        """The queue of a server; None for one that has everything."""
        return self._queues.get(server_name)

    def live(self, server: Server) -> DestinationQueue:
        """The queue of a server; a server that had none has everything up to `position`."""
        queue = self._queues.get(server.name)
        if queue is None:
            queue = DestinationQueue(server, self.position, self._budget, is_live=True)
            self._queues[server.name] = queue
        return queue

    def add_behind(self, server: Server, sent: int) -> None:
        """A server without a queue may not have everything after a position."""
        if server.name not in self._queues:
            self._queues[server.name] = DestinationQueue(server, sent, self._budget, is_live=False)

    def drop(self, queue: DestinationQueue) -> None:
        """Keep a queue no longer: its server has everything."""
        self._queues.pop(queue.server.name, None)

    def give_out(self, event: OutgoingEvent, servers: Sequence[Server]) -> list[DestinationQueue]:
        """Put an event into the queues of the servers that are owed it, which are returned.

        Where all queues together hold too much, those with the oldest events let go of theirs.
        """
        queues = [self.live(server) for server in servers]
        for queue in queues:
            queue.add(event, self.position)
        if self._budget.is_exceeded:
            self._relieve()
        return queues

    def fall_behind(self) -> None:
        """No queue gets what comes now: all of them are to read it."""
        for queue in self._queues.values():
            queue.fall_behind()

    def behind(self) -> Mapping[int, int]:
        """Up to where the servers that do not have everything have got it, by the number of the server."""
        return {queue.server.nid: queue.sent for queue in self._queues.values() if not queue.is_settled}

    @property
    def waiting_events(self) -> int:
        """Events in memory, counted for each server that they go to."""
        return sum(queue.waiting for queue in self._queues.values())

    @property
    def lag(self) -> int:
        """How many positions the server that is furthest behind lacks."""
        return self.position - min((queue.sent for queue in self._queues.values()), default=self.position)

    def _relieve(self) -> None:
        """Let go of events, the slowest queues first, until they are few enough."""
        holding = [(queue.oldest, queue) for queue in self._queues.values() if queue.oldest is not None]
        for _, queue in sorted(holding, key=itemgetter(0)):
            if not self._budget.is_exceeded:
                break
            queue.fall_behind()
