"""Giving events from outside their places in their rooms, one call at a time in each room.

They have passed the gate (PduGate). What lacks something is not placed: `Blocked` says what it lacks, and
nobody is asked for it here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

from homeserver.errors import Unavailable
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import MAX_PREV_EVENTS, Pdu
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.services.arrival import Arrival, MissingParents, Verdict
from homeserver.services.event_placement import Arrivals
from homeserver.services.fork_placement import ForkPlacement
from homeserver.services.forward_extremities import ForwardExtremities
from homeserver.services.missing_events import parents_first
from storage import stored_places
from storage.database import Database
from storage.decisions import EventsStored, UnknownRoom
from storage.event_flags import EventFlag
from storage.nids import NidBlocks
from storage.persister import Persister
from storage.room_heads import RoomRef
from storage.state_deltas import ForkState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blocked:
    """An event that cannot be placed yet, and why."""

    pdu: Pdu
    problem: MissingParents


@dataclass(frozen=True)
class EventIntake:
    """Places events. All raise UnknownRoom where this server has no such room, and Unavailable."""

    database: Database
    persister: Persister
    fork_placement: ForkPlacement
    extremities: ForwardExtremities
    _nids: NidBlocks = field(init=False, repr=False)
    _locks: WeakValueDictionary[RoomId, asyncio.Lock] = field(
        default_factory=WeakValueDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nids", NidBlocks(self.database))

    async def place(self, ref: RoomRef, pdus: Iterable[Pdu]) -> list[Blocked]:
        """Place events, the parents first, as far as nothing is missing; those that cannot be placed yet.

        One that is placed already, or refused, is left alone.
        """
        async with self._lock(ref.room_id):
            return await self._place(ref, await self._arrivals(ref, pdus))

    async def place_fixed(self, ref: RoomRef, pdu: Pdu, *, fed: bool) -> Blocked | None:
        """Place one event if it is accepted as it is. `fed`: we relay it to others. Raises NotAllowed."""
        flags = EventFlag.FED if fed else 0
        async with self._lock(ref.room_id):
            arrivals = await self._arrivals(ref, [pdu], flags=flags, is_fixed=True)
            return next(iter(await self._place(ref, arrivals)), None)

    async def place_after_gap(
        self, ref: RoomRef, pdu: Pdu, before: ForkState, missing: frozenset[EventId]
    ) -> None:
        """Place an event some of whose parents are missing for good. `before`: the state before it."""
        async with self._lock(ref.room_id):
            arrivals = await self._arrivals(ref, [pdu], flags=EventFlag.GAP)
            await self._place(ref, [replace(one, before=before, missing=missing) for one in arrivals])

    def _lock(self, room_id: RoomId) -> asyncio.Lock:
        return self._locks.setdefault(room_id, asyncio.Lock())

    async def _arrivals(
        self, ref: RoomRef, pdus: Iterable[Pdu], *, flags: int = 0, is_fixed: bool = False
    ) -> list[Arrival]:
        """Those of some events that have no place yet, the parents first."""
        ordered = parents_first(pdu for pdu in pdus if pdu.prev_events)  # another beginning is none
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, ref.nid, [pdu.event_id for pdu in ordered])
        await self._nids.reserve(len(ordered))
        arrivals = []
        for pdu in ordered:
            place = places.get(pdu.event_id)
            if place is None:
                arrivals.append(Arrival(pdu, self._nids.take(), flags=flags, is_fixed=is_fixed))
            elif place.is_outlier:
                arrivals.append(Arrival(pdu, place.nid, is_promoted=True, flags=flags, is_fixed=is_fixed))
            elif place.is_refused and is_fixed:
                raise NotAllowed("authorization", "the event was refused before")
        return arrivals

    async def _place(self, ref: RoomRef, arrivals: list[Arrival]) -> list[Blocked]:
        """Hand events to the persister, all at once or, once something went wrong, one by one."""
        blocked: list[Blocked] = []
        waiting: set[EventId] = set()
        at_once = len(arrivals)
        makes_room = True
        while arrivals:
            first = arrivals[0]
            if behind := waiting & set(first.pdu.prev_events):
                blocked.append(Blocked(first.pdu, MissingParents(first.pdu, behind)))
                waiting.add(first.pdu.event_id)
                arrivals = arrivals[1:]
                continue
            decision = Arrivals(self.fork_placement, arrivals[:at_once])
            makes_room = makes_room and await self._make_room(ref)
            try:
                taken = await self.persister.append(ref.room_id, decision)
            except EventsStored as stored:
                arrivals = await self._not_placed(ref, arrivals, stored.event_ids)
            except MissingParents as problem:
                blocked.append(Blocked(first.pdu, problem))
                waiting.add(first.pdu.event_id)
                arrivals = arrivals[1:]
            except (Unavailable, UnknownRoom, NotAllowed):
                raise
            except Exception:
                if at_once == 1:
                    log.exception("%s in room %s is left out", first.pdu.event_id, ref.room_id)
                    arrivals = arrivals[1:]
                at_once = 1
            else:
                _tell_refused(ref, arrivals[: len(taken)])
                arrivals = arrivals[len(taken) :]
        return blocked

    async def _make_room(self, ref: RoomRef) -> bool:
        """See to it that an event can name all forward extremities, also after one that adds another.

        False where that does not work for an unforeseen reason: then events come over the forks.
        """
        try:
            head = await self.persister.newest_head(ref.room_id)
            if len(head.extremities) >= MAX_PREV_EVENTS:
                await self.extremities.bring_together(ref.room_id)
        except (Unavailable, UnknownRoom):
            raise
        except Exception:
            log.exception("the forks of room %s cannot be brought together", ref.room_id)
            return False
        return True

    async def _not_placed(
        self, ref: RoomRef, arrivals: Iterable[Arrival], stored: Collection[EventId]
    ) -> list[Arrival]:
        """Those of some events that have no place yet; some of them have got a row meanwhile.

        Where servers choose event IDs it may be that of another room's event: then this one has no ID left.
        """
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, ref.nid, stored)
        left = []
        for arrival in arrivals:
            place = places.get(arrival.pdu.event_id)
            if place is None and arrival.pdu.event_id in stored:
                log.info("%s is no event of room %s: another room has it", arrival.pdu.event_id, ref.room_id)
            elif place is None:
                left.append(arrival)
            elif place.is_outlier:
                left.append(replace(arrival, nid=place.nid, is_promoted=True, fork=None))
        return left


def _tell_refused(ref: RoomRef, arrivals: Iterable[Arrival]) -> None:
    for arrival in arrivals:
        if arrival.verdict is not Verdict.ACCEPTED and arrival.verdict is not None:
            event_id, verdict = arrival.pdu.event_id, arrival.verdict.value
            log.info("%s in room %s is %s: %s", event_id, ref.room_id, verdict, arrival.reason)
