"""Table waiting_pdus: events from outside that were verified and wait for their turn in their room."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.database import Transaction
from storage.event_codec import CODEC, decode_event, encode_event
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class WaitingPdu:
    """An event that waits, and the server that sent it."""

    pdu: Pdu
    origin: ServerName


async def add(tx: Transaction, room_nid: int, origin: ServerName, pdus: Sequence[Pdu], recv_ts: int) -> None:
    """Let events wait, behind those that wait already."""
    query = """
        INSERT INTO waiting_pdus (room_nid, event_id, origin, recv_ts, json)
        SELECT $1, waiting.event_id, $2, $3, waiting.json
        FROM unnest($4::bytea[], $5::bytea[]) AS waiting(event_id, json)
        ON CONFLICT DO NOTHING
    """
    await tx.execute(
        query,
        room_nid,
        origin,
        recv_ts,
        [encode_event_id(pdu.event_id) for pdu in pdus],
        [encode_event(canonical_json(pdu.json)) for pdu in pdus],
    )


async def oldest(tx: Transaction, room: RoomRef, limit: int) -> list[WaitingPdu]:
    """The events of a room that wait longest, in the order of their arrival."""
    rows = await tx.fetch(
        "SELECT event_id, origin, json FROM waiting_pdus WHERE room_nid = $1 ORDER BY number LIMIT $2",
        room.nid,
        limit,
    )
    return [
        WaitingPdu(
            stored_pdu(room.room_id, decode_event_id(row["event_id"]), decode_event(CODEC, row["json"])),
            ServerName(row["origin"]),
        )
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


async def rooms(tx: Transaction) -> list[RoomRef]:
    """The rooms in which events wait."""
    rows = await tx.fetch(
        "SELECT nid, room_id, version FROM rooms WHERE nid IN (SELECT room_nid FROM waiting_pdus)"
    )
    return [
        RoomRef(row["nid"], RoomId(row["room_id"]), ROOM_VERSIONS[row["version"]])
        for row in rows
        if row["version"] in ROOM_VERSIONS
    ]
