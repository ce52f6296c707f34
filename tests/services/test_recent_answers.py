"""Answers that are made once for many, and kept for a while."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.errors import NotFound, Unavailable
from homeserver.services import recent_answers
from homeserver.services.recent_answers import RecentAnswers
from tests.servers import MovableClock

KEPT_MS = 30_000


class Maker:
    """Makes answers of ten bytes, one for each call, when it is let go."""

    def __init__(self) -> None:
        self.made = 0
        self.running = 0
        self.most_running = 0
        self.go = asyncio.Event()

    async def __call__(self) -> bytes:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        self.made += 1
        return b"%010d" % self.made


def new_answers(clock: MovableClock, at_once: int = 2) -> RecentAnswers:
    return RecentAnswers(clock, kept_ms=KEPT_MS, max_bytes=35, at_once=at_once)


async def test_the_same_question_is_answered_once_until_the_answer_is_too_old() -> None:
    clock, make = MovableClock(), Maker()
    answers = new_answers(clock)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(answers.get("tea", make)) for _ in range(5)]
        make.go.set()
    assert {task.result() for task in asking} == {b"0000000001"}
    clock.advance(KEPT_MS - 1)
    assert await answers.get("tea", make) == b"0000000001"
    clock.advance(1)
    assert await answers.get("tea", make) == b"0000000002"
    assert answers.size_bytes == 10


async def test_what_is_kept_is_bounded_and_the_oldest_go_first() -> None:
    make = Maker()
    make.go.set()
    answers = new_answers(MovableClock())
    first = [await answers.get(number, make) for number in range(4)]
    assert answers.size_bytes == 30
    assert [await answers.get(number, make) for number in (3, 2, 1)] == [first[3], first[2], first[1]]
    assert await answers.get(0, make) == b"0000000005"


async def test_only_so_many_are_made_at_once_and_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recent_answers, "MAX_WAIT_S", 0.01)
    make = Maker()
    answers = new_answers(MovableClock(), at_once=2)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(answers.get(number, make)) for number in range(2)]
        while make.running < 2:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await answers.get(2, make)
        make.go.set()
    assert make.most_running == 2
    assert {task.result() for task in asking} == {b"0000000001", b"0000000002"}
    assert await answers.get(2, make) == b"0000000003"


async def test_a_failure_is_kept_for_nobody() -> None:
    make = Maker()
    make.go.set()
    answers = new_answers(MovableClock(), at_once=1)

    async def fail() -> bytes:
        raise NotFound("no tea")

    for _ in range(2):
        with pytest.raises(NotFound):
            await answers.get("tea", fail)
    assert await answers.get("tea", make) == b"0000000001"
