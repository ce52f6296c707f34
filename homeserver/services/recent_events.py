"""The newest events of all rooms, in memory: what most requests of /sync are answered from.

Every event after `start` is here. Bytes for clients are made once for each event, when first asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from homeserver.protocol.events import Pdu, client_event, redact_pdu
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.event_formats import closed_json, open_client_json
from storage.event_flags import EventFlag
from storage.room_heads import StoredEvent
from storage.stream import StreamEvent

BUDGET_BYTES: Final = 32 * 1024 * 1024
AGE_TOLERANCE_MS: Final = 1000
"""How much `age` may be behind, so that all who wait for an event get the same bytes."""
OVERHEAD_BYTES: Final = 2048
"""What an event takes in memory besides its JSON, about."""
BYTES_OF_JSON: Final = 3
"""How often an event's JSON is in memory, about: as an object, and as bytes with and without `unsigned`."""


class RecentEvent:
    """An event of the stream, with its bytes for clients who are in its room."""

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

    @property
    def seq(self) -> int:
        """The event's room_seq."""
        return self.stream.seq

    @property
    def is_for_clients(self) -> bool:
        """Whether any client may see it."""
        return not self.stream.flags & EventFlag.NOT_FOR_CLIENTS

    @property
    def is_complete(self) -> bool:
        """Whether all is here that stands beside it: not if its redaction came long before it."""
        return self.redacted_because is not None or not self.stream.flags & EventFlag.REDACTED

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return OVERHEAD_BYTES + BYTES_OF_JSON * self.stream.size_bytes

    @property
    def open_json(self) -> bytes:
        """The event in the common form, without `unsigned` and the last brace."""
        if self._json is None:
            self._json = open_client_json(self.pdu)
        return self._json

    def json(self, now_ms: int) -> bytes:
        """The event in a timeline, in the common form."""
        if now_ms - self._shared_at_ms > AGE_TOLERANCE_MS:
            self._shared = closed_json(self.open_json, self.unsigned(now_ms))
            self._shared_at_ms = now_ms
        return self._shared

    def unsigned(self, now_ms: int) -> JsonObject:
        """What stands beside the event in a timeline, for all who are in the room."""
        unsigned: JsonObject = {
            "age": max(0, now_ms - self.pdu.origin_server_ts),
            "membership": "join",
            **self.unsigned_in_state(),
        }
        if (replaced := self.stream.replaces) is not None:
            unsigned["prev_content"] = replaced.pdu.content
            unsigned["prev_sender"] = replaced.pdu.sender
            unsigned["replaces_state"] = replaced.pdu.event_id
        return unsigned

    def unsigned_in_state(self) -> JsonObject:
        """What stands beside the event in a list of state."""
        if self.redacted_because is None:
            return {}
        return {"redacted_because": client_event(self.redacted_because, with_room_id=False)}

    def apply_redaction(self, target: EventId, because: Pdu) -> None:
        """Prune what the event shows of another event, or itself, because that content was taken away."""
        stream = self.stream
        if self.pdu.event_id == target:
            if self.redacted_because is None:
                self.redacted_because = because
            stream = stream._replace(stored=_pruned(stream, stream.stored))
        elif stream.replaces is not None and stream.replaces.pdu.event_id == target:
            stream = stream._replace(replaces=_pruned(stream, stream.replaces))
        elif self.redacted_because is not None and self.redacted_because.event_id == target:
            self.redacted_because = redact_pdu(stream.room.version, self.redacted_because)
        else:
            return
        self.stream = stream
        self._json = None
        self._shared_at_ms = -AGE_TOLERANCE_MS


def _pruned(stream: StreamEvent, stored: StoredEvent) -> StoredEvent:
    return StoredEvent(stored.nid, redact_pdu(stream.room.version, stored.pdu))


class RecentEvents:
    """The ring of the newest events, and for each of their rooms the part that is its own."""

    def __init__(self, start: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self.start = start
        """Everything after this position is here."""
        self._budget_bytes = budget_bytes
        self._size_bytes = 0
        self._ring: deque[RecentEvent] = deque()
        self._rooms: dict[int, deque[RecentEvent]] = {}
        self._redactions: dict[tuple[int, EventId], Pdu] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, events: Sequence[StreamEvent]) -> None:
        """Take the next events of the stream."""
        for event in events:
            recent = RecentEvent(event)
            self._ring.append(recent)
            self._size_bytes += recent.size_bytes
            room = self._rooms.setdefault(event.room.nid, deque())
            room.append(recent)
            if (target := event.redacts) is not None:
                self._redactions.setdefault((event.room.nid, target), event.stored.pdu)
                for other in room:
                    other.apply_redaction(target, event.stored.pdu)
            if event.replaces is not None:
                replaced = event.replaces.pdu.event_id
                if (because := self._redactions.get((event.room.nid, replaced))) is not None:
                    recent.apply_redaction(replaced, because)  # both were written in one batch
        while self._size_bytes > self._budget_bytes:
            self._drop_oldest()

    def redact(self, room_nid: int, target: EventId, because: Pdu) -> None:
        """Prune what a redaction names that is no event of the stream: it came with older history."""
        for recent in self._rooms.get(room_nid, ()):
            recent.apply_redaction(target, because)

    def last_pos(self, room_nid: int) -> int:
        """The position of a room's newest event; 0 where it is at or before `start`."""
        room = self._rooms.get(room_nid)
        return room[-1].stream.pos if room else 0

    def rooms_after(self, after: int, most: int) -> set[int] | None:
        """The rooms of all events after a position; None when those are too many, or not all here."""
        if after < self.start:
            return None
        found: set[int] = set()
        for count, recent in enumerate(reversed(self._ring)):
            if recent.stream.pos <= after:
                return found
            if count == most:
                return None
            found.add(recent.stream.room.nid)
        return found

    def of_room(self, room_nid: int, after: int) -> list[RecentEvent]:
        """A room's events after a position, which is not before `start`, in the order of the stream."""
        assert after >= self.start
        found: list[RecentEvent] = []
        for recent in reversed(self._rooms.get(room_nid, ())):
            if recent.stream.pos <= after:
                break
            found.append(recent)
        found.reverse()
        return found

    def _drop_oldest(self) -> None:
        oldest = self._ring.popleft()
        stream = oldest.stream
        self.start = stream.pos
        self._size_bytes -= oldest.size_bytes
        if (target := stream.redacts) is not None:
            self._redactions.pop((stream.room.nid, target), None)
        room = self._rooms[stream.room.nid]
        room.popleft()
        if not room:
            del self._rooms[stream.room.nid]
