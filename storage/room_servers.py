"""Table room_servers: when servers had joined users in rooms. The database function `persist` writes it.

An event is owed to the servers that were in its room in the state before it: they have an interval with
from_seq < room_seq <= to_seq.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from homeserver.protocol.identifiers import RoomId, ServerName
from storage.database import Transaction


class Server(NamedTuple):
    """A server: the number of its name, and the name, which may be any text."""

    nid: int
    name: ServerName


class Interval(NamedTuple):
    """A time that a server spent in a room; `to_seq` is None while it is there."""

    server: Server
    from_seq: int
    to_seq: int | None

    def is_owed(self, seq: int) -> bool:
        """Whether the event with this room_seq is owed to the server."""
        return self.from_seq < seq and (self.to_seq is None or seq <= self.to_seq)


async def left_at(tx: Transaction, room_id: RoomId, server_nid: int) -> int | None:
    """The position of the stream at which a server left a room; None where it never did, or is there."""
    query = """
        SELECT to_pos FROM room_servers JOIN rooms ON rooms.nid = room_nid
        WHERE room_id = $1 AND server_nid = $2 ORDER BY from_seq DESC LIMIT 1
    """
    pos: int | None = await tx.fetchval(query, room_id, server_nid)
    return pos


async def intervals(tx: Transaction, rooms: Mapping[int, int]) -> dict[int, list[Interval]]:
    """The times that servers spent in rooms, by room. `rooms`: for each the first room_seq of interest."""
    rows = await tx.fetch(
        """
        SELECT room.nid, server_nid, s, from_seq, to_seq
        FROM unnest($1::bigint[], $2::bigint[]) AS room(nid, since)
        CROSS JOIN LATERAL (
            SELECT server_nid, from_seq, to_seq FROM room_servers
            WHERE room_nid = room.nid AND (to_seq IS NULL OR to_seq >= room.since)
        ) AS there
        JOIN atoms ON atoms.nid = server_nid
        """,
        list(rooms),
        list(rooms.values()),
    )
    found: dict[int, list[Interval]] = {room_nid: [] for room_nid in rooms}
    for room_nid, server_nid, name, from_seq, to_seq in rows:
        found[room_nid].append(Interval(_server(server_nid, name), from_seq, to_seq))
    return found


async def with_news(tx: Transaction, after: int) -> list[Server]:
    """The servers that may be owed something after a position of the stream, this one included.

    Of each room only the first event after it is looked at; in pairs, as in `seq_at_sql`.
    """
    rows = await tx.fetch(
        """
        WITH busy AS MATERIALIZED (
            SELECT room.room_nid
            FROM (SELECT DISTINCT room_nid FROM room_servers) AS room
            CROSS JOIN LATERAL (
                SELECT stream.room_nid FROM stream
                WHERE kind = 1 AND (stream.room_nid, pos) > (room.room_nid, $1)
                ORDER BY stream.room_nid, pos LIMIT 1
            ) AS event
            WHERE event.room_nid = room.room_nid
        )
        SELECT nid, s FROM atoms WHERE nid IN (
            SELECT server_nid FROM room_servers JOIN busy USING (room_nid)
            WHERE to_pos IS NULL OR to_pos > $1
            UNION
            SELECT server_nid FROM fed_extra WHERE pos > $1
        )
        ORDER BY nid
        """,
        after,
    )
    return [_server(nid, name) for nid, name in rows]


async def in_active_rooms(tx: Transaction, own_name: ServerName, since_ts: int, most: int) -> list[Server]:
    """The servers that are together with this one in rooms with an event since a time in ms.

    At most `most`, those of the rooms with the newest events first; this one is not among them.
    """
    rows = await tx.fetch(
        """
        WITH active AS MATERIALIZED (
            SELECT own.room_nid, event.recv_ts, own.server_nid
            FROM room_servers AS own
            CROSS JOIN LATERAL (
                SELECT recv_ts FROM events WHERE events.room_nid = own.room_nid AND room_seq IS NOT NULL
                ORDER BY room_seq DESC, sub DESC LIMIT 1
            ) AS event
            WHERE own.server_nid = (SELECT nid FROM atoms WHERE s = $1) AND own.to_seq IS NULL
              AND event.recv_ts >= $2
        )
        SELECT other.server_nid, atoms.s
        FROM active
        JOIN room_servers AS other ON other.room_nid = active.room_nid
         AND other.to_seq IS NULL AND other.server_nid <> active.server_nid
        JOIN atoms ON atoms.nid = other.server_nid
        GROUP BY other.server_nid, atoms.s ORDER BY max(active.recv_ts) DESC, other.server_nid LIMIT $3
        """,
        own_name.encode(),
        since_ts,
        most,
    )
    return [_server(nid, name) for nid, name in rows]


def _server(nid: int, name: bytes) -> Server:
    return Server(nid, ServerName(name.decode()))
