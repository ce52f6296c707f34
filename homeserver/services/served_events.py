"""Many events at once as other servers get them: states and auth chains, in numbers and as JSON.

What needs no change leaves this server in the bytes in which it is stored.
Source: Server-Server API, "Retrieving events", "Signing Events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.errors import TooLarge
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, create_event_id
from homeserver.services.outgoing_events import OutgoingEvents
from storage import room_timeline, served_events
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.event_codec import decode_event_bytes
from storage.event_flags import EventFlag
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow

READ_AT_ONCE: Final = 1000
IDS_AT_ONCE: Final = 20_000
WALKED_HERE: Final = 500
"""The auth chains of more events are walked in a thread."""
SIGNED_AT_ONCE: Final = 50
"""So many events are signed before others have their turn."""

_CHANGED: Final = EventFlag.UNSIGNED | EventFlag.REDACTED


@dataclass(frozen=True)
class ServedEvents:
    """Makes answers of many events. Takes connections by itself: hold none while asking."""

    database: Database
    graphs: AuthGraphs
    outgoing: OutgoingEvents

    async def auth_chain(self, room: RoomRef, nids: Collection[int]) -> set[int]:
        """The auth chains of some events of a room together, in numbers.

        Where the room ID stands for the create event, that is part of every chain but its own, although no
        event names it: so the rules need it, and so other servers expect it.
        """
        async with self.graphs.using(room.nid):
            async with self.database.connection() as tx:
                graph = await self.graphs.graph(tx, room.nid, nids)
                create = None
                if room.version.room_id_is_create_hash:
                    create = await served_events.nid_of(tx, room.nid, create_event_id(room.room_id))
            if len(nids) > WALKED_HERE:
                chain = await asyncio.to_thread(graph.auth_chain, nids)
            else:
                chain = graph.auth_chain(nids)
        if create is not None and any(nid != create for nid in nids):
            chain.add(create)
        return chain

    async def ids(self, nids: Collection[int]) -> list[EventId]:
        """The IDs of some events."""
        in_order = sorted(nids)
        event_ids: list[EventId] = []
        for start in range(0, len(in_order), IDS_AT_ONCE):
            async with self.database.connection() as tx:
                event_ids += await served_events.ids(tx, in_order[start : start + IDS_AT_ONCE])
        return event_ids

    async def json_of(self, room: RoomRef, nids: Collection[int], max_bytes: int) -> list[bytes]:
        """The JSON of some events of a room, redacted ones pruned, and without those that were rejected.

        Raises TooLarge where they are more than `max_bytes` together.
        """
        in_order = sorted(nids)
        texts: list[bytes] = []
        size_bytes = 0
        for start in range(0, len(in_order), READ_AT_ONCE):
            async with self.database.connection() as tx:
                found = await room_timeline.by_nids(tx, in_order[start : start + READ_AT_ONCE])
            rows = [row for _, row in sorted(found.items()) if served_events.is_served(row)]
            for text in await self._texts(room, rows):
                texts.append(text)
                size_bytes += len(text)
            if size_bytes > max_bytes:
                raise TooLarge(
                    f"the events have more than {max_bytes} bytes: ask for their IDs first, then for each"
                )
        return texts

    def json(self, room: RoomRef, row: TimelineRow, pdu: Pdu) -> bytes:
        """The JSON of one event. `pdu`: what is shown of it, all or what a redaction leaves."""
        is_unsigned = bool(row.flags & EventFlag.UNSIGNED)
        return self.outgoing.signed_bytes(room.version, pdu, is_unsigned=is_unsigned)

    async def _texts(self, room: RoomRef, rows: Sequence[TimelineRow]) -> list[bytes]:
        stored = await asyncio.to_thread(_stored_texts, rows)
        texts: list[bytes] = []
        changed = 0
        for row, text in zip(rows, stored, strict=True):
            if text is None:
                changed += 1
                if changed % SIGNED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            texts.append(self.json(room, row, row.pdu(room)) if text is None else text)
        return texts


def _stored_texts(rows: Sequence[TimelineRow]) -> list[bytes | None]:
    """The JSON of events as it is stored; None where it leaves in another form."""
    return [None if row.flags & _CHANGED else decode_event_bytes(row.flags, row.json) for row in rows]
