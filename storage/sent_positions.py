"""Table sent_positions: up to where other servers have got what they are owed; and reading what comes next.

Most servers have everything: one row, under a number that no server has, says for all without a row of their
own that they have got what they are owed up to its position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId, ServerName
from homeserver.protocol.room_versions import RoomVersion, room_version
from storage.database import Transaction
from storage.event_codec import decode_pdu
from storage.event_flags import EventFlag
from storage.room_servers import Server
from storage.room_timeline import seq_at_sql

_ALL_OTHERS: Final = 0


@dataclass(frozen=True, slots=True)
class SentPositions:
    """Up to which position of the stream each server has got what it is owed."""

    others: int
    """That of all servers that are not named."""
    behind: Mapping[Server, int]


@dataclass(frozen=True, slots=True)
class DueEvent:
    """An event that a server is owed, as it is stored; it may turn out to be damaged."""

    pos: int
    nid: int
    flags: int
    room_id: RoomId
    stored_version: str
    stored_id: bytes
    json: bytes

    @property
    def version(self) -> RoomVersion:
        """The version of its room."""
        return room_version(self.stored_version)

    def pdu(self) -> Pdu:
        """The event; a redacted one comes pruned. Raises whatever is wrong with it."""
        return decode_pdu(self.version, self.room_id, self.stored_id, self.flags, self.json)


async def load(tx: Transaction) -> SentPositions:
    """All positions; 0 for servers that nothing was ever noted of."""
    rows = await tx.fetch(
        "SELECT server_nid, pos, s FROM sent_positions LEFT JOIN atoms ON atoms.nid = server_nid"
    )
    behind = {
        Server(nid, ServerName(name.decode())): pos for nid, pos, name in rows if nid != _ALL_OTHERS and name
    }
    return SentPositions(next((pos for nid, pos, _ in rows if nid == _ALL_OTHERS), 0), behind)


async def save(tx: Transaction, others: int, changed: Mapping[int, int], caught_up: Collection[int]) -> None:
    """Note positions. `changed`: by server. `caught_up`: servers that have everything again."""
    await tx.execute(
        """
        WITH gone AS (DELETE FROM sent_positions WHERE server_nid = ANY($3::bigint[]))
        INSERT INTO sent_positions (server_nid, pos) SELECT * FROM unnest($1::bigint[], $2::bigint[])
        ON CONFLICT (server_nid) DO UPDATE SET pos = excluded.pos
        """,
        [_ALL_OTHERS, *changed],
        [others, *changed.values()],
        list(caught_up),
    )


async def due(tx: Transaction, server_nid: int, after: int, upto: int, most: int) -> list[DueEvent]:
    """What a server is owed after a position of the stream up to another one: the first `most`, in order.

    Where that is nothing it costs a look at the index for each room that the server is, or lately was, in.
    """
    rows = await tx.fetch(
        f"""
        WITH due AS MATERIALIZED (
            SELECT owed.nid, (
                SELECT pos FROM stream
                WHERE kind = 1 AND stream.room_nid = there.room_nid AND stream.room_seq = owed.room_seq
            ) AS pos
            FROM room_servers AS there
            JOIN rooms ON rooms.nid = there.room_nid
            CROSS JOIN LATERAL (
                SELECT nid, room_seq FROM events
                WHERE events.room_nid = there.room_nid AND events.flags & {EventFlag.FED} <> 0
                  AND room_seq > greatest(there.from_seq, {seq_at_sql("there.room_nid", "$2")})
                  AND room_seq <= least(there.to_seq, {seq_at_sql("there.room_nid", "$3")})
                ORDER BY room_seq LIMIT $4
            ) AS owed
            WHERE there.server_nid = $1 AND (there.to_pos IS NULL OR there.to_pos > $2)
            UNION ALL
            SELECT extra.event_nid, extra.pos
            FROM fed_extra AS extra
            JOIN events ON events.nid = extra.event_nid
            JOIN rooms ON rooms.nid = events.room_nid
            WHERE extra.server_nid = $1 AND extra.pos > $2 AND extra.pos <= $3
            ORDER BY pos LIMIT $4
        )
        SELECT due.pos, events.nid, events.flags, rooms.room_id, rooms.version, events.event_id, events.json
        FROM due
        JOIN events ON events.nid = due.nid
        JOIN rooms ON rooms.nid = events.room_nid
        ORDER BY due.pos
        """,  # noqa: S608
        server_nid,
        after,
        upto,
        most,
    )
    return [DueEvent(*row) for row in rows]


async def extra_servers(tx: Transaction, events: Sequence[tuple[int, int]]) -> dict[int, list[Server]]:
    """The servers beside those in the room that are owed events: by position. `events`: (room, position)."""
    rows = await tx.fetch(
        """
        SELECT extra.pos, server_nid, s
        FROM unnest($1::bigint[], $2::bigint[]) AS event(room_nid, pos)
        JOIN fed_extra AS extra ON extra.room_nid = event.room_nid AND extra.pos = event.pos
        JOIN atoms ON atoms.nid = server_nid
        """,
        [room_nid for room_nid, _ in events],
        [pos for _, pos in events],
    )
    found: dict[int, list[Server]] = {}
    for pos, server_nid, name in rows:
        found.setdefault(pos, []).append(Server(server_nid, ServerName(name.decode())))
    return found


async def sweep_extra(tx: Transaction) -> None:
    """Forget events that were owed to servers without being in their rooms, once they have got them."""
    await tx.execute(
        """
        DELETE FROM fed_extra AS extra WHERE pos <= coalesce(
            (SELECT pos FROM sent_positions WHERE server_nid = extra.server_nid),
            (SELECT pos FROM sent_positions WHERE server_nid = $1), 0)
        """,
        _ALL_OTHERS,
    )
