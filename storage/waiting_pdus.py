"""Table waiting_pdus: events from outside that were verified and wait for their turn in their room."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.database import Transaction
from storage.event_codec import CODEC, decode_event, encode_event
from storage.room_heads import RoomRef


async def add(tx: Transaction, room_nid: int, origin: ServerName, pdus: Sequence[Pdu]) -> None:
    """Let events wait, behind those that wait already."""
    query = """
        INSERT INTO waiting_pdus (room_nid, event_id, origin, json)
        SELECT $1, waiting.event_id, $2, waiting.json
        FROM unnest($3::bytea[], $4::bytea[]) AS waiting(event_id, json)
        ON CONFLICT DO NOTHING
    """
    await tx.execute(
        query,
        room_nid,
        origin,
        [encode_event_id(pdu.event_id) for pdu in pdus],
        [encode_event(canonical_json(pdu.json)) for pdu in pdus],
    )


async def oldest(tx: Transaction, room: RoomRef, origin: ServerName, limit: int) -> list[Pdu]:
    """The events that a server sent for a room and that wait longest, in the order of their arrival."""
    rows = await tx.fetch(
        """
        SELECT event_id, json FROM waiting_pdus WHERE room_nid = $1 AND origin = $2 ORDER BY number LIMIT $3
        """,
        room.nid,
        origin,
        limit,
    )
    return [
        stored_pdu(room.room_id, decode_event_id(row["event_id"]), decode_event(CODEC, row["json"]))
        for row in rows
    ]


async def remove(tx: Transaction, room_nid: int, event_ids: Collection[EventId]) -> None:
    """These events do not wait any more."""
    await tx.execute(
        "DELETE FROM waiting_pdus WHERE room_nid = $1 AND event_id = ANY($2::bytea[])",
        room_nid,
        [encode_event_id(event_id) for event_id in event_ids],
    )


async def counts(tx: Transaction, room_nid: int, origin: ServerName) -> tuple[int, int]:
    """How many events wait in a room, and how many of them are from one server."""
    query = "SELECT count(*), count(*) FILTER (WHERE origin = $2) FROM waiting_pdus WHERE room_nid = $1"
    waiting, of_server = await tx.fetchrow(query, room_nid, origin)
    return waiting, of_server


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
