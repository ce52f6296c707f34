"""The timeline of a room: its events in the order in which they arrived, older history before them.

Rows come as they are stored; `pdu` decodes one, so that what nobody is shown costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias

from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.room_versions import room_version
from storage import state_deltas
from storage.database import Transaction
from storage.event_codec import decode_pdu
from storage.event_flags import EventFlag
from storage.packed_state import Key
from storage.room_heads import RoomRef
from storage.room_state import StateAt

Position: TypeAlias = tuple[int, int]
"""A place in a timeline: just before the event at (room_seq, sub)."""

FIRST: Final = -999_999_999
"""As `sub`: before all history that was fetched for a room_seq."""
AFTER: Final = 1
"""As `sub`: after the live event of a room_seq."""

_REDACTED: Final = int(EventFlag.REDACTED)
_COLUMNS: Final = """
    events.nid, coalesce(events.room_seq, 0), events.sub, events.type_nid, events.sender_nid, events.skey_nid,
    events.state_ver, events.state_delta, events.flags, events.event_id, events.json
"""


class TimelineRow(NamedTuple):
    """A stored event and its place."""

    nid: int
    seq: int
    """room_seq; 0 for an event that has no place in the timeline: an outlier, rejected or soft-failed."""
    sub: int
    type_nid: int
    sender_nid: int
    skey_nid: int | None
    state_ver: int | None
    state_delta: int | None
    flags: int
    stored_id: bytes
    json: bytes

    @property
    def event_id(self) -> EventId:
        """The event's ID."""
        return decode_event_id(self.stored_id)

    @property
    def position(self) -> Position:
        """The place just before the event."""
        return self.seq, self.sub

    @property
    def next_position(self) -> Position:
        """The place just after the event."""
        return self.seq, self.sub + 1

    @property
    def is_redacted(self) -> bool:
        """Whether a redaction of the event holds."""
        return bool(self.flags & _REDACTED)

    @property
    def has_state_before(self) -> bool:
        """Whether the state before the event is known: of outliers it is not."""
        return self.seq > 0 or self.state_ver is not None

    def pdu(self, room: RoomRef) -> Pdu:
        """The event; a redacted one comes pruned."""
        return decode_pdu(room.version, room.room_id, self.stored_id, self.flags, self.json)

    def state_before(self, room: RoomRef) -> StateAt:
        """The room's state before the event."""
        ver = self.seq - 1 if self.state_ver is None else self.state_ver
        return StateAt(room.nid, ver, self.state_delta)

    def own_change(self) -> tuple[Key, int] | None:
        """What a state event changes in the state before it: the event of its key."""
        return None if self.skey_nid is None else ((self.type_nid, self.skey_nid), self.nid)


async def read_backwards(
    tx: Transaction, room_nid: int, low: Position, high: Position, limit: int
) -> list[TimelineRow]:
    """The newest events between two positions, the newest first; those that no client sees are left out."""
    query = f"""
        SELECT {_COLUMNS} FROM events
        WHERE room_nid = $1 AND (room_seq, sub) >= ($2, $3) AND (room_seq, sub) < ($4, $5) AND flags & $6 = 0
        ORDER BY room_seq DESC, sub DESC LIMIT $7
    """  # noqa: S608
    return [
        TimelineRow(*row)
        for row in await tx.fetch(query, room_nid, *low, *high, EventFlag.NOT_FOR_CLIENTS, limit)
    ]


async def read_forwards(
    tx: Transaction, room_nid: int, low: Position, high: Position, limit: int
) -> list[TimelineRow]:
    """The oldest events between two positions, the oldest first; those that no client sees are left out."""
    query = f"""
        SELECT {_COLUMNS} FROM events
        WHERE room_nid = $1 AND (room_seq, sub) >= ($2, $3) AND (room_seq, sub) < ($4, $5) AND flags & $6 = 0
        ORDER BY room_seq, sub LIMIT $7
    """  # noqa: S608
    return [
        TimelineRow(*row)
        for row in await tx.fetch(query, room_nid, *low, *high, EventFlag.NOT_FOR_CLIENTS, limit)
    ]


async def find(tx: Transaction, room_nid: int, event_id: EventId) -> TimelineRow | None:
    """A live event of a room by its ID; None for one that is not there, or that no client sees."""
    for room, row in await by_stored_ids(tx, [encode_event_id(event_id)]):
        if room.nid == room_nid and row.seq > 0 and not row.flags & EventFlag.NOT_FOR_CLIENTS:
            return row
    return None


