"""What decides which events of a room a server may see: the visibility, and what its users were."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from homeserver.protocol.identifiers import ServerName
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_codec import decode_event
from storage.packed_state import Key


class MemberChange(NamedTuple):
    """From which version of the trunk on a user has a membership, by a member event or without any."""

    ver: int
    user_nid: int
    flags: int
    json: bytes | None

    @property
    def membership(self) -> object:
        """content.membership; None where the trunk has no event of the user any more."""
        return None if self.json is None else decode_event(self.flags, self.json)["content"].get("membership")


async def entries_at(tx: Transaction, room_nid: int, key: Key, vers: Collection[int]) -> dict[int, int]:
    """The number of the event of one key at versions of the trunk, 0 for none any more; not all have one."""
    rows = await tx.fetch(
        """
        SELECT at.ver, newest.event_nid FROM unnest($4::bigint[]) AS at(ver)
        CROSS JOIN LATERAL (
            SELECT event_nid FROM room_state_log AS log
            WHERE log.room_nid = $1 AND log.type_nid = $2 AND log.skey_nid = $3 AND log.ver <= at.ver
            ORDER BY log.ver DESC LIMIT 1
        ) AS newest
        """,
        room_nid,
        *key,
        list(vers),
    )
    return {row["ver"]: row["event_nid"] for row in rows}


async def users_of_server(tx: Transaction, room_nid: int, server_name: ServerName, most: int) -> list[int]:
    """Users of a server who have, or had, to do with a room: those in it first, then those known longest."""
    rows = await tx.fetch(
        """
        SELECT user_nid FROM memberships
        WHERE room_nid = $1 AND server_nid = (SELECT nid FROM atoms WHERE s = $2)
        ORDER BY membership, user_nid LIMIT $3
        """,
        room_nid,
        server_name.encode(),
        most,
    )
    return [row["user_nid"] for row in rows]


async def member_changes(
    tx: Transaction, room_nid: int, user_nids: Collection[int], first: int, last: int, most: int
) -> list[MemberChange]:
    """What users were at one version of the trunk, and what changed up to another one, in that order."""
    rows = await tx.fetch(
        """
        SELECT change.ver, member.nid, coalesce(events.flags, 0), events.json
        FROM unnest($2::bigint[]) AS member(nid)
        CROSS JOIN LATERAL (
            (
                SELECT ver, event_nid FROM room_state_log
                WHERE room_nid = $1 AND type_nid = $3 AND skey_nid = member.nid AND ver <= $4
                ORDER BY ver DESC LIMIT 1
            )
            UNION ALL
            SELECT ver, event_nid FROM room_state_log
            WHERE room_nid = $1 AND type_nid = $3 AND skey_nid = member.nid AND ver > $4 AND ver <= $5
        ) AS change
        LEFT JOIN events ON events.nid = change.event_nid
        ORDER BY change.ver LIMIT $6
        """,
        room_nid,
        list(user_nids),
        MEMBER_TYPE_NID,
        first,
        last,
        most,
    )
    return [MemberChange(*row) for row in rows]
