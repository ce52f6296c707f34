"""A room's state at any point of its history: the trunk at a version, and what a delta changes in it.

trunk(v) is, for each key, the row of room_state_log with the greatest ver <= v.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from storage import state_deltas, state_snapshots
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.packed_state import REMOVED, Key, StateEntries


class StateAt(NamedTuple):
    """A state of a room: trunk(ver), overlaid with a delta where there is one."""

    room_nid: int
    ver: int
    delta: int | None = None


async def of_keys(tx: Transaction, at: StateAt, keys: Collection[Key]) -> StateEntries:
    """The current events of some keys; those that have none are left out."""
    rows = await tx.fetch(
        """
        SELECT key.type_nid, key.skey_nid, newest.event_nid
        FROM unnest($3::int[], $4::bigint[]) AS key(type_nid, skey_nid)
        CROSS JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = $1 AND log.type_nid = key.type_nid AND log.skey_nid = key.skey_nid
              AND log.ver <= $2
            ORDER BY log.ver DESC LIMIT 1
        ) AS newest
        """,
        at.room_nid,
        at.ver,
        [type_nid for type_nid, _ in keys],
        [skey_nid for _, skey_nid in keys],
    )
    entries = {(row["type_nid"], row["skey_nid"]): row["event_nid"] for row in rows}
    if at.delta is not None:
        delta = (await state_deltas.load(tx, [at.delta]))[at.delta]
        entries |= {key: found for key in keys if (found := delta.get(key)) is not None}
    return _without_removed(entries)


async def changed_between(
    tx: Transaction, room_nid: int, older: int, newer: int
) -> dict[Key, tuple[int, int]]:
    """The keys that changed in versions older < ver <= newer: their events at both versions, 0 for none."""
    rows = await tx.fetch(
        """
        SELECT type_nid, skey_nid, coalesce(before.event_nid, 0) AS before, now.event_nid AS now
        FROM (
            SELECT DISTINCT type_nid, skey_nid FROM room_state_log
            WHERE room_nid = $1 AND ver > $2 AND ver <= $3
        ) AS key
        LEFT JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = $1 AND log.type_nid = key.type_nid AND log.skey_nid = key.skey_nid
              AND log.ver <= $2
            ORDER BY log.ver DESC LIMIT 1
        ) AS before ON true
        CROSS JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = $1 AND log.type_nid = key.type_nid AND log.skey_nid = key.skey_nid
              AND log.ver <= $3
            ORDER BY log.ver DESC LIMIT 1
        ) AS now
        """,
        room_nid,
        older,
        newer,
    )
    return {(row["type_nid"], row["skey_nid"]): (row["before"], row["now"]) for row in rows}


async def later_events(tx: Transaction, nids: Collection[int]) -> list[int]:
    """The events that the trunk had for the keys of some events after these, as far as it ever had these."""
    rows = await tx.fetch(
        """
        SELECT later.event_nid
        FROM events AS given
        CROSS JOIN LATERAL (
            SELECT max(ver) AS ver FROM room_state_log AS log
            WHERE log.room_nid = given.room_nid AND log.type_nid = given.type_nid
              AND log.skey_nid = given.skey_nid AND log.event_nid = given.nid
        ) AS last
        JOIN room_state_log AS later ON later.room_nid = given.room_nid AND later.type_nid = given.type_nid
         AND later.skey_nid = given.skey_nid AND later.ver > last.ver
        WHERE given.nid = ANY($1::bigint[]) AND later.event_nid <> 0
        """,
        list(nids),
    )
    return [row["event_nid"] for row in rows]


async def except_members(tx: Transaction, at: StateAt) -> StateEntries:
    """All state but the members."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT ON (type_nid, skey_nid) type_nid, skey_nid, event_nid FROM room_state_log
        WHERE room_nid = $1 AND type_nid > $3 AND ver <= $2 ORDER BY type_nid, skey_nid, ver DESC
        """,
        at.room_nid,
        at.ver,
        MEMBER_TYPE_NID,
    )
    entries = {(row["type_nid"], row["skey_nid"]): row["event_nid"] for row in rows}
    entries |= {key: event for key, event in (await _delta(tx, at)).items() if key[0] != MEMBER_TYPE_NID}
    return _without_removed(entries)


async def members(tx: Transaction, at: StateAt) -> StateEntries:
    """The member events of all users."""
    return {key: event for key, event in (await whole(tx, at)).items() if key[0] == MEMBER_TYPE_NID}


async def whole(tx: Transaction, at: StateAt) -> StateEntries:
    """The whole state: the newest snapshot before it, and the log since then."""
    snapshot = await state_snapshots.newest(tx, at.room_nid, at.ver)
    from_ver, entries = (-1, {}) if snapshot is None else (snapshot[0], snapshot[1].entries())
    entries |= await changed(tx, at.room_nid, from_ver, at.ver)
    entries |= await _delta(tx, at)
    return _without_removed(entries)


async def changed(tx: Transaction, room_nid: int, after: int, upto: int) -> StateEntries:
    """The keys that changed in versions after < ver <= upto, as they are at `upto`; 0 for a removed one."""
    row = await tx.fetchrow(
        """
        SELECT array_agg(type_nid) AS types, array_agg(skey_nid) AS skeys, array_agg(event_nid) AS events
        FROM (
            SELECT type_nid, skey_nid, event_nid FROM room_state_log
            WHERE room_nid = $1 AND ver > $2 AND ver <= $3 ORDER BY ver
        ) AS changes
        """,
        room_nid,
        after,
        upto,
    )
    if row is None or row["types"] is None:
        return {}
    return dict(zip(zip(row["types"], row["skeys"], strict=True), row["events"], strict=True))


async def _delta(tx: Transaction, at: StateAt) -> StateEntries:
    if at.delta is None:
        return {}
    return (await state_deltas.load(tx, [at.delta]))[at.delta].entries()


def _without_removed(entries: StateEntries) -> StateEntries:
    if REMOVED in entries.values():
        return {key: event_nid for key, event_nid in entries.items() if event_nid != REMOVED}
    return entries
