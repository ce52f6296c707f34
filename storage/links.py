"""Links: lists of numbers, as columns of one call hold them.

PostgreSQL has no arrays of arrays that are of different lengths: so all lists go end to end into one array,
and each row says which slice of it is its own.
"""

from __future__ import annotations

from collections.abc import Iterable


class Links:
    """The lists. Each is `nids[first:last]` as SQL counts, with first > last for an empty one."""

    def __init__(self) -> None:
        self.nids: list[int] = []
        """All lists, end to end."""

    def add(self, nids: Iterable[int]) -> tuple[int, int]:
        """Add a list; its slice."""
        first = len(self.nids) + 1
        self.nids.extend(nids)
        return first, len(self.nids)
