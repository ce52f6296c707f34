"""Doing once what many ask for at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """The first who asks for a key does the work; those who ask meanwhile get its outcome, also a failure."""

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Future[V]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The outcome of `work` for this key; when the first is cancelled, so are those who wait for it."""
        running = self._running.get(key)
        if running is not None:
            return await asyncio.shield(running)
        running = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await work()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                running.cancel()
            else:
                running.set_exception(error)
                running.exception()  # perhaps nobody else waits
            raise
        else:
            running.set_result(outcome)
            return outcome
        finally:
            del self._running[key]
