"""Work that many wait for."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.services.single_flight import SingleFlight


async def test_those_who_ask_meanwhile_get_the_outcome_of_the_first() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    go = asyncio.Event()
    done = 0

    async def work() -> int:
        nonlocal done
        await go.wait()
        done += 1
        return done

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(flight.do("tea", work)) for _ in range(3)]
        await asyncio.sleep(0)
        go.set()
    assert [task.result() for task in waiting] == [1, 1, 1]
    assert await flight.do("tea", work) == 2


async def test_a_failure_reaches_all_who_wait() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        raise LookupError

    async def ask() -> None:
        with pytest.raises(LookupError):
            await flight.do("tea", work)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(ask())
        await asyncio.sleep(0)
        go.set()


async def test_when_the_first_is_cancelled_another_takes_over() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    go = asyncio.Event()
    began = 0

    async def work() -> int:
        nonlocal began
        began += 1
        await go.wait()
        return began

    async with asyncio.TaskGroup() as tasks:
        first, *others = [tasks.create_task(flight.do("tea", work)) for _ in range(4)]
        await asyncio.sleep(0)
        first.cancel()
        others[0].cancel()
        await asyncio.wait([first, others[0]])
        go.set()
    assert first.cancelled() and others[0].cancelled()
    assert [task.result() for task in others[1:]] == [2, 2]
