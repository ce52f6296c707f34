"""What a batch came to: which requests are answered with it, and which decisions are asked again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from homeserver.protocol.events import redact_pdu
from homeserver.protocol.identifiers import RoomId
from storage.decisions import AliasTaken, EventsStored, Request
from storage.event_batch import EventBatch, NewEvent, TxnKey
from storage.event_flags import EventFlag
from storage.persist_connection import Outcome
from storage.room_batch import RoomBatch
from storage.room_heads import RoomRef, StoredEvent
from storage.stream import StreamEvent


@dataclass(slots=True)
class BatchResult:
    """The rooms of a batch and its requests, sorted by what became of them."""

    stored: list[RoomBatch] = field(default_factory=list)
    """Rooms whose head was the newest: all that was decided on it holds."""
    visible: list[StreamEvent] = field(default_factory=list)
    """What has a position in the stream now, in that order."""
    stale: list[RoomId] = field(default_factory=list)
    """Rooms whose heads must not be kept: they are not the newest, or may hold content that is gone now."""
    overtaken: list[Request] = field(default_factory=list)
    """To be asked again on a newer head."""
    delayed: list[list[Request]] = field(default_factory=list)
    """To be asked again, since their room was left out for a repeated transaction: each list as a batch of
    its own, so that whoever repeats transactions delays the others only once."""
    repeated: list[tuple[Request, int]] = field(default_factory=list)
    """Repeated transactions, each with the number of the event that it made the first time."""
    failed: list[tuple[Request, Exception]] = field(default_factory=list)


def sort_out(rooms: Iterable[RoomBatch], batch: EventBatch, outcome: Outcome) -> BatchResult:
    """What became of the rooms of a batch, by what the database tells of it."""
    result = BatchResult()
    known = {batch.events[index][1].nid for index, _ in outcome.known_events}
    moved = outcome.moved_rooms | {batch.events[index][0].nid for index, _ in outcome.known_events}
    sent = {batch.keys[index]: nid for index, nid in outcome.known_txns}
    new_rooms = 0
    for room in rooms:
        if (new_room := room.new_room) is not None:
            new_rooms += 1
            if new_rooms - 1 in outcome.taken_aliases:
                assert new_room.alias is not None
                result.failed.append((room.decided[0].request, AliasTaken(new_room.alias)))
                continue
        has_moved = room.base.room.nid in moved
        if has_moved or (sent and any(request.key in sent for request in room.requests)):
            _leave_out(room, result, sent, known, has_moved=has_moved)
        else:
            result.stored.append(room)
    redacted = {target for target, _ in outcome.redacted}
    redacting = {by_nid for _, by_nid in outcome.redacted}
    for room in result.stored:
        ref = room.base.room
        for decided in room.decided:
            for event in decided.events:
                if event.seq is None:
                    continue
                key = decided.request.key if event is decided.events[-1] else None
                pos = outcome.first_pos + len(result.visible)
                result.visible.append(_stream_event(pos, ref, event, key, redacted, redacting))
        if any(event.pdu.redacts or event.nid in redacted for event in room.events):
            result.stale.append(ref.room_id)
    return result


def _leave_out(
    room: RoomBatch,
    result: BatchResult,
    sent: Mapping[TxnKey, int],
    known: Collection[int],
    *,
    has_moved: bool,
) -> None:
    """Of a room nothing was stored: answer what can be answered, and ask the rest again.

    `known`: the numbers of events that are stored already, under other numbers or with a place.
    """
    again = []
    for decided in room.decided:
        request = decided.request
        stored = [one.pdu.event_id for one in decided.events if one.nid in known and not one.is_own]
        if stored:
            result.failed.append((request, EventsStored(stored)))
        elif request.key is not None and request.key in sent:
            result.repeated.append((request, sent[request.key]))
        else:
            again.append(request)
    if has_moved:
        result.stale.append(room.base.room.room_id)
        result.overtaken += again
    elif again:
        result.delayed.append(again)


def _stream_event(
    pos: int,
    room: RoomRef,
    event: NewEvent,
    key: TxnKey | None,
    redacted: Collection[int],
    redacting: Collection[int],
) -> StreamEvent:
    assert event.seq is not None
    pdu, flags = event.pdu, event.flags
    redacts = pdu.redacts
    if redacts is not None and event.nid not in redacting:
        redacts = None  # it has no effect, or none yet
        flags |= EventFlag.SERVERS_ONLY
    if event.nid in redacted:
        pdu = redact_pdu(room.version, pdu)
        flags |= EventFlag.REDACTED
    return StreamEvent(
        pos=pos,
        room=room,
        seq=event.seq,
        stored=StoredEvent(event.nid, pdu),
        replaces=event.replaces,
        size_bytes=len(event.canonical),
        flags=flags,
        has_own_state=event.state_ver is not None,
        changes=event.changes,
        redacts=redacts,
        key=key,
    )
