"""What /sync reads for many rooms at once: one query each, whatever the number of rooms.

Rooms and events go by their numbers here; the events themselves are mostly in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_flags import EventFlag
from storage.packed_state import REMOVED, Key, PackedState, StateEntries
from storage.room_timeline import seq_at_sql


class TimelineEntry(NamedTuple):
    """A live event's place in its room, without the event."""

    seq: int
    nid: int
    flags: int
    type_nid: int
    skey_nid: int | None
    state_ver: int | None
    state_delta: int | None

    @property
    def key(self) -> Key | None:
        """The key of a state event, in numbers."""
        return None if self.skey_nid is None else (self.type_nid, self.skey_nid)


class Change(NamedTuple):
    """An entry of the log of a room's state."""

    key: Key
    ver: int
    event_nid: int


class StateQuestion(NamedTuple):
    """A key of a room's state at a version."""

    room_nid: int
    ver: int
    event_type: str
    state_key: str


class StateNumber(NamedTuple):
    """A key of a room's state at a version, in numbers."""

    room_nid: int
    ver: int
    type_nid: int
    skey_nid: int


async def seqs_at(tx: Transaction, positions: Sequence[tuple[int, int]]) -> list[int]:
    """For each (room, stream position): the greatest room_seq at or before it, 0 where there is none."""
    rows = await tx.fetch(
        f"""
        SELECT {seq_at_sql("at.room_nid", "at.pos")} AS seq
        FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS at(room_nid, pos, i) ORDER BY i
        """,  # noqa: S608
        [room_nid for room_nid, _ in positions],
        [pos for _, pos in positions],
    )
    return [row[0] for row in rows]


async def newest_entries(
    tx: Transaction, parts: Mapping[int, tuple[int, int, int]]
) -> dict[int, list[TimelineEntry]]:
    """For each room (a, b, limit): the newest events with a < room_seq <= b, at most `limit`, in order.

    Of what no client is shown only those that follow a gap are among them: they tell that there is one.
    """
    rows = await tx.fetch(
        """
        SELECT part.room_nid, newest.*
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS part(room_nid, a, b, most)
        CROSS JOIN LATERAL (
            SELECT room_seq, nid, flags, type_nid, skey_nid, state_ver, state_delta FROM events
            WHERE events.room_nid = part.room_nid AND room_seq > part.a AND room_seq <= part.b AND sub = 0
              AND (flags & $5 = 0 OR flags & $6 <> 0)
            ORDER BY room_seq DESC LIMIT part.most
        ) AS newest
        ORDER BY part.room_nid, room_seq
        """,
        list(parts),
        [a for a, _, _ in parts.values()],
        [b for _, b, _ in parts.values()],
        [limit for _, _, limit in parts.values()],
        EventFlag.NOT_FOR_CLIENTS,
        EventFlag.GAP,
    )
    found: dict[int, list[TimelineEntry]] = {room_nid: [] for room_nid in parts}
    for room_nid, *entry in rows:
        found[room_nid].append(TimelineEntry(*entry))
    return found


async def replaced_events(
    tx: Transaction, entries: Iterable[tuple[int, TimelineEntry]]
) -> dict[tuple[int, int], int]:
    """For state events of timelines, by (room, room_seq): the event that each replaced, if there was one."""
    states = [(room_nid, entry.seq, entry.key) for room_nid, entry in entries if entry.key is not None]
    if not states:
        return {}
    rows = await tx.fetch(
        """
        SELECT state.room_nid, state.seq, older.event_nid
        FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::bigint[])
             AS state(room_nid, seq, type_nid, skey_nid)
        CROSS JOIN LATERAL (
            SELECT log.event_nid FROM room_state_log AS log
            WHERE log.room_nid = state.room_nid AND log.type_nid = state.type_nid
              AND log.skey_nid = state.skey_nid AND log.ver < state.seq
            ORDER BY log.ver DESC LIMIT 1
        ) AS older
        """,
        [room_nid for room_nid, _, _ in states],
        [seq for _, seq, _ in states],
        [type_nid for _, _, (type_nid, _) in states],
        [skey_nid for _, _, (_, skey_nid) in states],
    )
    return {(row[0], row[1]): row[2] for row in rows if row[2] != REMOVED}


async def state_versions(tx: Transaction, at: Mapping[int, int]) -> dict[int, int]:
    """For each room the newest version of its state at or before a room_seq, 0 where there is none."""
    rows = await tx.fetch(
        """
        SELECT at.room_nid, coalesce((SELECT max(ver) FROM room_state_log AS log
                                      WHERE log.room_nid = at.room_nid AND ver <= at.seq), 0)
        FROM unnest($1::bigint[], $2::bigint[]) AS at(room_nid, seq)
        """,
        list(at),
        list(at.values()),
    )
    return {row[0]: row[1] for row in rows}


