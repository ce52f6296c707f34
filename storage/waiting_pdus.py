"""Table waiting_pdus: events from outside that were verified and wait for their turn in their room.

What two servers send waits for each of them: one may know what the event builds on, and the other not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.database import Transaction
from storage.event_codec import CODEC, decode_pdu, encode_pdu
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class WaitingPdu:
    """An event that waits. `number`: larger for those that came later."""

    number: int
    pdu: Pdu


@dataclass(frozen=True, slots=True)
class Counts:
    """How many events wait in a room."""

    in_room: int
    by_strangers: int
    """Those of servers that were not in the room when they sent them."""
    of_server: int


async def add(
    tx: Transaction, room: RoomRef, origin: ServerName, pdus: Sequence[Pdu], *, by_stranger: bool
) -> None:
    """Let events wait, behind those that wait already."""
    query = """
        INSERT INTO waiting_pdus (room_nid, event_id, origin, by_stranger, json)
        SELECT $1, waiting.event_id, $2, $3, waiting.json
        FROM unnest($4::bytea[], $5::bytea[]) AS waiting(event_id, json)
        ON CONFLICT DO NOTHING
    """
    await tx.execute(
        query,
        room.nid,
        origin,
        by_stranger,
        [encode_event_id(pdu.event_id) for pdu in pdus],
        [encode_pdu(room.version, pdu) for pdu in pdus],
    )


async def oldest(
    tx: Transaction, room: RoomRef, origin: ServerName, after: int, limit: int
) -> list[WaitingPdu]:
    """The events that a server sent for a room, in the order of their arrival, after one of some number."""
    rows = await tx.fetch(
        """
        SELECT number, event_id, json FROM waiting_pdus
        WHERE room_nid = $1 AND origin = $2 AND number > $3 ORDER BY number LIMIT $4
        """,
        room.nid,
        origin,
        after,
        limit,
    )
    return [WaitingPdu(row["number"], _pdu(room, row["event_id"], row["json"])) for row in rows]


async def find(tx: Transaction, room: RoomRef, origin: ServerName, event_id: EventId) -> Pdu | None:
    """An event that a server sent, if it still waits."""
    query = "SELECT json FROM waiting_pdus WHERE room_nid = $1 AND event_id = $2 AND origin = $3"
    stored_id = encode_event_id(event_id)
    data = await tx.fetchval(query, room.nid, stored_id, origin)
    return None if data is None else _pdu(room, stored_id, data)


def _pdu(room: RoomRef, stored_id: bytes, data: bytes) -> Pdu:
    return decode_pdu(room.version, room.room_id, stored_id, CODEC, data)


async def remove(
    tx: Transaction, room_nid: int, event_ids: Collection[EventId], origin: ServerName | None = None
) -> None:
    """These events do not wait any more; `origin`: not as what this server sent."""
    await tx.execute(
        """
        DELETE FROM waiting_pdus
        WHERE room_nid = $1 AND event_id = ANY($2::bytea[]) AND ($3::text IS NULL OR origin = $3)
        """,
        room_nid,
        [encode_event_id(event_id) for event_id in event_ids],
        origin,
    )


async def counts(tx: Transaction, room_nid: int, origin: ServerName) -> Counts:
    """How many events wait in a room, and how many of them are from one server."""
    row = await tx.fetchrow(
        """
        SELECT count(*), count(*) FILTER (WHERE by_stranger), count(*) FILTER (WHERE origin = $2)
        FROM waiting_pdus WHERE room_nid = $1
        """,
        room_nid,
        origin,
    )
    return Counts(*row)


async def queues(tx: Transaction, room_nid: int | None) -> list[tuple[RoomRef, ServerName]]:
    """In which rooms events of which servers wait; `room_nid`: only in this one."""
    rows = await tx.fetch(
        """
        SELECT nid, room_id, version, origin FROM rooms
        JOIN (SELECT DISTINCT room_nid, origin FROM waiting_pdus WHERE $1::bigint IS NULL OR room_nid = $1)
            AS waiting ON waiting.room_nid = nid
        """,
        room_nid,
    )
    return [
        (
            RoomRef(row["nid"], RoomId(row["room_id"]), ROOM_VERSIONS[row["version"]]),
            ServerName(row["origin"]),
        )
        for row in rows
        if row["version"] in ROOM_VERSIONS
    ]
