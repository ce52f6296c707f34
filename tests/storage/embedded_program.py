"""A program that runs the embedded PostgreSQL, for tests that send signals to it.

Arguments: the loop (asyncio or uvloop), the data folder, and `serve` or `cycle`. It writes one JSON document
per line. `serve` waits for SIGINT; `cycle` kills PostgreSQL once, waits until it is back, and stops.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from storage.embedded.supervisor import embedded_postgres

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def answer(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT 42"))
    finally:
        await connection.close()


def children() -> list[int]:
    """The pids of all children, dead ones that were not reaped too."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


async def serve(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        tell(postmaster=postgres.postmaster_pid, url=postgres.url)
        try:
            await asyncio.Event().wait()
        finally:
            tell(answer=await answer(postgres.url))


async def cycle(data_dir: Path) -> None:
    restarted = asyncio.Event()
    async with embedded_postgres(data_dir, "nobody", 5, on_restart=restarted.set) as postgres:
        first = postgres.postmaster_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await restarted.wait()
        tell(is_another=postgres.postmaster_pid != first, answer=await answer(postgres.url))
    tell(children=children())


if __name__ == "__main__":
    loop, folder, what = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner, suppress(KeyboardInterrupt):
        runner.run({"serve": serve, "cycle": cycle}[what](Path(folder)))