async def whole_states(tx: Transaction, versions: Mapping[int, int]) -> dict[int, StateEntries]:
    """The state of each room at a version: its newest snapshot before that, and the log since then."""
    snapshots = await tx.fetch(
        """
        SELECT at.room_nid, snap.ver, snap.entries
        FROM unnest($1::bigint[], $2::bigint[]) AS at(room_nid, ver)
        CROSS JOIN LATERAL (
            SELECT ver, entries FROM state_snap
            WHERE state_snap.room_nid = at.room_nid AND state_snap.ver <= at.ver ORDER BY ver DESC LIMIT 1
        ) AS snap
        """,
        list(versions),
        list(versions.values()),
    )
    states: dict[int, StateEntries] = {room_nid: {} for room_nid in versions}
    known = dict.fromkeys(versions, -1)
    for room_nid, ver, entries in snapshots:
        states[room_nid] = PackedState.stored(entries).entries()
        known[room_nid] = ver
    rows = await tx.fetch(
        """
        SELECT at.room_nid, log.type_nid, log.skey_nid, log.event_nid
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS at(room_nid, known, ver)
        JOIN room_state_log AS log ON log.room_nid = at.room_nid AND log.ver > at.known AND log.ver <= at.ver
        ORDER BY log.ver
        """,
        list(versions),
        list(known.values()),
        list(versions.values()),
    )
    return _with_rows(states, rows)


async def states_without_members(tx: Transaction, versions: Mapping[int, int]) -> dict[int, StateEntries]:
    """The state of each room at a version, less the member events."""
    rows = await tx.fetch(
        """
        SELECT at.room_nid, newest.type_nid, newest.skey_nid, newest.event_nid
        FROM unnest($1::bigint[], $2::bigint[]) AS at(room_nid, ver)
        CROSS JOIN LATERAL (
            SELECT DISTINCT ON (type_nid, skey_nid) type_nid, skey_nid, event_nid FROM room_state_log AS log
            WHERE log.room_nid = at.room_nid AND log.type_nid > $3 AND log.ver <= at.ver
            ORDER BY type_nid, skey_nid, ver DESC
        ) AS newest
        """,
        list(versions),
        list(versions.values()),
        MEMBER_TYPE_NID,
    )
    return _with_rows({room_nid: {} for room_nid in versions}, rows)


def _with_rows(states: dict[int, StateEntries], rows: Iterable[asyncpg.Record]) -> dict[int, StateEntries]:
    """States with rows of (room, type, state key, event) on top, less what was removed."""
    for room_nid, type_nid, skey_nid, event_nid in rows:
        if event_nid == REMOVED:
            states[room_nid].pop((type_nid, skey_nid), None)
        else:
            states[room_nid][type_nid, skey_nid] = event_nid
    return states


async def changes(tx: Transaction, parts: Mapping[int, tuple[int, int, int]]) -> dict[int, list[Change]]:
    """For each room (a, middle, b): the keys that changed in versions a < ver <= b, ascending.

    Each comes at most twice: as it was last changed before `middle`, and as it was last changed since.
    """
    found: dict[int, list[Change]] = {room_nid: [] for room_nid in parts}
    if not parts:
        return found
    rows = await tx.fetch(
        """
        SELECT part.room_nid, newest.*
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS part(room_nid, a, middle, b)
        CROSS JOIN LATERAL (
            SELECT DISTINCT ON (type_nid, skey_nid, ver < part.middle) type_nid, skey_nid, ver, event_nid
            FROM room_state_log AS log
            WHERE log.room_nid = part.room_nid AND ver > part.a AND ver <= part.b
            ORDER BY type_nid, skey_nid, ver < part.middle, ver DESC
        ) AS newest
        ORDER BY part.room_nid, newest.ver
        """,
        list(parts),
        [a for a, _, _ in parts.values()],
        [middle for _, middle, _ in parts.values()],
        [b for _, _, b in parts.values()],
    )
    for room_nid, type_nid, skey_nid, ver, event_nid in rows:
        found[room_nid].append(Change((type_nid, skey_nid), ver, event_nid))
    return found


