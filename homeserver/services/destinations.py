"""Which other servers fail, and how long each is left alone.

A server that failed n times in a row is not asked for 2^(n-1) seconds, up to an hour, and a little longer by
chance so that not all servers come back at once. It is asked again at once when it has sent us something.
Source: Server-Server API, "Transactions"; the times are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Final, TypeAlias

from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import ServerName
from homeserver.services.clock import Clock
from storage import destinations
from storage.database import Database
from storage.destinations import FailingDestination

log = logging.getLogger(__name__)

FIRST_WAIT_MS: Final = 1000
LONGEST_WAIT_MS: Final = 3600 * 1000
MAX_FAILING: Final = 100_000
"""So many failing servers are remembered; the others are asked as if they had not failed."""
FORGOTTEN_AFTER_MS: Final = 30 * 24 * 3600 * 1000
_JITTER: Final = 0.25

Heard: TypeAlias = Callable[[ServerName], None]
"""Told of a server that failed and has now been heard from: what waits for it may go."""


def nobody_waits(_server_name: ServerName) -> None:
    """Nothing waits for other servers."""


@dataclass(frozen=True)
class Destinations:
    """The servers that failed when they were last asked: a copy of the table, which `load` reads."""

    database: Database
    clock: Clock
    heard: Heard = nobody_waits
    _failing: dict[ServerName, FailingDestination] = field(default_factory=dict, init=False, repr=False)
    _random: SystemRandom = field(default_factory=SystemRandom, init=False, repr=False)

    async def load(self) -> None:
        """Read what was known when the server stopped."""
        async with self.database.connection() as tx:
            self._failing.update(await destinations.load(tx, MAX_FAILING))

    def retry_ts(self, destination: ServerName) -> int | None:
        """When a server may be asked again (ms); None where it did not fail when it was last asked."""
        failing = self._failing.get(destination)
        return None if failing is None else failing.retry_ts

    def failing(self) -> Sequence[ServerName]:
        """The servers that failed when they were last asked."""
        return list(self._failing)

    async def failed(self, destination: ServerName, retry_after_ms: int) -> None:
        """A server failed, and asks to be left alone for so long at least (0: it did not ask)."""
        now, known = self.clock(), self._failing.get(destination)
        if known is None and len(self._failing) >= MAX_FAILING:
            return
        if known is not None and known.retry_ts > now:
            failures = known.failures  # several requests were under way at once, and it failed but once
        else:
            failures = 1 if known is None else known.failures + 1
        wait = min(FIRST_WAIT_MS << min(failures - 1, 30), LONGEST_WAIT_MS)
        wait = max(int(wait * (1 + _JITTER * self._random.random())), min(retry_after_ms, LONGEST_WAIT_MS))
        retry_ts = now + wait if known is None else max(now + wait, known.retry_ts)
        failing = self._failing[destination] = FailingDestination(
            failures, min(retry_ts, now + LONGEST_WAIT_MS)
        )
        try:
            async with self.database.connection() as tx:
                await destinations.save(tx, destination, failing)
        except Unavailable:
            log.warning("that a server failed is not stored: the database cannot be reached")

    async def succeeded(self, destination: ServerName) -> None:
        """A server answered, or sent a request of its own."""
        if self._failing.pop(destination, None) is None:
            return
        self.heard(destination)
        try:
            async with self.database.connection() as tx:
                await destinations.delete(tx, destination)
        except Unavailable:
            log.warning("that a server answers again is not stored: the database cannot be reached")

    async def sweep(self) -> None:
        """Forget the servers that nobody has asked for a long time."""
        before = self.clock() - FORGOTTEN_AFTER_MS
        for server_name in [name for name, one in self._failing.items() if one.retry_ts < before]:
            del self._failing[server_name]
        async with self.database.connection() as tx:
            await destinations.delete_older(tx, before)
