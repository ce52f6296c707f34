"""The time, as an argument: a service never asks the system for it, so that a test can move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], int]
"""Milliseconds since 1970."""


def system_clock() -> int:
    """The clock of the machine."""
    return time.time_ns() // 1_000_000


def strictly_increasing(clock: Clock) -> Clock:
    """A clock that never says the same time twice: it runs ahead where it is asked too often."""
    last = 0

    def tick() -> int:
        nonlocal last
        last = max(clock(), last + 1)
        return last

    return tick
