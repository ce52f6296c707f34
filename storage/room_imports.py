"""Rooms that this server is about to enter: what is stored of them before our join is.

All of it is written outside of the stream lock, in short chunks that commit by themselves: nobody looks at it
before the join is published. What an attempt leaves that came to nothing is deleted by the next one, which
takes the lease of the room: from then on the earlier one, should it still be at work, changes nothing of the
room any more. Of what it still stores there are only outliers, which the later one may use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from homeserver.errors import Unavailable
from homeserver.protocol.canonical_json import write_json
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject, parse_json_object
from storage.database import Database, Transaction
from storage.memberships import Membership
from storage.packed_state import StateEntries
from storage.room_heads import RoomRef

ROWS_AT_ONCE: Final = 500
PAUSE_MS: Final = 15 * 1000
"""How long a join that broke off waits when it was tried again; each time twice as long, and this more."""
MAX_PAUSE_MS: Final = 60 * 60 * 1000

_NO_LIVE_EVENT: Final = "(SELECT max(room_seq) FROM events WHERE events.room_nid = $1) IS NULL"
"""Told by an index. PostgreSQL might look for an event that does NOT EXIST in the whole table."""
_DONE: Final = "leased_until < $1 AND events.nid = join_nid AND events.room_seq IS NOT NULL"
_OF_AN_ATTEMPT: Final = ("room_state_log", "state_snap", "memberships", "room_servers")


class Member(NamedTuple):
    """What a user is in the imported state."""

    user_nid: int
    server_nid: int
    membership: Membership
    event_nid: int


async def open_room(tx: Transaction, room_id: RoomId, version: RoomVersion, new_nid: int) -> RoomRef:
    """A room's row, which is made where there is none: `new_nid` is its number then.

    The version that another server claimed earlier, inviting somebody, gives way while no event is live.
    """
    await tx.execute(
        "INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, $3) ON CONFLICT (room_id) DO NOTHING",
        new_nid,
        room_id,
        version.version,
    )
    nid = await tx.fetchval("SELECT nid FROM rooms WHERE room_id = $1", room_id)
    query = f"UPDATE rooms SET version = $2 WHERE nid = $1 AND version <> $2 AND {_NO_LIVE_EVENT}"  # noqa: S608
    await tx.execute(query, nid, version.version)
    row = await tx.fetchrow("SELECT version FROM rooms WHERE nid = $1", nid)
    return RoomRef(nid, room_id, room_version(row["version"]))


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """What is wanted: enough to try again, should the process end meanwhile."""

    user_id: UserId
    room_id: RoomId
    content: JsonObject
    servers: Sequence[str]
    attempts: int = 0
    """How often it was tried again since it broke off."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What an attempt to join a room has to hold whenever it writes; it may have lost it."""

    room_nid: int
    number: int
    """Each lease has another one."""
    had_broken_off: bool
    """Whether an earlier join is still to be made, should this attempt fail."""


class LeaseLost(Unavailable):
    """An attempt to join a room took so long that another one has begun."""


async def take_lease(
    tx: Transaction, room_nid: int, join: PendingJoin, now: int, leased_until: int
) -> Lease | None:
    """Be the only one that joins a room until a time in ms; None where somebody else does.

    Where an earlier join broke off, that one stays what is wanted.
    """
    query = f"DELETE FROM room_joins USING events WHERE {_DONE} AND room_joins.room_nid = $2"  # noqa: S608
    await tx.execute(query, now, room_nid)
    query = """
        UPDATE room_joins SET leased_until = $3, number = DEFAULT, join_nid = NULL
        WHERE room_nid = $1 AND leased_until < $2 RETURNING number
    """
    if (number := await tx.fetchval(query, room_nid, now, leased_until)) is not None:
        return Lease(room_nid, number, had_broken_off=True)
    query = """
        INSERT INTO room_joins (room_nid, leased_until, user_id, content, servers, attempts)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (room_nid) DO NOTHING RETURNING number
    """
    content = write_json(join.content)
    number = await tx.fetchval(
        query, room_nid, leased_until, join.user_id, content, list(join.servers), join.attempts
    )
    return None if number is None else Lease(room_nid, number, had_broken_off=False)


async def take_broken_off(tx: Transaction, now: int) -> list[tuple[RoomRef, PendingJoin]]:
    """Joins to be tried again: their process has died, or they failed some time ago; longer, the more often.

    Those that are published already have only not been told to be over: now they are.
    """
    await tx.execute(f"DELETE FROM room_joins USING events WHERE {_DONE}", now)  # noqa: S608
    rows = await tx.fetch(
        """
        UPDATE room_joins SET attempts = attempts + 1, leased_until = $1::bigint - 1 FROM rooms
        WHERE rooms.nid = room_nid AND leased_until + least($2 * (2 ^ attempts - 1), $3) < $1::bigint
        RETURNING room_nid, room_id, version, user_id, content, servers, attempts
        """,
        now,
        float(PAUSE_MS),
        float(MAX_PAUSE_MS),
    )
    return [
        (
            RoomRef(row["room_nid"], RoomId(row["room_id"]), room_version(row["version"])),
            PendingJoin(
                UserId(row["user_id"]),
                RoomId(row["room_id"]),
                parse_json_object(row["content"]),
                row["servers"],
                row["attempts"],
            ),
        )
        for row in rows
    ]


