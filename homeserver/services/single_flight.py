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
        """The outcome of `work` for this key. When the first is cancelled, one who waits takes over."""
        while (running := self._running.get(key)) is not None:
            await asyncio.wait((running,))  # a task that waits may be cancelled without harm to the others
            if not running.cancelled():
                return running.result()
        running = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await work()
        except asyncio.CancelledError:
            running.cancel()
            raise
        except BaseException as error:
            running.set_exception(error)
            running.exception()  # perhaps nobody else waits
            raise
        else:
            running.set_result(outcome)
            return outcome
        finally:
            del self._running[key]
