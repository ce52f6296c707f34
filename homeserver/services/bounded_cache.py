"""A cache that holds so much and no more; what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by keys. Each has a cost (bytes, or whatever else is counted), and all together a budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.cost = 0
        """What all values cost together."""

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of a key; None where there is none."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, cost: int) -> None:
        """Remember a value; one that costs more than the budget by itself is not kept."""
        self.drop(key)
        if cost > self._budget:
            return
        self._values[key] = value, cost
        self.cost += cost
        while self.cost > self._budget:
            self.cost -= self._values.popitem(last=False)[1][1]

    def drop(self, key: K) -> None:
        """Forget the value of a key, if there is one."""
        found = self._values.pop(key, None)
        if found is not None:
            self.cost -= found[1]

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.cost = 0
