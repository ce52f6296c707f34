"""What the tests of the embedded PostgreSQL know about processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

ROOT = Path(__file__).parents[2]


async def query(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def has_ended(pid: int, limit_s: float = 30) -> bool:
    """Wait for the end of any process, not only of a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), limit_s)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True


@asynccontextmanager
async def program(loop: str, data_dir: Path, what: str) -> AsyncIterator[Process]:
    """Run embedded_program.py in a process group of its own; killed at the end if it still runs."""
    words = (sys.executable, "-W", "error", "-m", "tests.storage.embedded_program", loop, str(data_dir), what)
    process = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Process) -> Any:
    """The next document that the program writes."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    return json.loads(line)
