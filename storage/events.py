"""Table events: reading events by ID."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.strict_json import JsonObject
from storage.database import Transaction
from storage.event_codec import decode_event
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef, stored_event


async def event_ids_of(tx: Transaction, nids: Iterable[int]) -> dict[int, EventId]:
    """The IDs of events, by their numbers."""
    rows = await tx.fetch("SELECT nid, event_id FROM events WHERE nid = ANY($1::bigint[])", list(nids))
    return {row["nid"]: decode_event_id(row["event_id"]) for row in rows}


async def stored_event_ids(tx: Transaction, event_ids: Iterable[EventId]) -> set[EventId]:
    """Those of the events that are stored."""
    rows = await tx.fetch(
        "SELECT event_id FROM events WHERE event_id = ANY($1::bytea[])",
        [encode_event_id(event_id) for event_id in event_ids],
    )
    return {decode_event_id(row["event_id"]) for row in rows}


async def begins_with_create(tx: Transaction, room_id: RoomId) -> bool:
    """Whether all of a room's history is here: its first event made the room, and was no join to it."""
    query = """
        SELECT name = 'm.room.create' FROM rooms
        JOIN events ON room_nid = rooms.nid AND room_seq = 1 AND sub = 0
        JOIN event_types ON event_types.nid = type_nid WHERE room_id = $1
    """
    return bool(await tx.fetchval(query, room_id))


async def load(tx: Transaction, room_id: RoomId, event_id: EventId) -> Pdu | None:
    """A live event of a room; None for one that is not there, or that no client may see."""
    row = await tx.fetchrow(
        """
        SELECT rooms.nid AS room_nid, version, events.nid, event_id, events.flags, json
        FROM events JOIN rooms ON rooms.nid = events.room_nid
        WHERE event_id = $1 AND room_id = $2 AND room_seq IS NOT NULL AND events.flags & $3 = 0
        """,
        encode_event_id(event_id),
        room_id,
        EventFlag.NOT_FOR_CLIENTS,
    )
    if row is None:
        return None
    room = RoomRef(row["room_nid"], room_id, room_version(row["version"]))
    return stored_event(room, row).pdu


async def stored_under(
    tx: Transaction, event_ids: Collection[EventId]
) -> dict[EventId, tuple[RoomId, JsonObject]]:
    """The events of any room that are stored under some IDs, each with its room; unredacted."""
    rows = await tx.fetch(
        """
        SELECT event_id, room_id, events.flags, json FROM events JOIN rooms ON rooms.nid = events.room_nid
        WHERE event_id = ANY($1::bytea[])
        """,
        [encode_event_id(event_id) for event_id in event_ids],
    )
    return {
        decode_event_id(row["event_id"]): (RoomId(row["room_id"]), decode_event(row["flags"], row["json"]))
        for row in rows
    }
