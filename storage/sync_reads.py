"""What /sync reads for many rooms at once: one query each, whatever the number of rooms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import ViewHistory, visibility_in
from homeserver.protocol.identifiers import UserId
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef, StoredEvent, stored_event


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """A live event and its place in its room."""

    seq: int
    flags: int
    stored: StoredEvent


async def seqs_at(tx: Transaction, positions: Iterable[tuple[int, int]]) -> list[int]:
    """For each (room, stream position): the greatest room_seq at or before it, 0 where there is none."""
    positions = list(positions)
    rows = await tx.fetch(
        """
        SELECT coalesce((
            SELECT room_seq FROM stream WHERE kind = 1 AND room_nid = at.room_nid AND pos <= at.pos
            ORDER BY pos DESC LIMIT 1), 0) AS seq
        FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS at(room_nid, pos, i) ORDER BY i
        """,
        [room_nid for room_nid, _ in positions],
        [pos for _, pos in positions],
    )
    return [row["seq"] for row in rows]


async def newest_events(
    tx: Transaction, ranges: Mapping[RoomRef, tuple[int, int]], limit: int
) -> dict[RoomRef, list[TimelineEvent]]:
    """For each room the newest events, at most `limit`, with a < room_seq <= b, in their order."""
    rooms = {room.nid: room for room in ranges}
    rows = await tx.fetch(
        """
        SELECT part.room_nid, room_seq, nid, event_id, flags, json
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS part(room_nid, a, b)
        CROSS JOIN LATERAL (
            SELECT room_seq, nid, event_id, flags, json FROM events
            WHERE events.room_nid = part.room_nid AND room_seq > part.a AND room_seq <= part.b AND sub = 0
              AND flags & $5 = 0
            ORDER BY room_seq DESC LIMIT $4
        ) AS newest
        ORDER BY room_nid, room_seq
        """,
        list(rooms),
        [ranges[room][0] for room in rooms.values()],
        [ranges[room][1] for room in rooms.values()],
        limit,
        EventFlag.HIDDEN,
    )
    found: dict[RoomRef, list[TimelineEvent]] = {room: [] for room in ranges}
    for row in rows:
        room = rooms[row["room_nid"]]
        found[room].append(TimelineEvent(row["room_seq"], row["flags"], stored_event(room, row)))
    return found


async def replaced_events(
    tx: Transaction, room_seqs: Iterable[tuple[RoomRef, int]]
) -> dict[tuple[int, int], StoredEvent]:
    """For state events, by (room, room_seq): the event that each replaced, where there was one."""
    wanted = {(room.nid, seq): room for room, seq in room_seqs}
    if not wanted:
        return {}
    rows = await tx.fetch(
        """
        SELECT at.room_nid, at.seq, events.nid, event_id, flags, json
        FROM unnest($1::bigint[], $2::bigint[]) AS at(room_nid, seq)
        JOIN room_state_log AS log ON log.room_nid = at.room_nid AND log.ver = at.seq
        CROSS JOIN LATERAL (
            SELECT older.event_nid FROM room_state_log AS older
            WHERE older.room_nid = log.room_nid AND older.type_nid = log.type_nid
              AND older.skey_nid = log.skey_nid AND older.ver < log.ver
            ORDER BY older.ver DESC LIMIT 1
        ) AS before
        JOIN events ON events.nid = before.event_nid
        """,
        [room_nid for room_nid, _ in wanted],
        [seq for _, seq in wanted],
    )
    return {
        (row["room_nid"], row["seq"]): stored_event(wanted[row["room_nid"], row["seq"]], row) for row in rows
    }


async def redacted_because(tx: Transaction, room: RoomRef, targets: Sequence[bytes]) -> dict[bytes, Pdu]:
    """For redacted events, by their stored IDs: the first redaction of each."""
    rows = await tx.fetch(
        """
        SELECT DISTINCT ON (target) target, nid, event_id, flags, json
        FROM redactions JOIN events ON events.nid = by_nid
        WHERE redactions.room_nid = $1 AND target = ANY($2::bytea[]) ORDER BY target, room_seq
        """,
        room.nid,
        targets,
    )
    return {row["target"]: stored_event(room, row).pdu for row in rows}


async def view_histories(
    tx: Transaction, user_id: UserId, user_nid: int, rooms: Iterable[RoomRef]
) -> dict[RoomRef, ViewHistory]:
    """A user's view of rooms at all versions of their states."""
    by_nid = {room.nid: room for room in rooms}
    rows = await tx.fetch(
        """
        SELECT log.room_nid, log.ver, log.type_nid = 1 AS is_member, events.nid, event_id, flags, json
        FROM room_state_log AS log LEFT JOIN events ON events.nid = log.event_nid
        WHERE log.room_nid = ANY($1::bigint[])
          AND ((log.type_nid = 1 AND log.skey_nid = $2)
            OR (log.type_nid = (SELECT nid FROM event_types WHERE name = 'm.room.history_visibility')
                AND log.skey_nid = (SELECT nid FROM atoms WHERE s = '')))
        ORDER BY log.room_nid, log.ver
        """,
        list(by_nid),
        user_nid,
    )
    changes: dict[int, tuple[list[tuple[int, object]], list[tuple[int, object]]]] = {
        room_nid: ([], []) for room_nid in by_nid
    }
    for row in rows:
        event = None if row["nid"] is None else stored_event(by_nid[row["room_nid"]], row).pdu
        visibilities, memberships = changes[row["room_nid"]]
        if row["is_member"]:
            memberships.append((row["ver"], None if event is None else event.membership))
        else:
            visibilities.append((row["ver"], visibility_in(None if event is None else event.content)))
    return {
        by_nid[room_nid]: ViewHistory(visibilities, memberships)  # type: ignore[arg-type]
        for room_nid, (visibilities, memberships) in changes.items()
    }


