"""Large answers that many ask for at about the same time: made once, and kept for a while as bytes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from homeserver.errors import Unavailable
from homeserver.services.clock import Clock
from homeserver.services.single_flight import SingleFlight

MAX_WAIT_S: Final = 30.0
"""How long an answer waits for its turn to be made."""


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    made_ts: int


class RecentAnswers:
    """Answers by what was asked. `at_once`: how many are made at the same time; others wait."""

    def __init__(self, clock: Clock, *, kept_ms: int, max_bytes: int, at_once: int) -> None:
        self._clock = clock
        self._kept_ms = kept_ms
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(at_once)
        self._running: SingleFlight[Hashable, bytes] = SingleFlight()
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        """The oldest first."""
        self.size_bytes = 0
        """What is kept."""

    async def get(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer to a question, as it was made lately or as `make` makes it now.

        Raises what `make` raises, to all who wait for it; Unavailable where too many others are being made.
        """
        self.sweep()
        known = self._answers.get(question)
        if known is not None:
            return known.body
        return await self._running.do(question, lambda: self._make(question, make))

    def sweep(self) -> None:
        """Forget what is too old."""
        oldest = self._clock() - self._kept_ms
        while self._answers and next(iter(self._answers.values())).made_ts <= oldest:
            self._drop_oldest()

    async def _make(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("the server is busy; try again") from None
        try:
            body = await make()
        finally:
            self._turns.release()
        self._answers[question] = _Answer(body, self._clock())
        self.size_bytes += len(body)
        while self.size_bytes > self._max_bytes:
            self._drop_oldest()
        asyncio.get_running_loop().call_later(self._kept_ms / 1000 + 1, self.sweep)
        return body

    def _drop_oldest(self) -> None:
        _, dropped = self._answers.popitem(last=False)
        self.size_bytes -= len(dropped.body)
