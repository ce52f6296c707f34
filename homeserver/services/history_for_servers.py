"""What a server that is in a room may read of it: events, the history before them, states, auth chains.

Every answer is bounded. What the history visibility hides from a server is given as a redaction leaves it: if
it were left out, the gap in the other server's history would never close.
Source: Server-Server API, "Backfilling and retrieving missing events", "Retrieving events".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from homeserver.errors import NotFound
from homeserver.protocol.events import redact_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.services import history_walks
from homeserver.services.client_events import ReadEvent
from homeserver.services.clock import Clock
from homeserver.services.recent_answers import RecentAnswers
from homeserver.services.served_events import ServedEvents
from homeserver.services.server_access import ServerAccess, not_in_room
from homeserver.services.server_visibility import ServerVisibility
from storage import room_state, served_events
from storage.database import Database, Transaction
from storage.room_heads import RoomRef
from storage.room_state import StateAt
from storage.room_timeline import TimelineRow

MAX_BACKFILLED: Final = 100
MAX_MISSING: Final = 20
MAX_ANSWER_BYTES: Final = 50 * 1024 * 1024
"""Of the events in a state and its auth chain, or in the auth chain of one event."""
KEPT_MS: Final = 30_000
KEPT_BYTES: Final = 64 * 1024 * 1024
STATES_AT_ONCE: Final = 2


@dataclass(frozen=True)
class HistoryForServers:
    """Answers the endpoints by which other servers fetch history.

    `origin` is the server that asks. All raise Forbidden where it is not in the room and, but for `event`,
    where the room's server ACL denies it.
    """

    database: Database
    access: ServerAccess
    visibility: ServerVisibility
    events: ServedEvents
    clock: Clock
    _states: RecentAnswers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        states = RecentAnswers(self.clock, kept_ms=KEPT_MS, max_bytes=KEPT_BYTES, at_once=STATES_AT_ONCE)
        object.__setattr__(self, "_states", states)

    async def event(self, origin: ServerName, event_id: EventId) -> bytes:
        """One event as JSON. Raises NotFound."""
        async with self.database.connection() as tx:
            found = await served_events.find_in_any_room(tx, event_id)
        if found is None:
            raise _unknown(event_id)
        room, row = found
        await self.access.check_is_in_room(origin, room.room_id)
        if not served_events.is_served(row):
            raise _unknown(event_id)
        if not row.has_state_before:  # it is part of the room's state, which the server may read
            return self.events.json(room, row, row.pdu(room))
        async with self.database.connection() as tx:
            [text] = await self._shown(tx, room, origin, [ReadEvent(row, row.pdu(room))])
        return text

    async def backfill(
        self, origin: ServerName, room_id: RoomId, event_ids: Collection[str], limit: int
    ) -> list[bytes]:
        """Some events and those before them as JSON, `limit` together, the newest first.

        Events of other rooms and unknown ones are passed over.
        """
        room = await self.access.check(origin, room_id)
        async with self.database.connection() as tx:
            found = await history_walks.newest_first(tx, room, event_ids, min(limit, MAX_BACKFILLED))
            return await self._shown(tx, room, origin, found)

    async def missing_events(
        self,
        origin: ServerName,
        room_id: RoomId,
        *,
        earliest: Collection[str],
        latest: Collection[str],
        limit: int,
        min_depth: int,
    ) -> list[bytes]:
        """What lies between `earliest` and `latest` as JSON, the oldest first, and neither of the given ones.

        If that is more than `limit`, then what is nearest to `latest`. A server that has left the room gets
        what lies before the event by which it did.
        """
        room, upto = await self.access.check_was_in_room(origin, room_id)
        async with self.database.connection() as tx:
            if upto is not None:
                given = await served_events.find(tx, room.nid, list(latest)[: history_walks.MAX_STARTS])
                if all(row.seq != upto for row in given):
                    raise not_in_room(origin)
            found = await history_walks.oldest_first(
                tx, room, latest, earliest, min(limit, MAX_MISSING), min_depth, upto
            )
            return await self._shown(tx, room, origin, found)

    async def state(self, origin: ServerName, room_id: RoomId, event_id: EventId) -> bytes:
        """The state before an event and its whole auth chain, as JSON: {"auth_chain": [...], "pdus": [...]}.

        Raises NotFound for an event that the room does not have, or whose state is not known; TooLarge.
        """
        room, at = await self._state_before(origin, room_id, event_id)
        return await self._states.get(("state", at), lambda: self._state(room, at))

    async def state_ids(self, origin: ServerName, room_id: RoomId, event_id: EventId) -> bytes:
        """As `state`, in event IDs: {"auth_chain_ids": [...], "pdu_ids": [...]}."""
        room, at = await self._state_before(origin, room_id, event_id)
        return await self._states.get(("state_ids", at), lambda: self._state_ids(room, at))

    async def event_auth(self, origin: ServerName, room_id: RoomId, event_id: EventId) -> list[bytes]:
        """The auth chain of an event as JSON, without itself. Raises as `state` does."""
        room, row = await self._event_of(origin, room_id, event_id)
        chain = await self.events.auth_chain(room, [row.nid])
        return await self.events.json_of(room, chain - {row.nid}, MAX_ANSWER_BYTES)

    async def _shown(
        self, tx: Transaction, room: RoomRef, origin: ServerName, events: Sequence[ReadEvent]
    ) -> list[bytes]:
        """The JSON of events, each as a redaction leaves it where the server may not see it."""
        visible = await self.visibility.visible(tx, room, origin, events)
        return [
            self.events.json(
                room,
                event.row,
                event.pdu if event.row.nid in visible else redact_pdu(room.version, event.pdu),
            )
            for event in events
        ]

    async def _event_of(
        self, origin: ServerName, room_id: RoomId, event_id: EventId
    ) -> tuple[RoomRef, TimelineRow]:
        room = await self.access.check(origin, room_id)
        async with self.database.connection() as tx:
            rows = await served_events.find(tx, room.nid, [event_id])
        if not rows or not served_events.is_served(rows[0]):
            raise _unknown(event_id)
        return room, rows[0]

    async def _state_before(
        self, origin: ServerName, room_id: RoomId, event_id: EventId
    ) -> tuple[RoomRef, StateAt]:
        """The state before an event, by the version that changed it: so equal states are one question."""
        room, row = await self._event_of(origin, room_id, event_id)
        before = row.state_before(room)
        async with self.database.connection() as tx:
            changed = await served_events.newest_change(tx, room.nid, before.ver)
        return room, StateAt(room.nid, changed, before.delta)

    async def _state(self, room: RoomRef, at: StateAt) -> bytes:
        entries = await self._entries(at)
        chain = await self.events.auth_chain(room, entries)
        pdus = await self.events.json_of(room, entries, MAX_ANSWER_BYTES)
        left_bytes = MAX_ANSWER_BYTES - sum(map(len, pdus))
        auth_chain = await self.events.json_of(room, chain, left_bytes)
        return b"".join((b'{"auth_chain":[', b",".join(auth_chain), b'],"pdus":[', b",".join(pdus), b"]}"))

    async def _state_ids(self, room: RoomRef, at: StateAt) -> bytes:
        entries = await self._entries(at)
        chain = await self.events.auth_chain(room, entries)
        return orjson.dumps(
            {
                "auth_chain_ids": await self.events.ids(chain),
                "pdu_ids": await self.events.ids(entries),
            }
        )

    async def _entries(self, at: StateAt) -> list[int]:
        async with self.database.connection() as tx:
            return list((await room_state.whole(tx, at)).values())


def _unknown(event_id: EventId) -> NotFound:
    return NotFound(f"there is no event {event_id} here that can be asked for")
