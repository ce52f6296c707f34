"""Events out of the database as clients get them; those that are asked for most stay in memory.

Only their bytes are kept, and the few fields that answers are made by: a whole event takes many times that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.canonical_json import read_json
from homeserver.protocol.identifiers import EventId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.event_formats import Opening, open_client_json
from storage import room_timeline, sync_reads
from storage.database import Transaction
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow
from storage.stream import StreamEvent

BUDGET_BYTES: Final = 64 * 1024 * 1024
OVERHEAD_BYTES: Final = 900
"""What an event takes in memory besides its JSON, about."""
MAX_REDACTIONS: Final = 50_000
"""So many redactions are told apart one by one; then everything is forgotten at once."""
READ_AT_ONCE: Final = 2000
DECODED_HERE: Final = 100
"""How many events are decoded without leaving the event loop."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedEvent:
    """A stored event; pruned where it is redacted."""

    nid: int
    seq: int
    """room_seq; 0 for an event that has no place in a timeline."""
    event_id: EventId
    type: str
    state_key: str | None
    sender: UserId
    origin_server_ts: int
    open_json: bytes
    """The event without `unsigned` and the last brace."""
    flags: int
    type_nid: int
    skey_nid: int | None
    state_ver: int | None
    state_delta: int | None
    redacted_because: LoadedEvent | None = None

    @property
    def is_redacted(self) -> bool:
        """Whether a redaction of the event holds."""
        return bool(self.flags & EventFlag.REDACTED)

    @property
    def json(self) -> JsonObject:
        """The event, parsed anew each time."""
        event: JsonObject = read_json(self.open_json + b"}")
        return event

    @property
    def content(self) -> JsonObject:
        """The event's content, parsed anew each time."""
        content: JsonObject = self.json["content"]
        return content

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return OVERHEAD_BYTES + len(self.open_json)


class LoadedEvents:
    """Loads events by their numbers. Must listen to the stream, to hear of redactions."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._kept: BoundedCache[int, LoadedEvent] = BoundedCache(budget_bytes)
        self._redacted: set[EventId] = set()
        self._cleared = 0

    def __len__(self) -> int:
        return len(self._kept)

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """From now on what a redaction names is shown pruned."""
        self.redact(event.redacts for event in events if event.redacts is not None)

    def redact(self, event_ids: Iterable[EventId]) -> None:
        """From now on some events are shown pruned."""
        self._redacted.update(event_ids)
        if len(self._redacted) > MAX_REDACTIONS:
            self._redacted.clear()
            self._kept.clear()
            self._cleared += 1

    async def load(
        self, tx: Transaction, wanted: Mapping[int, RoomRef], opening: Opening = open_client_json
    ) -> dict[int, LoadedEvent]:
        """Events by their numbers, each with its room. Those in another form than the common are not kept."""
        keeps = opening is open_client_json
        found: dict[int, LoadedEvent] = {}
        missing = []
        for nid in wanted:
            kept = self._kept.get(nid) if keeps else None
            if kept is None or (self._redacted and self._is_outdated(kept)):
                missing.append(nid)
            else:
                found[nid] = kept
        for start in range(0, len(missing), READ_AT_ONCE):
            cleared = self._cleared
            for event in await self._read(tx, wanted, missing[start : start + READ_AT_ONCE], opening):
                found[event.nid] = event
                if keeps and cleared == self._cleared:
                    self._kept.put(event.nid, event, event.size_bytes)
        return found

    def _is_outdated(self, event: LoadedEvent) -> bool:
        """Whether the event, or what took its content, was redacted since it was loaded."""
        if event.event_id in self._redacted and not event.is_redacted:
            return True
        return event.redacted_because is not None and self._is_outdated(event.redacted_because)

    async def _read(
        self, tx: Transaction, rooms: Mapping[int, RoomRef], nids: Sequence[int], opening: Opening
    ) -> list[LoadedEvent]:
        rows = await room_timeline.by_nids(tx, nids)
        redacted = [
            (rooms[row.nid].nid, row.stored_id, rooms[row.nid]) for row in rows.values() if row.is_redacted
        ]
        because: dict[bytes, LoadedEvent] = {}
        if redacted:
            by_target = await sync_reads.redactions_of(
                tx, [(nid, stored_id) for nid, stored_id, _ in redacted]
            )
            redactions = await room_timeline.by_nids(tx, by_target.values())
            for room_nid, stored_id, room in redacted:
                if (by_nid := by_target.get((room_nid, stored_id))) is not None:
                    because[stored_id] = _event(redactions[by_nid], room, None, open_client_json)

        def decode() -> list[LoadedEvent]:
            return [_event(row, rooms[row.nid], because.get(row.stored_id), opening) for row in rows.values()]

        return decode() if len(rows) <= DECODED_HERE else await asyncio.to_thread(decode)


def _event(row: TimelineRow, room: RoomRef, because: LoadedEvent | None, opening: Opening) -> LoadedEvent:
    pdu = row.pdu(room)
    return LoadedEvent(
        nid=row.nid,
        seq=row.seq,
        event_id=pdu.event_id,
        type=pdu.type,
        state_key=pdu.state_key,
        sender=pdu.sender,
        origin_server_ts=pdu.origin_server_ts,
        open_json=opening(pdu),
        flags=row.flags,
        type_nid=row.type_nid,
        skey_nid=row.skey_nid,
        state_ver=row.state_ver,
        state_delta=row.state_delta,
        redacted_because=because,
    )
