"""The benchmarks run: what they measure is still there."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import PARTS
from tests.benchmarks.measuring import Scale

SMALL = Scale(
    seconds=0.02,
    writers=(1, 3),
    senders=(1, 3),
    resolved_members=5,
    forked_members=30,
    hostile_fraction=50,
    receivers=3,
    rooms=2,
    room_members=3,
    room_messages=2,
    large_room=8,
    waiting=3,
)


@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"federation"}))  # synapse_compat_tests has that one
async def test_every_part_of_the_benchmarks_gives_its_rows(name: str) -> None:
    printed = [str(row) async for row in PARTS[name](SMALL)]

    assert len(printed) >= 2
    assert len(set(printed)) == len(printed)
