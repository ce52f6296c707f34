"""Table state_delta: where the state before an event differs from the trunk, on forks and in fetched history.

A delta lies over trunk(base_ver), and over at most one other delta: reading a state takes two rows at most.
Equal deltas are stored once, and shared by all events whose states are equal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import isqrt
from typing import Final, NamedTuple

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
    """Deltas by their IDs. What many of them lie over is read once."""
    wanted = set(delta_ids)
    rows = await tx.fetch(
        """
        SELECT id, base_ver, parent, entries FROM state_delta
        WHERE id = ANY($1::bigint[])
           OR id = ANY(ARRAY(SELECT parent FROM state_delta WHERE id = ANY($1::bigint[])))
        """,
        list(wanted),
    )
    packed = {row["id"]: PackedState.stored(row["entries"]) for row in rows}
    return {
        row["id"]: Delta(
            row["base_ver"],
            packed[row["id"]],
            row["parent"],
            None if row["parent"] is None else packed[row["parent"]],
        )
        for row in rows
        if row["id"] in wanted
    }


@dataclass(frozen=True, slots=True)
class ForkState:
    """A state off the trunk: trunk(ver), then a stored delta if there is one, then `own`."""

    ver: int
    own: StateEntries = field(default_factory=dict)
    over_id: int | None = None
    """The stored delta that lies below `own`."""
    over: Delta | None = None

    def differences(self) -> StateEntries:
        """All that is other than in trunk(ver), removed keys included."""
        return self.own if self.over is None else self.over.entries() | self.own

    def after(self, key: Key, event_nid: int) -> ForkState:
        """The state after a state event whose state before this is."""
        return replace(self, own=self.own | {key: event_nid})


class DeltaRow(NamedTuple):
    """A row of the table."""

    id: int
    room_nid: int
    base_ver: int
    parent: int | None
    hash: bytes
    entries: bytes


def row_of(state: ForkState, new_id: int, room_nid: int) -> DeltaRow | None:
    """The row that a state needs, under a new number; None where it is trunk(ver) or stored already."""
    if not state.own:
        return None
    parent, entries = None, state.own
    if state.over_id is not None:
        assert state.over is not None and state.over.base_ver == state.ver
        parent, entries = _layer(state.over_id, state.over, state.own)
    packed = PackedState.of(entries)
    identity = sha256(_IDENTITY.pack(room_nid, state.ver, parent or 0) + packed.data).digest()
    return DeltaRow(new_id, room_nid, state.ver, parent, identity, packed.compressed)


async def store(tx: Transaction, row: DeltaRow) -> int:
    """Store a row and return its number; an equal delta that is stored already keeps its own."""
    inserted = await tx.fetchval(
        """
        INSERT INTO state_delta (id, room_nid, base_ver, parent, hash, entries)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (hash) DO NOTHING RETURNING id
        """,
        *row,
    )
    if inserted is not None:
        return int(inserted)
    return int(await tx.fetchval("SELECT id FROM state_delta WHERE hash = $1", row.hash))


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
