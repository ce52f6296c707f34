"""CPU time and memory of processes, and the rows of the table.

CPU per operation is what counts: the clock on the wall shows what else the machine does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
ROUNDS: Final = 10


@dataclass(frozen=True)
class Scale:
    """How large and how long the measurements are."""

    seconds: float = 3.0
    """Of each kind of load."""
    writers: tuple[int, ...] = (1, 4, 32, 300)
    senders: tuple[int, ...] = (1, 4, 32)
    resolved_members: int = 5000
    forked_members: int = 50_000
    """As many again have left."""
    hostile_fraction: int = 1
    """By what the sizes of hostile rooms are divided."""
    receivers: int = 200
    rooms: int = 50
    room_members: int = 20
    room_messages: int = 30
    large_room: int = 1000
    shared_members: int = 5000
    """Of a room that other servers know."""
    shared_forks: int = 20
    waiting: int = 500


FULL: Final = Scale()


@dataclass(frozen=True)
class Row:
    """What one operation costs: seconds of CPU, ours and PostgreSQL's; None where it takes no part."""

    name: str
    ours: float | None = None
    postgres: float | None = None
    per_second: float | None = None
    note: str = ""

    def __str__(self) -> str:
        rate = "" if self.per_second is None else f"{self.per_second:,.0f}"
        return _line(self.name, _duration(self.ours), _duration(self.postgres), rate, self.note)


def header() -> str:
    """The first lines of the table."""
    titles = _line("CPU time of one operation", "ours", "PostgreSQL", "per second", "")
    return f"{titles}\n{'-' * len(titles)}"


def cpu_of(operation: Callable[[], object], about_s: float) -> float:
    """The seconds of CPU that a computation takes: the least of some rounds, each of about so long."""
    repeats = 1
    while _time_of(operation, repeats) < about_s / 2:
        repeats *= 2
    return min(_time_of(operation, repeats) for _ in range(ROUNDS)) / repeats


@dataclass
class Meter:
    """The CPU that a server and its PostgreSQL use from its making on.

    server: a process ID, None for this process. PostgreSQL is the postmaster and all its children; None for
    a server that has none.
    """

    server: int | None
    postmaster: int | None
    _ours: float = field(init=False)
    _postgres: float = field(init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> Self:
        """Count from now on."""
        self._ours, self._postgres = self._read()
        self._started = time.monotonic()
        return self

    def row(self, name: str, operations: int, note: str = "") -> Row:
        """What was used for each of so many operations."""
        ours, postgres = self._read()
        seconds = time.monotonic() - self._started
        return Row(
            name,
            (ours - self._ours) / operations,
            None if self.postmaster is None else (postgres - self._postgres) / operations,
            operations / seconds,
            note,
        )

    def _read(self) -> tuple[float, float]:
        ours = time.process_time() if self.server is None else _cpu_seconds(self.server)
        if self.postmaster is None:
            return ours, 0.0
        return ours, _cpu_seconds(self.postmaster, ended=True) + sum(
            map(_cpu_seconds, _children(self.postmaster))
        )


def resident_kib(pid: int) -> int:
    """The memory of a process that is in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _time_of(operation: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        operation()
    return time.process_time() - started


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the name; none for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int, *, ended: bool = False) -> float:
    """The user and system time of a process; with `ended` also of its children that have ended."""
    return sum(map(int, _stat(pid)[11 : 15 if ended else 13])) / TICKS_PER_SECOND


def _children(pid: int) -> list[int]:
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for process in processes if _stat(process)[1:2] == [str(pid)]]


def _line(name: str, ours: str, postgres: str, rate: str, note: str) -> str:
    return f"{name:<42}{ours:>11}{postgres:>12}{rate:>12}  {note}".rstrip()


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-4 else f"{seconds * 1e3:,.3f} ms"
