"""Table oob_membership: what users of this server are in rooms that it is not in, because they were invited.

Such a row counts until the room's own state says something newer of the user: then it goes, or is older than
the row of the user in `memberships`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId, ServerName, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from storage.database import Database, Transaction
from storage.dictionaries import MEMBER_TYPE_NID, Dictionaries
from storage.event_codec import CODEC, encode_pdu
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.nids import NidBlocks
from storage.persist_connection import BUSY, MAX_BUSY, PAUSE_WHEN_BUSY_S
from storage.room_heads import RoomRef, stored_event

_STORE: Final = "SELECT store_out_of_band({})".format(", ".join(f"${number}" for number in range(1, 18)))


@dataclass(frozen=True, slots=True)
class Standing:
    """What a user is in a room, by its newest member event here, and whether this server is in the room."""

    room: RoomRef
    is_resident: bool
    """Whether a user of this server is in the room."""
    is_empty: bool
    """Whether nobody at all is in the room any more, as far as is known here."""
    membership: Membership | None
    """None for one who was never a member."""
    out_of_band: bool
    event_nid: int | None
    event: Pdu | None
    """None also for one whom a state resolution took out of the room."""
    kept_out_of: int | None = None
    """The number of the join in the room's state for one who is not in the room: a resolution brought it
    there, and that moves nobody."""

    @property
    def is_ours(self) -> bool:
        """Whether the room's state is known here: no other server knows a newer one without telling us."""
        return self.is_resident or (self.is_empty and not self.out_of_band)


async def standing(tx: Transaction, room_id: RoomId, user_nid: int, server_nid: int) -> Standing | None:
    """What a user of this server is in a room; None for a room not known, or of an unknown version."""
    # The lowest membership, a join, is found in an index; for one that EXISTS the table might be searched.
    row = await tx.fetchrow(
        """
        SELECT rooms.nid AS room_nid, coalesce(newest.version, rooms.version) AS version,
               newest.membership, newest.out_of_band, newest.event_nid,
               events.nid, event_id, events.flags, json,
               (SELECT CASE WHEN log.event_nid IS DISTINCT FROM own.event_nid THEN log.event_nid END
                FROM room_state_log AS log
                LEFT JOIN memberships AS own ON own.user_nid = log.skey_nid AND own.room_nid = log.room_nid
                WHERE log.room_nid = rooms.nid AND log.type_nid = $4 AND log.skey_nid = $2
                ORDER BY log.ver DESC LIMIT 1) AS kept_out_of,
               coalesce((SELECT min(membership) FROM memberships AS local
                         WHERE local.room_nid = rooms.nid AND local.server_nid = $3) = 1, false)
                   AS is_resident,
               coalesce((SELECT min(membership) FROM memberships AS somebody
                         WHERE somebody.room_nid = rooms.nid) > 1, false) AS is_empty
        FROM rooms
        LEFT JOIN LATERAL (
            SELECT membership, event_nid, pos, false AS out_of_band, NULL AS version FROM memberships
            WHERE user_nid = $2 AND room_nid = rooms.nid
            UNION ALL
            SELECT membership, event_nid, pos, true, version FROM oob_membership
            WHERE user_nid = $2 AND room_nid = rooms.nid
            ORDER BY pos DESC LIMIT 1
        ) AS newest ON true
        LEFT JOIN events ON events.nid = newest.event_nid
        WHERE rooms.room_id = $1
        """,
        room_id,
        user_nid,
        server_nid,
        MEMBER_TYPE_NID,
    )
    if row is None or row["version"] not in ROOM_VERSIONS:
        return None
    room = RoomRef(row["room_nid"], room_id, ROOM_VERSIONS[row["version"]])
    return Standing(
        room=room,
        is_resident=row["is_resident"],
        is_empty=row["is_empty"],
        membership=None if row["membership"] is None else Membership(row["membership"]),
        out_of_band=bool(row["out_of_band"]),
        event_nid=row["event_nid"],
        event=None if row["nid"] is None else stored_event(room, row).pdu,
        kept_out_of=row["kept_out_of"],
    )


async def version_of(tx: Transaction, room_id: RoomId) -> str | None:
    """The version of a room, which may be one that this server does not speak; None for an unknown room."""
    version: str | None = await tx.fetchval("SELECT version FROM rooms WHERE room_id = $1", room_id)
    return version


async def stripped_states(tx: Transaction, user_nid: int, room_nids: Collection[int]) -> dict[int, bytes]:
    """The stripped state that came with invites of a user, as a JSON list, by the rooms' numbers."""
    rows = await tx.fetch(
        "SELECT room_nid, stripped FROM oob_membership WHERE user_nid = $1 AND room_nid = ANY($2::bigint[])",
        user_nid,
        list(room_nids),
    )
    return {row["room_nid"]: row["stripped"] for row in rows}


@dataclass(frozen=True, slots=True)
class OutOfBandEvent:
    """A member event of a local user, for a room that this server is not in."""

    version: RoomVersion
    pdu: Pdu
    membership: Membership
    expected: int | None = None
    """The number of the member event that must still be the user's newest; None for any, or none."""
    stripped: bytes | None = None
    """What the user sees of the room, as a JSON list; None for what is known already."""
    is_unsigned: bool = False
    """Whether it is ours and never leaves this server."""


class OutOfBandStore:
    """Stores member events out-of-band. What is stored has to be told by the stream then."""

    def __init__(self, database: Database, dictionaries: Dictionaries, server_name: ServerName) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._server_name = server_name
        self._nids = NidBlocks(database)

    async def server_nid(self) -> int:
        """The number of this server's name."""
        return await self._dictionaries.atoms.nid(self._server_name)

    async def user_nid(self, user_id: UserId) -> int | None:
        """The number of a user; None for one whom nothing here names."""
        return await self._dictionaries.atoms.find_nid(user_id)

    async def store(self, event: OutOfBandEvent, recv_ts: int) -> bool:
        """Store an event for the user it is about; False where nothing changes.

        That is so where it is stored already, a user of this server is in the room, or the user's newest
        member event is not the expected one any more.
        """
        pdu = event.pdu
        user_id = pdu.key[1]
        atoms = await self._dictionaries.atoms.nids([user_id, pdu.sender, self._server_name])
        await self._nids.reserve(2)
        flags = CODEC | EventFlag.UNCHECKED | (EventFlag.UNSIGNED if event.is_unsigned else 0)
        arguments = (
            self._nids.take(), pdu.room_id, event.version.version, atoms[self._server_name],
            atoms[user_id], event.membership, event.expected, event.stripped,
            self._nids.take(), encode_event_id(pdu.event_id), MEMBER_TYPE_NID, atoms[pdu.sender], pdu.depth,
            pdu.origin_server_ts, recv_ts, flags, encode_pdu(event.version, pdu),
        )  # fmt: skip
        for attempt in range(MAX_BUSY):
            try:
                async with self._database.connection() as tx:
                    return await tx.fetchval(_STORE, *arguments) is not None
            except BUSY:
                # Another session held a row for 200 ms; nothing was stored, and the lock is free meanwhile.
                if attempt == MAX_BUSY - 1:
                    raise
                await asyncio.sleep(PAUSE_WHEN_BUSY_S)
        raise AssertionError  # the loop returns or raises
