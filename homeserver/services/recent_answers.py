"""Large answers that many ask for at about the same time: made once, and kept for a while as bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from homeserver.errors import Unavailable
from homeserver.services.bounded_cache import BoundedCache
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
        self._turns = asyncio.Semaphore(at_once)
        self._running: SingleFlight[Hashable, bytes] = SingleFlight()
        self._answers: BoundedCache[Hashable, _Answer] = BoundedCache(max_bytes)

    @property
    def size_bytes(self) -> int:
        """What is kept."""
        return self._answers.cost

    async def get(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer to a question, as it was made lately or as `make` makes it now.

        Raises what `make` raises, to all who wait for it; Unavailable where too many others are being made.
        """
        known = self._answers.get(question)
        if known is not None and known.made_ts > self._clock() - self._kept_ms:
            return known.body
        return await self._running.do(question, lambda: self._make(question, make))

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
        answer = _Answer(body, self._clock())
        self._answers.put(question, answer, len(body))
        asyncio.get_running_loop().call_later(self._kept_ms / 1000, self._forget, question, answer)
        return body

    def _forget(self, question: Hashable, answer: _Answer) -> None:
        """Make room once an answer is too old, unless there is a newer one."""
        if self._answers.get(question) is answer:
            self._answers.drop(question)
