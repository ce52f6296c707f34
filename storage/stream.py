"""The one order of all changes: what each process has seen of it, and who is told.

Positions reach the listeners without a gap and in order. What this process wrote is handed over directly;
what another process wrote is read from table `stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS, room_version
from storage.database import Database, Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_batch import StateChange, TxnKey
from storage.event_codec import decode_event
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomRef, StoredEvent, stored_event

READ_AT_ONCE: Final = 500

EVENT: Final = 1
OUT_OF_BAND: Final = 6
"""Kinds of changes: values of stream.kind."""


class StreamEvent(NamedTuple):
    """An event that has become visible."""

    pos: int
    room: RoomRef
    seq: int
    stored: StoredEvent
    replaces: StoredEvent | None
    """The event that was current for its key before."""
    size_bytes: int
    """The size of the event in canonical JSON; of one that another process wrote, an estimate."""
    flags: int = 0
    """Bits of EventFlag."""
    has_own_state: bool = False
    """Whether the state before it is another than the room's when it came."""
    changes: tuple[StateChange, ...] = ()
    """How the room's current state changed with it: mostly by itself alone, if it is a state event."""
    redacts: EventId | None = None
    """The event whose content it takes away."""
    key: TxnKey | None = None
    """The transaction that made it, when this process knows."""

    @property
    def after_gap(self) -> bool:
        """Whether events before this one were never received."""
        return bool(self.flags & EventFlag.GAP)

    @property
    def is_plain(self) -> bool:
        """Whether it is what events mostly are: it changes the state by itself, if it is a state event.

        Whoever is in the room then may see it, unless it is none for clients.
        """
        if self.has_own_state and not self.flags & EventFlag.OPEN:
            return False
        return not self.flags & (EventFlag.HIDDEN | EventFlag.RESOLVED)


@dataclass(frozen=True, slots=True)
class StreamMembership:
    """A user of this server has become something in a room that this server is not in."""

    pos: int
    room: RoomRef
    user_id: UserId
    user_nid: int
    membership: Membership
    event_nid: int


Listener: TypeAlias = Callable[[Sequence[StreamEvent]], None]
"""Is told of events in the order of their positions; must not fail, and must not wait."""

MembershipListener: TypeAlias = Callable[[StreamMembership], None]
"""Is told of memberships, each in its place among the events; must not fail, and must not wait."""


