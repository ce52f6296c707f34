"""The newest events of all rooms, in memory: what most requests of /sync are answered from.

Every event after `start` is here. Bytes for clients are made once for each event, when first asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import orjson

from homeserver.protocol.events import Pdu, client_event
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.redaction import redact_pdu
from homeserver.protocol.strict_json import JsonObject
from storage.event_batch import redacted_by
from storage.room_heads import StoredEvent
from storage.stream import StreamEvent

BUDGET_BYTES: Final = 16 * 1024 * 1024
AGE_TOLERANCE_MS: Final = 1000
"""How much `age` may be behind, so that all who wait for an event get the same bytes."""
OVERHEAD_BYTES: Final = 1024
"""What an event takes in memory besides its JSON, about."""


class RecentEvent:
    """An event of the stream, with its bytes for clients."""

    __slots__ = ("_json", "_shared", "_shared_at_ms", "redacted_because", "stream")

    def __init__(self, stream: StreamEvent) -> None:
        self.stream = stream
        self.redacted_because: Pdu | None = None
        self._json: bytes | None = None
        self._shared = b""
        self._shared_at_ms = -AGE_TOLERANCE_MS

    @property
    def pdu(self) -> Pdu:
        """The event itself; pruned once it is redacted."""
        return self.stream.stored.pdu

    def json(self, now_ms: int, txn_id: str | None = None) -> bytes:
        """The event as /sync shows it to a member; `txn_id`: for the device that sent it."""
        if self._json is None:
            self._json = open_json(self.pdu)
        if txn_id is not None:
            return closed_json(self._json, {**self._unsigned(now_ms), "transaction_id": txn_id})
        if now_ms - self._shared_at_ms > AGE_TOLERANCE_MS:
            self._shared = closed_json(self._json, self._unsigned(now_ms))
            self._shared_at_ms = now_ms
        return self._shared

    def redact(self, because: Pdu) -> None:
        """Prune the event, because another took its content away."""
        stored = self.stream.stored
        pruned = StoredEvent(stored.nid, redact_pdu(self.stream.room.version, stored.pdu))
        self.stream = replace(self.stream, stored=pruned, replaces=None)
        self.redacted_because = because
        self._json = None
        self._shared_at_ms = -AGE_TOLERANCE_MS

    def _unsigned(self, now_ms: int) -> JsonObject:
        unsigned: JsonObject = {"age": max(0, now_ms - self.pdu.origin_server_ts), "membership": "join"}
        if (replaced := self.stream.replaces) is not None:
            unsigned["prev_content"] = replaced.pdu.content
            unsigned["prev_sender"] = replaced.pdu.sender
            unsigned["replaces_state"] = replaced.pdu.event_id
        if self.redacted_because is not None:
            unsigned["redacted_because"] = client_event(self.redacted_because, with_room_id=False)
        return unsigned


def open_json(pdu: Pdu) -> bytes:
    """An event as /sync shows it, without `unsigned` and without its last brace."""
    return orjson.dumps(client_event(pdu, with_room_id=False))[:-1]


def closed_json(open_event: bytes, unsigned: JsonObject) -> bytes:
    """What `open_json` gave, completed."""
    return open_event + b',"unsigned":' + orjson.dumps(unsigned) + b"}"


class RecentEvents:
    """The ring of the newest events, and for each of their rooms the part that is its own."""

    def __init__(self, start: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self.start = start
        """Everything after this position is here."""
        self._budget_bytes = budget_bytes
        self._size_bytes = 0
        self._ring: deque[RecentEvent] = deque()
        self._rooms: dict[int, deque[RecentEvent]] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, events: Sequence[StreamEvent]) -> None:
        """Take the next events of the stream."""
        for event in events:
            recent = RecentEvent(event)
            self._ring.append(recent)
            self._rooms.setdefault(event.room.nid, deque()).append(recent)
            self._size_bytes += event.size_bytes + OVERHEAD_BYTES
            if (redacts := redacted_by(event.stored.pdu)) is not None:
                self._redact(event, redacts)
        while self._size_bytes > self._budget_bytes:
            self._drop_oldest()

    def last_pos(self, room_nid: int) -> int:
        """The position of a room's newest event; 0 where it is at or before `start`."""
        room = self._rooms.get(room_nid)
        return room[-1].stream.pos if room else 0

    def of_room(self, room_nid: int, after: int) -> list[RecentEvent]:
        """A room's events after a position, which is not before `start`, in the order of the stream."""
        assert after >= self.start
        room = self._rooms.get(room_nid, ())
        found: list[RecentEvent] = []
        for recent in reversed(room):
            if recent.stream.pos <= after:
                break
            found.append(recent)
        found.reverse()
        return found

    def _redact(self, redaction: StreamEvent, target: EventId) -> None:
        for recent in self._rooms[redaction.room.nid]:
            if recent.pdu.event_id == target:
                recent.redact(redaction.stored.pdu)

    def _drop_oldest(self) -> None:
        oldest = self._ring.popleft().stream
        self.start = oldest.pos
        self._size_bytes -= oldest.size_bytes + OVERHEAD_BYTES
        room = self._rooms[oldest.room.nid]
        room.popleft()
        if not room:
            del self._rooms[oldest.room.nid]