async def give_up(tx: Transaction, room_nid: int, now: int) -> None:
    """Do not try a join again that broke off; one that somebody else makes just now goes on."""
    await tx.execute("DELETE FROM room_joins WHERE room_nid = $1 AND leased_until < $2", room_nid, now)


async def extend_lease(tx: Transaction, lease: Lease, leased_until: int) -> None:
    """The attempt goes on. Raises LeaseLost."""
    query = """
        UPDATE room_joins SET leased_until = $3 WHERE room_nid = $1 AND number = $2 RETURNING true
    """
    _check(await tx.fetchval(query, lease.room_nid, lease.number, leased_until))


async def end_lease(tx: Transaction, lease: Lease) -> None:
    """The attempt has ended, and no other is to be made."""
    query = "DELETE FROM room_joins WHERE room_nid = $1 AND number = $2"
    await tx.execute(query, lease.room_nid, lease.number)


async def break_off(tx: Transaction, lease: Lease, now: int) -> None:
    """The attempt has come to nothing, and another is to be made."""
    query = "UPDATE room_joins SET leased_until = $3 WHERE room_nid = $1 AND number = $2"
    await tx.execute(query, lease.room_nid, lease.number, now - 1)


async def announce(tx: Transaction, lease: Lease, join_nid: int) -> None:
    """Tell with which event the attempt enters the room: `persist` publishes no other. Raises LeaseLost."""
    query = "UPDATE room_joins SET join_nid = $3 WHERE room_nid = $1 AND number = $2 RETURNING true"
    _check(await tx.fetchval(query, lease.room_nid, lease.number, join_nid))


@asynccontextmanager
async def leased(database: Database, lease: Lease) -> AsyncIterator[Transaction]:
    """A transaction of an attempt: nobody else takes the lease before it ends. Raises LeaseLost."""
    async with database.transaction() as tx:
        query = "SELECT true FROM room_joins WHERE room_nid = $1 AND number = $2 FOR SHARE"
        _check(await tx.fetchval(query, lease.room_nid, lease.number))
        yield tx


def _check(is_held: bool | None) -> None:
    if not is_held:
        raise LeaseLost("somebody else is joining this room now; try again")


async def clear(tx: Transaction, room_nid: int) -> None:
    """Delete what an earlier attempt left of a room's state; its events stay, and may be used again."""
    for table in _OF_AN_ATTEMPT:
        await tx.execute(f"DELETE FROM {table} WHERE room_nid = $1 AND {_NO_LIVE_EVENT}", room_nid)  # noqa: S608


async def write_state(database: Database, lease: Lease, entries: StateEntries) -> None:
    """Store the state before the join: trunk(0). Raises LeaseLost."""
    rows = sorted((*key, event_nid) for key, event_nid in entries.items())
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        async with leased(database, lease) as tx:
            await tx.execute(
                """
                INSERT INTO room_state_log (room_nid, ver, type_nid, skey_nid, event_nid)
                SELECT $1, 0, row.type_nid, row.skey_nid, row.event_nid
                FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS row(type_nid, skey_nid, event_nid)
                """,
                lease.room_nid,
                [type_nid for type_nid, _, _ in chunk],
                [skey_nid for _, skey_nid, _ in chunk],
                [event_nid for _, _, event_nid in chunk],
            )


async def write_members(database: Database, lease: Lease, members: Collection[Member]) -> None:
    """Store what users of other servers are in the state before the join. Raises LeaseLost."""
    rows = sorted(members)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        async with leased(database, lease) as tx:
            await tx.execute(
                """
                INSERT INTO memberships (user_nid, room_nid, server_nid, membership, event_nid, pos)
                SELECT row.user_nid, $1, row.server_nid, row.membership, row.event_nid, 0
                FROM unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::bigint[])
                     AS row(user_nid, server_nid, membership, event_nid)
                """,
                lease.room_nid,
                [row.user_nid for row in chunk],
                [row.server_nid for row in chunk],
                [row.membership for row in chunk],
                [row.event_nid for row in chunk],
            )


async def write_servers(tx: Transaction, room_nid: int, server_nids: Collection[int]) -> None:
    """Store which servers were in the room before the join."""
    await tx.execute(
        """
        INSERT INTO room_servers (room_nid, server_nid, from_seq)
        SELECT $1, server.nid, 0 FROM unnest($2::bigint[]) AS server(nid)
        """,
        room_nid,
        sorted(server_nids),
    )
