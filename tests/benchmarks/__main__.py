"""python -m tests.benchmarks [core] [store] [server] [federation]: what operations cost; by default all."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import uvloop

from homeserver.commands.serve import GARBAGE_THRESHOLDS
from synapse_compat_tests import benchmark as federation
from synapse_compat_tests.environment import synapse_python
from tests.benchmarks import core, server, store
from tests.benchmarks.measuring import FULL, Row, Scale, header

LIMIT_S: Final = 300.0
PARTS: Final[dict[str, Callable[[Scale], AsyncIterator[Row]]]] = {
    "core": core.rows,
    "store": store.rows,
    "server": server.rows,
    "federation": federation.rows,
}


async def run(names: list[str]) -> None:
    """Print the rows of these parts, each as soon as it is known."""
    print(header(), flush=True)
    async with asyncio.timeout(LIMIT_S):
        for name in names:
            async for row in PARTS[name](FULL):
                print(row, flush=True)


def main() -> int:
    """Run the parts that the command line names."""
    names = sys.argv[1:] or list(PARTS)
    if not set(names) <= set(PARTS):
        print(f"usage: python -m tests.benchmarks [{'] ['.join(PARTS)}]", file=sys.stderr)
        return 2
    if sys.platform != "linux":
        print("the benchmarks read CPU times from /proc, which only Linux has", file=sys.stderr)
        return 1
    if "federation" in names:
        synapse_python()  # installed before the time counts
    gc.set_threshold(*GARBAGE_THRESHOLDS)  # as in a server
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