async def state_versions(tx: Transaction, at: Mapping[RoomRef, int]) -> dict[RoomRef, int]:
    """For each room the newest version of its state at or before a room_seq, 0 where there is none."""
    rooms = list(at)
    rows = await tx.fetch(
        """
        SELECT coalesce((SELECT max(ver) FROM room_state_log AS log
                         WHERE log.room_nid = at.room_nid AND ver <= at.seq), 0) AS ver
        FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS at(room_nid, seq, i) ORDER BY i
        """,
        [room.nid for room in rooms],
        list(at.values()),
    )
    return {room: row["ver"] for room, row in zip(rooms, rows, strict=True)}


async def changed_state(tx: Transaction, room: RoomRef, after: int, upto: int) -> list[StoredEvent]:
    """The newest event of each key that changed in a range of versions, in the order of the changes."""
    rows = await tx.fetch(
        """
        SELECT events.nid, event_id, flags, json FROM (
            SELECT DISTINCT ON (type_nid, skey_nid) ver, event_nid FROM room_state_log
            WHERE room_nid = $1 AND ver > $2 AND ver <= $3 ORDER BY type_nid, skey_nid, ver DESC
        ) AS newest
        JOIN events ON events.nid = newest.event_nid ORDER BY newest.ver
        """,
        room.nid,
        after,
        upto,
    )
    return [stored_event(room, row) for row in rows]


async def member_counts(tx: Transaction, room_nid: int) -> tuple[int, int]:
    """How many users are joined to a room and how many are invited."""
    rows = await tx.fetch(
        """
        SELECT membership, count(*) AS n FROM memberships
        WHERE room_nid = $1 AND membership IN (1, 2) GROUP BY membership
        """,
        room_nid,
    )
    counts = {row["membership"]: row["n"] for row in rows}
    return counts.get(1, 0), counts.get(2, 0)


async def heroes(tx: Transaction, room_nid: int, memberships: Sequence[int], most: int) -> list[UserId]:
    """The users of these memberships who came first."""
    rows = await tx.fetch(
        """
        SELECT s FROM memberships JOIN atoms ON atoms.nid = user_nid
        WHERE room_nid = $1 AND membership = ANY($2::smallint[]) ORDER BY pos LIMIT $3
        """,
        room_nid,
        list(memberships),
        most,
    )
    return [UserId(row["s"].decode()) for row in rows]


async def membership_at(tx: Transaction, room: RoomRef, user_nid: int, seq: int) -> object:
    """content.membership of a user at a version of a room's state; None for one who was never a member."""
    row = await tx.fetchrow(
        """
        SELECT events.nid, event_id, flags, json
        FROM room_state_log AS log JOIN events ON events.nid = event_nid
        WHERE log.room_nid = $1 AND log.type_nid = 1 AND log.skey_nid = $2 AND ver <= $3
        ORDER BY ver DESC LIMIT 1
        """,
        room.nid,
        user_nid,
        seq,
    )
    return None if row is None else stored_event(room, row).pdu.membership


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
