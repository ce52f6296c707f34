"""The benchmark beside Synapse runs: what it measures is still there."""

from __future__ import annotations

from synapse_compat_tests import benchmark
from tests.benchmarks.measuring import Scale


async def test_the_benchmark_gives_its_rows() -> None:
    found = [row async for row in benchmark.rows(Scale(shared_members=5, shared_forks=2))]

    assert [row.name.partition(" ")[0] for row in found] == ["join", "fork"] * 2
    assert [row.postgres is None for row in found] == [False, False, True, True]