async def current_events(tx: Transaction, questions: Iterable[StateQuestion]) -> dict[StateQuestion, int]:
    """The event of each key at the version; keys that have none are left out."""
    by_number = list(questions)
    rows = await tx.fetch(
        """
        SELECT key.i, newest.event_nid
        FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) WITH ORDINALITY
             AS key(room_nid, ver, name, s, i)
        JOIN event_types ON event_types.name = key.name
        JOIN atoms ON atoms.s = key.s
        CROSS JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = key.room_nid AND log.type_nid = event_types.nid AND log.skey_nid = atoms.nid
              AND log.ver <= key.ver
            ORDER BY log.ver DESC LIMIT 1
        ) AS newest
        """,
        [question.room_nid for question in by_number],
        [question.ver for question in by_number],
        [question.event_type.encode() for question in by_number],
        [question.state_key.encode() for question in by_number],
    )
    return {by_number[row[0] - 1]: row[1] for row in rows if row[1] != REMOVED}


async def events_of_keys(tx: Transaction, questions: Iterable[StateNumber]) -> dict[StateNumber, int]:
    """As `current_events`, for keys in numbers; 0 for one that was removed."""
    by_number = list(questions)
    rows = await tx.fetch(
        """
        SELECT key.i, newest.event_nid
        FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::bigint[]) WITH ORDINALITY
             AS key(room_nid, ver, type_nid, skey_nid, i)
        CROSS JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = key.room_nid AND log.type_nid = key.type_nid AND log.skey_nid = key.skey_nid
              AND log.ver <= key.ver
            ORDER BY log.ver DESC LIMIT 1
        ) AS newest
        """,
        [question.room_nid for question in by_number],
        [question.ver for question in by_number],
        [question.type_nid for question in by_number],
        [question.skey_nid for question in by_number],
    )
    return {by_number[row[0] - 1]: row[1] for row in rows}


async def type_names(tx: Transaction, type_nids: Iterable[int]) -> dict[int, str]:
    """The names of event types."""
    query = "SELECT nid, name FROM event_types WHERE nid = ANY($1::int[])"
    return {row[0]: row[1].decode() for row in await tx.fetch(query, list(type_nids))}


async def redactions_of(
    tx: Transaction, targets: Sequence[tuple[int, bytes]]
) -> dict[tuple[int, bytes], int]:
    """For redacted events, by (room, stored ID): the first redaction of each that is live."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT ON (wanted.room_nid, wanted.target) wanted.room_nid, wanted.target, by_nid
        FROM unnest($1::bigint[], $2::bytea[]) AS wanted(room_nid, target)
        JOIN redactions ON redactions.room_nid = wanted.room_nid AND redactions.target = wanted.target
        JOIN events ON events.nid = by_nid AND room_seq IS NOT NULL AND events.flags & $3 = 0
        ORDER BY wanted.room_nid, wanted.target, room_seq, sub
        """,
        [room_nid for room_nid, _ in targets],
        [target for _, target in targets],
        EventFlag.NOT_FOR_CLIENTS,
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def member_counts(tx: Transaction, room_nids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """How many users are joined to each room, and how many are invited."""
    rows = await tx.fetch(
        """
        SELECT room_nid, count(*) FILTER (WHERE membership = 1), count(*) FILTER (WHERE membership = 2)
        FROM memberships WHERE room_nid = ANY($1::bigint[]) AND membership IN (1, 2) GROUP BY room_nid
        """,
        room_nids,
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def first_members(
    tx: Transaction, room_nids: Sequence[int], memberships: Sequence[int], most: int
) -> dict[int, list[str]]:
    """For each room some users of these memberships: those whose member events came first."""
    rows = await tx.fetch(
        """
        SELECT room.nid, first.s FROM unnest($1::bigint[]) AS room(nid)
        CROSS JOIN LATERAL (
            SELECT pos, s FROM memberships JOIN atoms ON atoms.nid = user_nid
            WHERE memberships.room_nid = room.nid AND membership = ANY($2::smallint[]) ORDER BY pos LIMIT $3
        ) AS first
        ORDER BY room.nid, first.pos
        """,
        room_nids,
        list(memberships),
        most,
    )
    found: dict[int, list[str]] = {room_nid: [] for room_nid in room_nids}
    for room_nid, user_id in rows:
        found[room_nid].append(user_id.decode())
    return found


async def txn_ids_of_device(
    tx: Transaction, device_nid: int, room_nids: Sequence[int], event_nids: Sequence[int]
) -> dict[int, str]:
    """The transaction IDs with which a device sent events, by the events' numbers."""
    rows = await tx.fetch(
        """
        SELECT event_nid, txn FROM txn_ids
        WHERE device_nid = $1 AND room_nid = ANY($2::bigint[]) AND event_nid = ANY($3::bigint[])
        """,
        device_nid,
        room_nids,
        event_nids,
    )
    return {row["event_nid"]: row["txn"].decode() for row in rows}
