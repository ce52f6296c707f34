"""Where stored events have their place in a room: what new events that name them build on.

That a row is of the room is checked here, not in the queries: as long as there are few events, PostgreSQL may
choose to look for them in the index of the room, and keeps to that plan while the room grows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.packed_state import Key
from storage.room_heads import RoomRef, stored_event


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """An event that is stored, in the room that was asked for."""

    nid: int
    event_id: EventId
    seq: int | None
    """Its room_seq; None for one that has no place in the timeline."""
    flags: int
    state_ver: int | None
    state_delta: int | None
    key: Key | None
    """Of a state event."""

    @property
    def is_outlier(self) -> bool:
        """Whether the state before it is not known: it was fetched as part of a state or an auth chain."""
        return self.seq is None and not self.is_refused

    @property
    def has_state_before(self) -> bool:
        """Whether the state before it is known."""
        return self.seq is not None or self.state_ver is not None

    @property
    def is_unchecked(self) -> bool:
        """Whether it came out-of-band, and nothing has checked whether its room allows it."""
        return bool(self.flags & EventFlag.UNCHECKED)

    @property
    def is_refused(self) -> bool:
        """Whether it was rejected or soft-failed."""
        return bool(self.flags & (EventFlag.REJECTED | EventFlag.SOFT_FAILED))

    @property
    def is_rejected(self) -> bool:
        """Whether it was rejected: then it is no part of any state."""
        return bool(self.flags & EventFlag.REJECTED)

    @property
    def is_sole(self) -> bool:
        """Whether the state after it is trunk(seq)."""
        return self.seq is not None and bool(self.flags & EventFlag.SOLE)

    @property
    def before_ver(self) -> int:
        """The version of the trunk that the state before it builds on."""
        if self.state_ver is not None:
            return self.state_ver
        assert self.seq is not None
        return self.seq - 1


async def load(tx: Transaction, room_nid: int, event_ids: Collection[EventId]) -> dict[EventId, StoredPlace]:
    """Those of some events that are stored in a room."""
    rows = await tx.fetch(
        """
        SELECT room_nid, nid, event_id, room_seq, flags, state_ver, state_delta, type_nid, skey_nid
        FROM events WHERE event_id = ANY($1::bytea[])
        """,
        [encode_event_id(event_id) for event_id in event_ids],
    )
    places = (
        StoredPlace(
            row["nid"],
            decode_event_id(row["event_id"]),
            row["room_seq"],
            row["flags"],
            row["state_ver"],
            row["state_delta"],
            None if row["skey_nid"] is None else (row["type_nid"], row["skey_nid"]),
        )
        for row in rows
        if row["room_nid"] == room_nid
    )
    return {place.event_id: place for place in places}


@dataclass(frozen=True, slots=True)
class StoredBody:
    """An event that is stored, itself."""

    nid: int
    flags: int
    has_place: bool
    """Whether it has its place, so that its verdict stays. An outlier may be rejected when it gets one."""
    pdu: Pdu

    @property
    def is_rejected(self) -> bool:
        """Whether it was rejected."""
        return bool(self.flags & EventFlag.REJECTED)


async def bodies(tx: Transaction, room: RoomRef, event_ids: Collection[EventId]) -> dict[EventId, StoredBody]:
    """Those of some events that are stored in a room, whatever their place; redacted ones pruned.

    What came out-of-band and was never checked is left out.
    """
    rows = await tx.fetch(
        """
        SELECT room_nid, nid, room_seq, state_ver, event_id, flags, json FROM events
        WHERE event_id = ANY($1::bytea[]) AND flags & $2 = 0
        """,
        [encode_event_id(event_id) for event_id in event_ids],
        EventFlag.UNCHECKED,
    )
    found = (_body(room, row) for row in rows if row["room_nid"] == room.nid)
    return {body.pdu.event_id: body for body in found}


async def bodies_by_nid(tx: Transaction, room: RoomRef, nids: Collection[int]) -> dict[int, StoredBody]:
    """Some events of a room by their numbers; redacted ones pruned."""
    rows = await tx.fetch(
        """
        SELECT room_nid, nid, room_seq, state_ver, event_id, flags, json FROM events
        WHERE nid = ANY($1::bigint[])
        """,
        list(nids),
    )
    return {row["nid"]: _body(room, row) for row in rows if row["room_nid"] == room.nid}


def _body(room: RoomRef, row: Mapping[str, Any]) -> StoredBody:
    has_place = row["room_seq"] is not None or row["state_ver"] is not None
    return StoredBody(row["nid"], row["flags"], has_place, stored_event(room, row).pdu)


async def rejected_among(tx: Transaction, nids: Collection[int]) -> set[int]:
    """Those of some events that are rejected."""
    rows = await tx.fetch(
        "SELECT nid FROM events WHERE nid = ANY($1::bigint[]) AND flags & $2 <> 0",
        list(nids),
        EventFlag.REJECTED,
    )
    return {row["nid"] for row in rows}


async def are_missing(tx: Transaction, room_nid: int, event_ids: Collection[EventId]) -> set[EventId]:
    """Those of some events that stored events have among their prev_events, while they are not here."""
    rows = await tx.fetch(
        "SELECT DISTINCT event_id FROM missing_prev WHERE room_nid = $1 AND event_id = ANY($2::bytea[])",
        room_nid,
        [encode_event_id(event_id) for event_id in event_ids],
    )
    return {decode_event_id(row["event_id"]) for row in rows}


async def first_depth(tx: Transaction, room_nid: int) -> int:
    """The depth that the first live event of a room says it has: after a join, that of the join."""
    query = "SELECT depth FROM events WHERE room_nid = $1 AND room_seq = 1 AND sub = 0"
    return await tx.fetchval(query, room_nid) or 0