class Stream:
    """This process's view of the stream."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: list[Listener] = []
        self._membership_listeners: list[MembershipListener] = []
        self._lock = asyncio.Lock()
        self.position = 0
        """Every change up to here has reached the listeners."""

    async def start(self) -> None:
        """Begin at the newest position that is committed."""
        async with self._database.connection() as tx:
            self.position = await tx.fetchval("SELECT coalesce(max(pos), 0) FROM stream")

    def listen(self, listener: Listener) -> None:
        """Tell a listener of every event from now on."""
        self._listeners.append(listener)

    def listen_memberships(self, listener: MembershipListener) -> None:
        """Tell a listener of every membership in rooms that this server is not in, from now on."""
        self._membership_listeners.append(listener)

    async def publish(self, first: int, last: int, events: Sequence[StreamEvent]) -> None:
        """Tell of what this process has just committed at positions `first` to `last`."""
        async with self._lock:
            if first > self.position + 1:
                await self._read_up_to(first - 1)
            self._tell([event for event in events if event.pos > self.position])
            self.position = max(self.position, last)

    async def catch_up(self) -> None:
        """Read and tell all that is committed by now."""
        async with self._lock:
            async with self._database.connection() as tx:
                newest = await tx.fetchval("SELECT coalesce(max(pos), 0) FROM stream")
            await self._read_up_to(newest)

    async def _read_up_to(self, last: int) -> None:
        """Positions that nothing is found for were given to a call that was rolled back."""
        while self.position < last:
            async with self._database.connection() as tx:
                rows = await tx.fetch(
                    """
                    SELECT pos, kind, stream.room_nid, stream.room_seq, stream.user_nid, rooms.room_id,
                           rooms.version, events.type_nid, events.skey_nid, events.nid, event_id,
                           events.flags, events.state_ver IS NOT NULL AS has_own_state, json
                    FROM stream
                    JOIN events ON events.nid = stream.ref
                    JOIN rooms ON rooms.nid = stream.room_nid
                    WHERE kind = ANY($4::smallint[]) AND pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3
                    """,
                    self.position,
                    last,
                    READ_AT_ONCE,
                    [EVENT, OUT_OF_BAND],
                )
                changes = await self._changes(tx, [row for row in rows if row["kind"] == EVENT])
            events: list[StreamEvent] = []
            for row in rows:
                if row["kind"] == OUT_OF_BAND:
                    self._tell(events)
                    events = []
                    self._tell_membership(row)
                    continue
                room = _room_of(row)
                stored = stored_event(room, row)
                changed = changes.get((room.nid, row["room_seq"]), ())
                own = [change for change in changed if change.key == (row["type_nid"], row["skey_nid"])]
                events.append(
                    StreamEvent(
                        pos=row["pos"],
                        room=room,
                        seq=row["room_seq"],
                        stored=stored,
                        replaces=own[0].before if own else None,
                        size_bytes=2 * len(row["json"]),
                        flags=row["flags"],
                        has_own_state=row["has_own_state"],
                        changes=tuple(changed),
                        redacts=_redacts(row, stored.pdu),
                    )
                )
            self._tell(events)
            self.position = rows[-1]["pos"] if len(rows) == READ_AT_ONCE else last

    async def _changes(
        self, tx: Transaction, rows: Sequence[asyncpg.Record]
    ) -> dict[tuple[int, int], list[StateChange]]:
        """How the state of rooms changed with some events: by (room, room_seq)."""
        log = await tx.fetch(
            """
            SELECT log.room_nid, log.ver, log.type_nid, log.skey_nid, log.event_nid,
                   event_types.name, atoms.s, older.event_nid AS before_nid,
                   log.type_nid = $4 AND log.event_nid <> 0 AND coalesce((
                       SELECT member.pos < event.pos FROM memberships AS member
                       WHERE member.user_nid = log.skey_nid AND member.room_nid = log.room_nid
                   ), true) AS keeps_out
            FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS event(room_nid, seq, pos)
            JOIN room_state_log AS log ON log.room_nid = event.room_nid AND log.ver = event.seq
            JOIN event_types ON event_types.nid = log.type_nid
            JOIN atoms ON atoms.nid = log.skey_nid
            LEFT JOIN LATERAL (
                SELECT event_nid FROM room_state_log AS earlier
                WHERE earlier.room_nid = log.room_nid AND earlier.type_nid = log.type_nid
                  AND earlier.skey_nid = log.skey_nid AND earlier.ver < log.ver
                ORDER BY earlier.ver DESC LIMIT 1
            ) AS older ON true
            """,
            [row["room_nid"] for row in rows],
            [row["room_seq"] for row in rows],
            [row["pos"] for row in rows],
            MEMBER_TYPE_NID,
        )
        rooms = {row["room_nid"]: _room_of(row) for row in rows}
        room_of = {nid: row["room_nid"] for row in log for nid in (row["event_nid"], row["before_nid"])}
        found = await tx.fetch(
            "SELECT nid, event_id, flags, json FROM events WHERE nid = ANY($1::bigint[])",
            [nid for nid in room_of if nid],
        )
        by_nid = {row["nid"]: stored_event(rooms[room_of[row["nid"]]], row) for row in found}
        changes: dict[tuple[int, int], list[StateChange]] = {}
        for row in log:
            name = (row["name"].decode(), row["s"].decode())
            changes.setdefault((row["room_nid"], row["ver"]), []).append(
                StateChange(
                    (row["type_nid"], row["skey_nid"]),
                    name,
                    by_nid.get(row["event_nid"]),
                    by_nid.get(row["before_nid"]),
                    keeps_out=row["keeps_out"],
                )
            )
        return changes

    def _tell(self, events: Sequence[StreamEvent]) -> None:
        if events:
            for listener in self._listeners:
                listener(events)

    def _tell_membership(self, row: asyncpg.Record) -> None:
        if row["version"] not in ROOM_VERSIONS:
            return
        room = _room_of(row)
        pdu = stored_event(room, row).pdu
        change = StreamMembership(
            row["pos"],
            room,
            UserId(pdu.key[1]),
            row["user_nid"],
            Membership.of(pdu.membership),
            row["nid"],
        )
        for listener in self._membership_listeners:
            listener(change)


def _redacts(row: asyncpg.Record, pdu: Pdu) -> EventId | None:
    """The event whose content an event takes away, although its own may be gone meanwhile."""
    if row["flags"] & EventFlag.SERVERS_ONLY:
        return None
    if row["flags"] & EventFlag.REDACTED:
        event = decode_event(row["flags"], row["json"])
        pdu = stored_pdu(room_version(row["version"]), pdu.room_id, pdu.event_id, event)
    return pdu.redacts


def _room_of(row: asyncpg.Record) -> RoomRef:
    return RoomRef(row["room_nid"], RoomId(row["room_id"]), room_version(row["version"]))
