"""Events as clients get them, with what `unsigned` says about them to one reader.

Source: Client-Server API, "Room Event Format".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.events import Pdu, client_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.clock import Clock
from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
from storage import room_timeline
from storage.database import Transaction
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow
from storage.sync_reads import txn_ids_of_device
from storage.txn_ids import KEPT_MS

READ_AT_ONCE: Final = 1000
DECODED_HERE: Final = 100
"""How many events are decoded without leaving the event loop."""


@dataclass(frozen=True, slots=True)
class ReadEvent:
    """A stored event, decoded."""

    row: TimelineRow
    pdu: Pdu


@dataclass(frozen=True)
class ClientEvents:
    """Makes the client's form of events that a reader may see."""

    visibility: RoomVisibility
    clock: Clock

    async def of_timeline(
        self, tx: Transaction, view: RoomView, requester: Requester, events: Sequence[ReadEvent]
    ) -> list[JsonObject]:
        """Events of the timeline; what stands beside them is looked up for all of them at once."""
        now_ms = self.clock()
        older, hidden = await self._replaced(tx, view, events)
        because = await self._redacted_because(tx, view, events)
        txns = await self._txn_ids(tx, view, requester, events, now_ms)
        shown = []
        for event in events:
            row, pdu = event.row, event.pdu
            unsigned: JsonObject = {
                "age": max(0, now_ms - pdu.origin_server_ts),
                "membership": view.membership_after(row.seq)
                if row.sub == 0
                else view.membership_after(row.state_ver or 0, pdu),
            }
            if (replaced := older.get(row.nid)) is not None:
                unsigned["replaces_state"] = replaced.event_id
                if replaced.nid not in hidden:
                    before = replaced.pdu(view.room)
                    unsigned["prev_content"] = before.content
                    unsigned["prev_sender"] = before.sender
            if (redaction := because.get(row.stored_id)) is not None:
                unsigned["redacted_because"] = self.state_event(redaction, now_ms)
            if (txn_id := txns.get(row.nid)) is not None:
                unsigned["transaction_id"] = txn_id
            shown.append(_with_unsigned(pdu, unsigned))
        return shown

    def state_event(self, pdu: Pdu, now_ms: int) -> JsonObject:
        """An event in a list of state, or inside another event."""
        return _with_unsigned(pdu, {"age": max(0, now_ms - pdu.origin_server_ts)})

    async def _replaced(
        self, tx: Transaction, view: RoomView, events: Sequence[ReadEvent]
    ) -> tuple[dict[int, TimelineRow], set[int]]:
        """The events that state events replaced, and the numbers of those that the reader may not see."""
        older = await room_timeline.replaced(tx, view.room.nid, (event.row for event in events))
        rows = list({row.nid: row for row in older.values()}.values())
        visible = {row.nid for row in await self.visibility.visible(tx, view, rows)}
        return older, {row.nid for row in rows if row.nid not in visible}

    async def _redacted_because(
        self, tx: Transaction, view: RoomView, events: Sequence[ReadEvent]
    ) -> dict[bytes, Pdu]:
        """The first redaction of each redacted event, if the reader may see it."""
        redacted = [event.row for event in events if event.row.is_redacted]
        if not redacted:
            return {}
        found = await room_timeline.redactions(tx, view.room.nid, redacted)
        visible = {
            row.nid for row in await self.visibility.visible(tx, view, [redaction for _, redaction in found])
        }
        because: dict[bytes, Pdu] = {}
        for target, redaction in found:
            if redaction.nid in visible and target not in because:
                because[target] = redaction.pdu(view.room)
        return because

    async def _txn_ids(
        self,
        tx: Transaction,
        view: RoomView,
        requester: Requester,
        events: Sequence[ReadEvent],
        now_ms: int,
    ) -> dict[int, str]:
        """The transaction IDs of events that the asking device sent, as long as they are kept."""
        own = [
            event.row.nid
            for event in events
            if event.row.sender_nid == requester.user_nid and event.pdu.origin_server_ts > now_ms - KEPT_MS
        ]
        if not own:
            return {}
        return await txn_ids_of_device(tx, requester.device_nid, [view.room.nid], own)


async def read_pdus(tx: Transaction, room: RoomRef, nids: Iterable[int]) -> AsyncIterator[list[Pdu]]:
    """Any number of events of a room, some at a time, in the order in which they were stored."""
    nids = sorted(nids)
    for start in range(0, len(nids), READ_AT_ONCE):
        rows = await room_timeline.by_nids(tx, nids[start : start + READ_AT_ONCE])
        in_order = [rows[nid] for nid in sorted(rows)]
        if len(in_order) <= DECODED_HERE:
            yield _decode(room, in_order)
        else:
            yield await asyncio.to_thread(_decode, room, in_order)


def _decode(room: RoomRef, rows: Sequence[TimelineRow]) -> list[Pdu]:
    return [row.pdu(room) for row in rows]


def _with_unsigned(pdu: Pdu, unsigned: JsonObject) -> JsonObject:
    event = client_event(pdu, with_room_id=True)
    event["unsigned"] = unsigned
    return event
