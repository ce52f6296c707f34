"""Housekeeping: what rows are kept for a time only are deleted once that is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

log = logging.getLogger(__name__)

Chore: TypeAlias = Callable[[], Awaitable[None]]

INTERVAL_S: Final = 3600.0


async def keep_house(chores: Sequence[Chore]) -> None:
    """Do every chore once an hour, for ever; one that fails is logged and tried again in its turn."""
    while True:
        for chore in chores:
            try:
                await chore()
            except Exception:
                log.exception("housekeeping: %s failed", getattr(chore, "__qualname__", chore))
        await asyncio.sleep(INTERVAL_S)