async def by_nids(tx: Transaction, nids: Collection[int]) -> dict[int, TimelineRow]:
    """Events by their numbers, whether they have a place in the timeline or not."""
    query = f"SELECT {_COLUMNS} FROM events WHERE nid = ANY($1::bigint[])"  # noqa: S608
    return {row[0]: TimelineRow(*row) for row in await tx.fetch(query, list(nids))}


async def by_stored_ids(tx: Transaction, stored_ids: Collection[bytes]) -> list[tuple[RoomRef, TimelineRow]]:
    """Events by the stored forms of their IDs, whether they have a place in a timeline or not.

    The caller checks the room: a query that names it might look for the events among all those of the room.
    """
    query = f"""
        SELECT rooms.nid, room_id, version, {_COLUMNS}
        FROM events JOIN rooms ON rooms.nid = events.room_nid WHERE event_id = ANY($1::bytea[])
    """  # noqa: S608
    return [
        (RoomRef(room_nid, RoomId(room_id), room_version(version)), TimelineRow(*columns))
        for room_nid, room_id, version, *columns in await tx.fetch(query, stored_ids)
    ]


async def replaced(tx: Transaction, room_nid: int, rows: Iterable[TimelineRow]) -> dict[int, TimelineRow]:
    """For state events of the timeline, by their numbers: the event that each replaced, if there was one."""
    rows = [row for row in rows if row.skey_nid is not None and row.seq > 0]
    if not rows:
        return {}
    older_history = [row for row in rows if row.sub < 0]
    delta_ids = {row.state_delta for row in older_history if row.state_delta is not None}
    deltas = await state_deltas.load(tx, delta_ids) if delta_ids else {}
    own = {
        row.nid: deltas[row.state_delta].get((row.type_nid, row.skey_nid))
        for row in older_history
        if row.state_delta is not None and row.skey_nid is not None
    }
    query = f"""
        SELECT state.nid AS by_nid, {_COLUMNS}
        FROM unnest($2::bigint[], $3::bigint[], $4::int[], $5::bigint[], $6::bigint[])
             AS state(nid, ver, type_nid, skey_nid, own)
        LEFT JOIN LATERAL (
            SELECT log.event_nid FROM room_state_log AS log
            WHERE log.room_nid = $1 AND log.type_nid = state.type_nid AND log.skey_nid = state.skey_nid
              AND log.ver <= state.ver
            ORDER BY log.ver DESC LIMIT 1
        ) AS older ON state.own IS NULL
        JOIN events ON events.nid = coalesce(state.own, older.event_nid)
    """  # noqa: S608
    found = await tx.fetch(
        query,
        room_nid,
        [row.nid for row in rows],
        [row.seq - 1 if row.sub == 0 else row.state_ver for row in rows],
        [row.type_nid for row in rows],
        [row.skey_nid for row in rows],
        [own.get(row.nid) for row in rows],
    )
    return {by_nid: TimelineRow(*columns) for by_nid, *columns in found}


async def redactions(
    tx: Transaction, room_nid: int, targets: Iterable[TimelineRow]
) -> list[tuple[bytes, TimelineRow]]:
    """The live redactions of events: (stored ID of the target, the redaction), the oldest first."""
    query = f"""
        SELECT redactions.target, {_COLUMNS} FROM redactions JOIN events ON events.nid = by_nid
        WHERE redactions.room_nid = $1 AND target = ANY($2::bytea[])
          AND room_seq IS NOT NULL AND flags & $3 = 0
        ORDER BY room_seq, sub
    """  # noqa: S608
    found = await tx.fetch(query, room_nid, [row.stored_id for row in targets], EventFlag.NOT_FOR_CLIENTS)
    return [(target, TimelineRow(*columns)) for target, *columns in found]


def seq_at_sql(room: str, pos: str) -> str:
    """SQL for the greatest room_seq of a room at or before a position of the stream; 0 where there is none.

    In pairs, because only the index of the rooms has their order: asked for the newest position alone,
    PostgreSQL might go back through those of all rooms.
    """
    return f"""
        coalesce((
            SELECT CASE WHEN newest.room_nid = {room} THEN newest.room_seq END FROM (
                SELECT room_nid, room_seq FROM stream WHERE kind = 1 AND (room_nid, pos) <= ({room}, {pos})
                ORDER BY room_nid DESC, pos DESC LIMIT 1
            ) AS newest
        ), 0)
    """  # noqa: S608


async def seq_at(tx: Transaction, room_nid: int, pos: int) -> int:
    """The greatest room_seq at or before a position of the stream; 0 where there is none."""
    return int(await tx.fetchval(f"SELECT {seq_at_sql('$1', '$2')}", room_nid, pos))
