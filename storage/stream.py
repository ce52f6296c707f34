"""The one order of all changes: what each process has seen of it, and who is told.

Positions reach the listeners without a gap and in order. What this process wrote is handed over directly;
what another process wrote is read from table `stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import room_version
from storage.database import Database
from storage.event_batch import TxnKey
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef, StoredEvent, stored_event

READ_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event that has become visible."""

    pos: int
    room: RoomRef
    seq: int
    stored: StoredEvent
    replaces: StoredEvent | None
    """The event that was current for its key before."""
    size_bytes: int
    """The size of the event in canonical JSON; of one that another process wrote, an estimate."""
    key: TxnKey | None = None
    """The transaction that made it, when this process knows."""
    after_gap: bool = False
    """Whether events before this one were never received."""


Listener: TypeAlias = Callable[[Sequence[StreamEvent]], None]
"""Is told of events in the order of their positions; must not fail, and must not wait."""


class Stream:
    """This process's view of the stream."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: list[Listener] = []
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
                    SELECT pos, stream.room_nid, stream.room_seq, rooms.room_id, rooms.version,
                           events.nid, events.event_id, events.flags, events.json,
                           replaced.event_nid AS replaced_nid
                    FROM stream
                    JOIN events ON events.nid = stream.ref
                    JOIN rooms ON rooms.nid = stream.room_nid
                    LEFT JOIN LATERAL (
                        SELECT log.event_nid FROM room_state_log AS log
                        WHERE log.room_nid = stream.room_nid AND log.type_nid = events.type_nid
                          AND log.skey_nid = events.skey_nid AND log.ver < stream.room_seq
                        ORDER BY log.ver DESC LIMIT 1
                    ) AS replaced ON true
                    WHERE kind = 1 AND pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3
                    """,
                    self.position,
                    last,
                    READ_AT_ONCE,
                )
                replaced = await tx.fetch(
                    "SELECT nid, event_id, flags, json FROM events WHERE nid = ANY($1::bigint[])",
                    [row["replaced_nid"] for row in rows if row["replaced_nid"]],
                )
            replaced_by_nid = {row["nid"]: row for row in replaced}
            events = []
            for row in rows:
                room = RoomRef(row["room_nid"], RoomId(row["room_id"]), room_version(row["version"]))
                before = replaced_by_nid.get(row["replaced_nid"])
                if not row["flags"] & EventFlag.HIDDEN:
                    events.append(
                        StreamEvent(
                            pos=row["pos"],
                            room=room,
                            seq=row["room_seq"],
                            stored=stored_event(room, row),
                            replaces=None if before is None else stored_event(room, before),
                            size_bytes=2 * len(row["json"]),
                            after_gap=bool(row["flags"] & EventFlag.GAP),
                        )
                    )
            self._tell(events)
            self.position = rows[-1]["pos"] if len(rows) == READ_AT_ONCE else last

    def _tell(self, events: Sequence[StreamEvent]) -> None:
        if events:
            for listener in self._listeners:
                listener(events)
