"""Storing events without a place in their room: parts of states and auth chains that were fetched.

Outside of the lock, in short chunks that commit by themselves, each sorted by event ID: so two who store the
same events wait for each other a moment at most, and nobody else does. Auth events come before those that
name them: wherever that breaks off, all that is stored has its auth events.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.errors import Unavailable
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_batch import is_for_servers_only
from storage.event_codec import CODEC, encode_event
from storage.event_flags import EventFlag
from storage.links import Links

ROWS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Outlier:
    """An event that is to be stored, with the numbers that are known of it."""

    nid: int
    pdu: Pdu
    canonical: bytes
    """The event in canonical JSON."""
    auth_nids: tuple[int, ...]
    flags: int = 0
    """REJECTED or nothing."""


async def insert(
    database: Database, dictionaries: Dictionaries, room_nid: int, outliers: Sequence[Outlier], recv_ts: int
) -> dict[EventId, int]:
    """Store events, of which each comes after its auth events; returns the number of each by its ID.

    An event that is there already keeps its own number, which those that name it get to know. Raises
    Unavailable where its ID is that of an event of another room.
    """
    texts = {text for one in outliers for text in (one.pdu.sender, one.pdu.state_key) if text is not None}
    atoms = await dictionaries.atoms.nids(texts)
    types = await dictionaries.event_types.nids({one.pdu.type for one in outliers})
    nids: dict[EventId, int] = {}
    moved: dict[int, int] = {}
    """By the numbers that were meant for them: those of events that somebody else stored before."""
    for start in range(0, len(outliers), ROWS_AT_ONCE):
        chunk = outliers[start : start + ROWS_AT_ONCE]
        async with database.connection() as tx:
            async with tx.transaction():
                stored = await _insert_chunk(tx, room_nid, chunk, moved, atoms, types, recv_ts)
                late = {one.nid: nid for one in chunk if (nid := stored[one.pdu.event_id]) != one.nid}
                await _relink(tx, stored.values(), late)
            await _apply_redactions(tx, room_nid, stored.values())
        nids |= stored
        moved |= late
    return nids


async def _relink(tx: Transaction, nids: Collection[int], moved: Mapping[int, int]) -> None:
    """Events of one chunk name others of it under numbers that those did not get."""
    for wrong, right in moved.items():
        await tx.execute(
            """
            UPDATE events SET auth = array_replace(auth, $2, $3)
            WHERE nid = ANY($1::bigint[]) AND $2 = ANY(auth)
            """,
            list(nids),
            wrong,
            right,
        )


async def _apply_redactions(tx: Transaction, room_nid: int, nids: Collection[int]) -> None:
    """Redactions may have come before the events that they redact."""
    await tx.execute(
        """
        SELECT apply_redactions($2::bigint[], '{}', '{}', '{}')
        WHERE (SELECT target FROM redactions WHERE room_nid = $1 ORDER BY target LIMIT 1) IS NOT NULL
        """,
        room_nid,
        list(nids),
    )


async def _insert_chunk(
    tx: Transaction,
    room_nid: int,
    outliers: Sequence[Outlier],
    moved: Mapping[int, int],
    atoms: Mapping[str, int],
    types: Mapping[str, int],
    recv_ts: int,
) -> dict[EventId, int]:
    chunk = sorted(((encode_event_id(one.pdu.event_id), one) for one in outliers), key=lambda row: row[0])
    links = Links()
    slices = [links.add(moved.get(nid, nid) for nid in one.auth_nids) for _, one in chunk]
    inserted = await tx.fetch(
        """
        INSERT INTO events (nid, room_nid, room_seq, sub, depth, ts, recv_ts, type_nid, sender_nid, skey_nid,
                            flags, auth, event_id, json)
        SELECT e.nid, $1, NULL, 0, e.depth, e.ts, $2, e.type, e.sender, e.skey,
               e.flags, CASE WHEN e.skey IS NOT NULL THEN ($3::bigint[])[e.auth_from:e.auth_to] END,
               e.event_id, e.json
        FROM unnest($4::bigint[], $5::bigint[], $6::bigint[], $7::int[], $8::bigint[], $9::bigint[],
                    $10::int[], $11::int[], $12::int[], $13::bytea[], $14::bytea[])
             AS e(nid, depth, ts, type, sender, skey, flags, auth_from, auth_to, event_id, json)
        ON CONFLICT (event_id) DO UPDATE SET flags = excluded.flags, auth = excluded.auth
            WHERE events.flags & $15 <> 0 AND events.room_nid = excluded.room_nid
        RETURNING nid, event_id
        """,
        room_nid,
        recv_ts,
        links.nids,
        [one.nid for _, one in chunk],
        [one.pdu.depth for _, one in chunk],
        [one.pdu.origin_server_ts for _, one in chunk],
        [types[one.pdu.type] for _, one in chunk],
        [atoms[one.pdu.sender] for _, one in chunk],
        [None if one.pdu.state_key is None else atoms[one.pdu.state_key] for _, one in chunk],
        [one.flags | _flags_of(one.pdu) for _, one in chunk],
        [first for first, _ in slices],
        [last for _, last in slices],
        [stored_id for stored_id, _ in chunk],
        [encode_event(one.canonical) for _, one in chunk],
        EventFlag.UNCHECKED,  # what came out-of-band is checked now
    )
    nids = {decode_event_id(row["event_id"]): row["nid"] for row in inserted}
    known = [stored_id for stored_id, one in chunk if one.pdu.event_id not in nids]
    if known:
        query = "SELECT nid, event_id FROM events WHERE event_id = ANY($1::bytea[]) AND room_nid = $2"
        rows = await tx.fetch(query, known, room_nid)
        nids |= {decode_event_id(row["event_id"]): row["nid"] for row in rows}
        if len(nids) < len(chunk):  # where servers choose event IDs, and the gate had not seen it yet
            raise Unavailable("another room has got an event with the same ID just now; try again")
    return nids


def _flags_of(pdu: Pdu) -> int:
    return CODEC | EventFlag.SERVERS_ONLY if is_for_servers_only(pdu) else CODEC
