"""Numbers for events and rooms, taken from the database in blocks so that giving one out costs nothing."""

from __future__ import annotations

from collections import deque
from typing import Final

from storage.database import Database

BLOCK: Final = 1000


class NidBlocks:
    """The numbers that may still be given out. One that is not used is lost, which is no harm.

    Many may share them, if each takes what it has reserved without waiting for anything in between.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free: deque[int] = deque()

    async def reserve(self, count: int) -> None:
        """Make sure that at least so many numbers can be taken."""
        while (missing_blocks := -(-(count - len(self._free)) // BLOCK)) > 0:
            async with self._database.connection() as tx:
                rows = await tx.fetch(
                    "SELECT nextval('nid_blocks') AS block FROM generate_series(1, $1)", missing_blocks
                )
            for row in rows:
                self._free.extend(range(row["block"] * BLOCK, (row["block"] + 1) * BLOCK))

    def take(self) -> int:
        """The next number. Raises IndexError when none is reserved."""
        return self._free.popleft()
