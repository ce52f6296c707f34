"""Storing events without a place in their room: parts of states and auth chains that were fetched.

Outside of the lock, in short chunks that commit by themselves, sorted by event ID: so two who store the same
events wait for each other a moment at most, and nobody else does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries, Dictionary
from storage.event_batch import is_for_servers_only
from storage.event_codec import CODEC, encode_event
from storage.event_flags import EventFlag

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
    """Store events; returns the number of each by its ID: an event that is there already keeps its own."""
    texts = {text for one in outliers for text in (one.pdu.sender, one.pdu.state_key) if text is not None}
    atoms = await _numbers_of(dictionaries.atoms, texts)
    types = await _numbers_of(dictionaries.event_types, {one.pdu.type for one in outliers})
    by_stored_id = sorted(
        ((encode_event_id(one.pdu.event_id), one) for one in outliers), key=lambda row: row[0]
    )
    nids: dict[EventId, int] = {}
    for start in range(0, len(by_stored_id), ROWS_AT_ONCE):
        chunk = by_stored_id[start : start + ROWS_AT_ONCE]
        async with database.connection() as tx:
            nids |= await _insert_chunk(tx, room_nid, chunk, atoms, types, recv_ts)
    moved = {one.nid: nid for one in outliers if (nid := nids[one.pdu.event_id]) != one.nid}
    if moved:  # somebody else was first
        async with database.connection() as tx:
            for wrong, right in moved.items():
                await _relink(tx, nids.values(), wrong, right)
    return nids


async def _relink(tx: Transaction, nids: Collection[int], wrong: int, right: int) -> None:
    """Some events name an auth event under a number that it did not get."""
    query = """
        UPDATE events SET auth = array_replace(auth, $2, $3)
        WHERE nid = ANY($1::bigint[]) AND $2 = ANY(auth)
    """
    await tx.execute(query, list(nids), wrong, right)


async def _insert_chunk(
    tx: Transaction,
    room_nid: int,
    chunk: Sequence[tuple[bytes, Outlier]],
    atoms: Mapping[str, int],
    types: Mapping[str, int],
    recv_ts: int,
) -> dict[EventId, int]:
    links: list[int] = []
    auth_from, auth_to = [], []
    for _, one in chunk:
        auth_from.append(len(links) + 1)
        links.extend(one.auth_nids)
        auth_to.append(len(links))
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
            WHERE events.flags & $15 <> 0
        RETURNING nid, event_id
        """,
        room_nid,
        recv_ts,
        links,
        [one.nid for _, one in chunk],
        [one.pdu.depth for _, one in chunk],
        [one.pdu.origin_server_ts for _, one in chunk],
        [types[one.pdu.type] for _, one in chunk],
        [atoms[one.pdu.sender] for _, one in chunk],
        [None if one.pdu.state_key is None else atoms[one.pdu.state_key] for _, one in chunk],
        [one.flags | _flags_of(one.pdu) for _, one in chunk],
        auth_from,
        auth_to,
        [stored_id for stored_id, _ in chunk],
        [encode_event(one.canonical) for _, one in chunk],
        EventFlag.UNCHECKED,  # what came out-of-band is checked now
    )
    await tx.execute(
        """
        SELECT apply_redactions($2::bigint[], '{}', '{}', '{}')
        WHERE EXISTS (SELECT FROM redactions WHERE room_nid = $1)
        """,
        room_nid,
        [row["nid"] for row in inserted],
    )
    nids = {decode_event_id(row["event_id"]): row["nid"] for row in inserted}
    known = [stored_id for stored_id, one in chunk if one.pdu.event_id not in nids]
    if known:
        rows = await tx.fetch("SELECT nid, event_id FROM events WHERE event_id = ANY($1::bytea[])", known)
        nids |= {decode_event_id(row["event_id"]): row["nid"] for row in rows}
    return nids


def _flags_of(pdu: Pdu) -> int:
    return CODEC | EventFlag.SERVERS_ONLY if is_for_servers_only(pdu) else CODEC


async def _numbers_of(dictionary: Dictionary, texts: Iterable[str]) -> dict[str, int]:
    """The numbers of texts, which are added a few at a time: others may want to add the same."""
    found: dict[str, int] = {}
    ordered = sorted(texts)
    for start in range(0, len(ordered), ROWS_AT_ONCE):
        found |= await dictionary.nids(ordered[start : start + ROWS_AT_ONCE])
    return found
