"""Processes of PostgreSQL that outlived an earlier start in the same data folder.

After SIGKILL of this server a postmaster may still be there; after SIGKILL of a postmaster its other
processes may be, for a moment. Both must be gone before the next one starts. They are found by what they are,
not by the number in a file, which another process may have by now.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from homeserver.errors import LairError
from storage.embedded.socket_folder import SOCKET_NAME

log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
_LOOK_AGAIN_S: Final = 0.05
_FAST_STOP_LIMIT_S: Final = 60.0
_ORPHANS_LEAVE_LIMIT_S: Final = 1.0
_HARD_STOP_LIMIT_S: Final = 10.0


class SurvivorStays(LairError):
    """A process of PostgreSQL cannot be stopped."""


def processes_in(cluster: Path) -> list[int]:
    """The pids of all processes of PostgreSQL whose data folder is `cluster`."""
    if not cluster.exists():
        return []
    folder, postmaster = cluster.stat(), _first_number(cluster / "postmaster.pid")
    found = []
    for entry in _PROC.iterdir() if _PROC.exists() else ():
        if not entry.name.isdigit():
            continue
        try:
            if _is_postgres_in(folder, entry):
                found.append(int(entry.name))
        except PermissionError:
            # Root without CAP_SYS_PTRACE, as in containers, sees but the name of another user's process. What
            # is overlooked here keeps PostgreSQL from starting, by its own lock, until it has ended.
            if int(entry.name) == postmaster and _is_named_postgres(entry):
                found.append(postmaster)
        except OSError:
            continue  # it has ended
    return found


def _is_postgres_in(folder: os.stat_result, process: Path) -> bool:
    program = (process / "exe").readlink().name.removesuffix(" (deleted)")
    return program == "postgres" and os.path.samestat((process / "cwd").stat(), folder)


def _is_named_postgres(process: Path) -> bool:
    """Whether a process has that name and is not merely waiting to be reaped."""
    try:
        before, _, after = (process / "stat").read_text().rpartition(")")
    except OSError:
        return False
    return before.endswith("(postgres") and after.split()[0] != "Z"


async def stop_survivors(cluster: Path) -> None:
    """Stop every process of PostgreSQL in `cluster`, the gentle way first; raises SurvivorStays."""
    running = processes_in(cluster)
    if not running:
        return
    postmaster = _first_number(cluster / "postmaster.pid")
    if postmaster in running:
        log.warning("PostgreSQL of an earlier start still runs (process %d): stopping it first", postmaster)
        _send(signal.SIGINT, [postmaster])
        gone = await _gone(cluster, _FAST_STOP_LIMIT_S)
    else:
        gone = await _gone(cluster, _ORPHANS_LEAVE_LIMIT_S)
    for number in (signal.SIGQUIT, signal.SIGKILL):
        if not gone:
            running = processes_in(cluster)
            log.warning("PostgreSQL of an earlier start stays: %s to processes %s", number.name, running)
            _send(number, running)
            gone = await _gone(cluster, _HARD_STOP_LIMIT_S)
    if not gone:
        raise SurvivorStays(
            f"data_dir: PostgreSQL still runs in {cluster} as processes {processes_in(cluster)} and cannot "
            "be stopped; end them, or restart the machine if its disk does not answer"
        )


def remove_stale_lock_files(cluster: Path, socket_folder: Path) -> None:
    """Remove lock files of PostgreSQL whose pid another program has by now: PostgreSQL would believe them.

    To be called when no process of PostgreSQL is left in `cluster`.
    """
    if not (_PROC / "self").exists():
        return  # nothing here says which program a pid is
    for file in (cluster / "postmaster.pid", socket_folder / f"{SOCKET_NAME}.lock"):
        pid = _first_number(file)
        if pid is not None and (_PROC / str(pid)).exists():
            log.info("removing %s: process %d is another program", file, pid)
            file.unlink(missing_ok=True)


async def _gone(cluster: Path, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            while True:
                if not processes_in(cluster):
                    return True
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        return False


def _send(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _first_number(file: Path) -> int | None:
    try:
        return abs(int(file.read_text().split(maxsplit=1)[0]))  # negative: a single-user server's
    except (OSError, ValueError, IndexError):
        return None
