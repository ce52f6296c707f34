"""Table state_delta: where the state before an event differs from the trunk, on forks and in fetched history.

A delta lies over trunk(base_ver), and over at most one other delta: reading a state takes two rows at most.
Equal deltas are stored once, and shared by all events whose states are equal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt
from typing import Final

from storage.database import Transaction
from storage.packed_state import Key, PackedState, StateEntries

MIN_CHILD: Final = 64
"""A delta of fewer entries may always lie over another one."""

_IDENTITY: Final = struct.Struct("<qqq")


@dataclass(frozen=True, slots=True)
class Delta:
    """Differences to trunk(base_ver)."""

    base_ver: int
    own: PackedState
    parent_id: int | None = None
    parent: PackedState | None = None
    """What lies below `own`."""

    def get(self, key: Key) -> int | None:
        """The event of a key, 0 if the key was removed; None where the trunk's entry holds."""
        found = self.own.get(key)
        if found is None and self.parent is not None:
            found = self.parent.get(key)
        return found

    def entries(self) -> StateEntries:
        """All differences."""
        return self.own.entries() if self.parent is None else self.parent.entries() | self.own.entries()


async def load(tx: Transaction, delta_ids: Iterable[int]) -> dict[int, Delta]:
    """Deltas by their IDs."""
    rows = await tx.fetch(
        """
        SELECT delta.id, delta.base_ver, delta.entries, delta.parent, below.entries AS parent_entries
        FROM state_delta AS delta LEFT JOIN state_delta AS below ON below.id = delta.parent
        WHERE delta.id = ANY($1::bigint[])
        """,
        list(delta_ids),
    )
    return {
        row["id"]: Delta(
            row["base_ver"],
            PackedState.stored(row["entries"]),
            row["parent"],
            None if row["parent"] is None else PackedState.stored(row["parent_entries"]),
        )
        for row in rows
    }


async def store(
    tx: Transaction,
    new_id: int,
    room_nid: int,
    base_ver: int,
    differences: StateEntries,
    over: int | None = None,
) -> int:
    """Store the state "trunk(base_ver), then the delta `over`, then `differences`"; returns the delta's ID.

    `new_id` is the number for a new row; an equal delta that is stored already keeps its own. `over` is a
    delta over the same base_ver.
    """
    parent, entries = None, differences
    if over is not None:
        below = (await load(tx, [over]))[over]
        assert below.base_ver == base_ver
        parent, entries = _layer(over, below, differences)
    packed = PackedState.of(entries)
    identity = sha256(_IDENTITY.pack(room_nid, base_ver, parent or 0) + packed.data).digest()
    inserted = await tx.fetchval(
        """
        INSERT INTO state_delta (id, room_nid, base_ver, parent, hash, entries)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (hash) DO NOTHING RETURNING id
        """,
        new_id,
        room_nid,
        base_ver,
        parent,
        identity,
        packed.compressed,
    )
    if inserted is not None:
        return int(inserted)
    return int(await tx.fetchval("SELECT id FROM state_delta WHERE hash = $1", identity))


def _layer(over: int, below: Delta, differences: StateEntries) -> tuple[int | None, StateEntries]:
    """The parent and the own entries of what lies over a delta: few entries over many, else all in one."""
    if below.parent_id is None:
        parent_id, parent, child = over, below.own, differences
    else:
        assert below.parent is not None
        parent_id, parent, child = below.parent_id, below.parent, below.own.entries() | differences
    if len(child) < max(MIN_CHILD, isqrt(len(parent))):
        return parent_id, child
    return None, parent.entries() | child
