"""Checking and storing events that were fetched: the auth events of others, and states.

An event is checked against its own auth events, which have to be here or to come with it. One that they do
not allow is stored as rejected, so that whatever names it is refused too; one whose auth events nobody has is
left out, with all that stand on it, and may come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.auth_rules import why_refused_by_auth_events
from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_event
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, create_event_id
from homeserver.protocol.room_versions import RoomVersion
from homeserver.services.clock import Clock
from homeserver.services.fork_states import key_numbers
from storage import outliers, room_state, stored_places
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.nids import NidBlocks
from storage.outliers import Outlier
from storage.room_heads import RoomRef
from storage.room_state import StateAt
from storage.stored_places import StoredBody

CHECKED_HERE: Final = 200
"""More events are checked in a thread."""


@dataclass(frozen=True, slots=True)
class Checked:
    """An event, and why its auth events refuse it, if they do."""

    pdu: Pdu
    refusal: str | None


@dataclass(frozen=True)
class Outliers:
    """Stores events that have no place in their room, or not yet."""

    database: Database
    dictionaries: Dictionaries
    clock: Clock
    _nids: NidBlocks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nids", NidBlocks(self.database))

    async def store(self, room: RoomRef, pdus: Iterable[Pdu]) -> dict[EventId, int]:
        """Store verified events of a room; the numbers of those that are here now, rejected ones included."""
        wanted = {pdu.event_id: pdu for pdu in pdus if pdu.room_id == room.room_id}
        named = {event_id for pdu in wanted.values() for event_id in pdu.auth_events}
        if room.version.room_id_is_create_hash:
            named.add(create_event_id(room.room_id))
        async with self.database.connection() as tx:
            known = await stored_places.bodies(tx, room, named | set(wanted))
        new = [pdu for event_id, pdu in wanted.items() if event_id not in known]
        begun = any(pdu.type == "m.room.create" for pdu in new) and await self._has_create(room)
        if len(new) > CHECKED_HERE:
            checked = await asyncio.to_thread(check_by_auth_events, room.version, new, known, begun=begun)
        else:
            checked = check_by_auth_events(room.version, new, known, begun=begun)
        nids = {event_id: body.nid for event_id, body in known.items()}
        await self._nids.reserve(len(checked))
        numbered = nids | {one.pdu.event_id: self._nids.take() for one in checked}
        rows = [
            Outlier(
                numbered[one.pdu.event_id],
                one.pdu,
                canonical_event(room.version, one.pdu.json),
                tuple(numbered[event_id] for event_id in one.pdu.auth_events),
                EventFlag.REJECTED if one.refusal is not None else 0,
            )
            for one in checked
        ]
        stored = await outliers.insert(self.database, self.dictionaries, room.nid, rows, self.clock())
        return {event_id: nid for event_id, nid in (nids | stored).items() if event_id in wanted}

    async def _has_create(self, room: RoomRef) -> bool:
        """Whether the room has begun here: then whatever else says to be its beginning is not."""
        create = (await key_numbers(self.dictionaries, [CREATE])).get(CREATE)
        if create is None:
            return False
        async with self.database.connection() as tx:
            return bool(await room_state.of_keys(tx, StateAt(room.nid, MAX_INTEGER), [create]))


def check_by_auth_events(
    version: RoomVersion, new: Sequence[Pdu], known: Mapping[EventId, StoredBody], *, begun: bool = False
) -> list[Checked]:
    """Check events against their own auth events, each after those that it names.

    `known`: the auth events that are stored. Events that name others, and those that stand on them or on a
    cycle, are left out. `begun`: the room has its create event, and no new one can be.
    """
    by_id = {pdu.event_id: pdu for pdu in new}
    bodies = {event_id: body.pdu for event_id, body in known.items()} | by_id
    rejected = {event_id for event_id, body in known.items() if body.is_rejected}
    checked: list[Checked] = []
    for pdu in _auth_events_first(by_id, known):
        auth_events = [bodies[event_id] for event_id in pdu.auth_events]
        refused = {event_id for event_id in pdu.auth_events if event_id in rejected}
        if begun and pdu.type == "m.room.create":
            refusal: str | None = "the room was made by another event"
        else:
            create = bodies.get(create_event_id(pdu.room_id))
            refusal = why_refused_by_auth_events(version, pdu, auth_events, refused, create)
        if refusal is not None:
            rejected.add(pdu.event_id)
        checked.append(Checked(pdu, refusal))
    return checked


def _auth_events_first(by_id: Mapping[EventId, Pdu], known: Mapping[EventId, StoredBody]) -> list[Pdu]:
    waiting_for: dict[EventId, int] = {}
    citing: dict[EventId, list[EventId]] = {}
    for event_id, pdu in by_id.items():
        unknown = {one for one in pdu.auth_events if one not in known}
        waiting_for[event_id] = len(unknown)
        for auth_event in unknown:
            citing.setdefault(auth_event, []).append(event_id)
    ready = [event_id for event_id, count in waiting_for.items() if count == 0]
    order: list[Pdu] = []
    while ready:
        event_id = ready.pop()
        order.append(by_id[event_id])
        for later in citing.get(event_id, ()):
            waiting_for[later] -= 1
            if waiting_for[later] == 0:
                ready.append(later)
    return order
