"""Filling gaps: fetching the events before one that came, its auth events, and the state where a gap stays.

Everything is bounded: how many servers are asked, how often, for how many events; what is larger than a bound
stays a gap. Nothing is locked meanwhile. What comes passes the gate, like everything from outside.
Source: Server-Server API, "Retrieving event authorization", "Backfilling and retrieving missing events".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from federation.outbound import room_requests
from federation.outbound.room_requests import StateIdsAnswer
from federation.outbound.signed_client import (
    FederationError,
    SignedClient,
)
from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, ServerName, parse_event_id
from homeserver.services.federation_failures import may_pass
from homeserver.services.fork_states import ForkStates, key_numbers
from homeserver.services.outliers import Outliers
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from storage import room_state, stored_places
from storage.database import Database
from storage.packed_state import StateEntries, difference
from storage.room_heads import RoomHead, RoomRef
from storage.room_state import StateAt
from storage.state_deltas import ForkState

log = logging.getLogger(__name__)

EVENTS_AT_ONCE: Final = 20
"""How many missing events one request asks for: as many as most servers give."""
MAX_ROUNDS: Final = 5
"""So many requests at most lead back from an event; what is older stays a gap."""
MAX_FETCHED_EVENTS: Final = 5000
"""Of a state, so many events at most are fetched one by one."""
FETCHES_AT_ONCE: Final = 10
ONE_BY_ONE_UP_TO: Final = 10
"""If more than one in so many events of a state is not here, the whole state is asked for."""
MAX_SERVERS: Final = 3


@dataclass(slots=True)
class Asked:
    """The servers that may know what is missing, the best first."""

    servers: Sequence[ServerName]
    may_know_more: bool = False
    """Whether one of them could not answer: it may know what the others do not."""

    def __iter__(self) -> Iterator[ServerName]:
        return iter(self.servers[:MAX_SERVERS])

    def failed(self, error: FederationError) -> None:
        """Take note that one of them did not give what it was asked for."""
        self.may_know_more |= may_pass(error)


@dataclass(frozen=True)
class MissingEvents:
    """Asks other servers for events of a room that we lack."""

    database: Database
    client: SignedClient
    gate: PduGate
    outliers: Outliers
    forks: ForkStates

    async def before(self, room: RoomRef, head: RoomHead, pdu: Pdu, asked: Asked) -> list[Pdu]:
        """Events between a room's forward extremities and an event, verified, the oldest first.

        They need not close the gap. What is older than the room's first event here is history, which is not
        asked for. The servers are asked in turn until one gives any.
        """
        async with self.database.connection() as tx:
            min_depth = await stored_places.first_depth(tx, room.nid)
        found: dict[EventId, Pdu] = {}
        latest = {pdu.event_id}
        for _ in range(MAX_ROUNDS):
            new = await self._ask_before(room, head, latest, min_depth, asked)
            new = [one for one in new if one.event_id not in found and one.event_id not in latest]
            new = [one for one in new if one.depth >= min_depth]
            found |= {one.event_id: one for one in new}
            missing = await self._missing_parents(room, [pdu, *found.values()], found)
            latest = {one.event_id for one in new if missing & set(one.prev_events)}
            if not latest:
                break
        return parents_first(found.values())

    async def _ask_before(
        self,
        room: RoomRef,
        head: RoomHead,
        latest: Collection[EventId],
        min_depth: int,
        asked: Asked,
    ) -> list[Pdu]:
        for server_name in asked:
            try:
                events = await room_requests.get_missing_previous_events(
                    self.client,
                    server_name,
                    room.room_id,
                    earliest_events=head.prev_events,
                    latest_events=latest,
                    limit=EVENTS_AT_ONCE,
                    min_depth=min_depth,
                )
            except FederationError as error:
                log.info("missing events of %s cannot be fetched: %s", room.room_id, error)
                asked.failed(error)
                continue
            if verified := await self._verified(room, events[:EVENTS_AT_ONCE]):
                return verified
        return []

    async def _missing_parents(
        self, room: RoomRef, pdus: Iterable[Pdu], found: Collection[EventId]
    ) -> set[EventId]:
        """Those prev_events that are neither among the events found nor stored with a place."""
        wanted = {event_id for pdu in pdus for event_id in pdu.prev_events} - set(found)
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, room.nid, wanted)
        return {one for one in wanted if one not in places or not places[one].has_state_before}

    async def auth_events(self, room: RoomRef, pdu: Pdu, missing: Collection[EventId], asked: Asked) -> None:
        """Fetch and store the auth events that an event lacks, as far as they can be had."""
        for server_name in asked:
            try:
                chain = await room_requests.get_event_auth(
                    self.client, server_name, room.room_id, pdu.event_id
                )
                await self.outliers.store(room, await self._verified(room, chain))
            except FederationError as error:
                log.info("the auth chain of %s cannot be fetched: %s", pdu.event_id, error)
                asked.failed(error)
            try:
                await self.fetch_with_auth_events(room, server_name, await self.not_stored(room, missing))
            except FederationError as error:
                log.info("the auth events of %s cannot be fetched: %s", pdu.event_id, error)
                asked.failed(error)
            if not await self.not_stored(room, missing):
                return

    async def state_before(
        self,
        room: RoomRef,
        head: RoomHead,
        pdu: Pdu,
        missing: Collection[EventId],
        asked: Asked,
    ) -> ForkState | None:
        """The state before an event some of whose parents nobody gives us, as another server has it.

        None where no server tells it. Source: Server-Server API, GET /_matrix/federation/v1/state_ids.
        """
        for server_name in asked:
            states: list[ForkState] = []
            try:
                states += [await self._state_after(room, head, event_id, server_name) for event_id in missing]
            except (FederationError, IncompleteState) as error:
                log.info("the state at %s cannot be had: %s", pdu.event_id, error)
                if isinstance(error, FederationError):
                    asked.failed(error)
                continue
            async with self.database.connection() as tx:
                parents = await stored_places.load(tx, room.nid, set(pdu.prev_events) - set(missing))
            states += (await self.forks.after(parents.values())).values()
            if len(states) == 1:
                return states[0]
            now = head.state_ver
            return ForkState(now, await self.forks.resolve(room, now, states))
        return None

    async def told_state(self, room: RoomRef, event_id: EventId, server_name: ServerName) -> StateEntries:
        """The state before an event as a server tells it, stored, without events that do not hold.

        As when a room is joined, what the gate refuses is left out, and what the server does not give. Raises
        FederationError, IncompleteState for a state without a create event.
        """
        ids = await room_requests.get_room_state_ids(self.client, server_name, room.room_id, event_id)
        await self._complete(room, server_name, event_id, ids)
        return await self._entries(room, _event_ids(ids.pdu_ids))

    async def _state_after(
        self, room: RoomRef, head: RoomHead, event_id: EventId, server_name: ServerName
    ) -> ForkState:
        """The state after an event that is not here, as a server tells it.

        Without what does not hold, as when a room is joined: one event that nobody can verify must not end
        the room here. Raises FederationError, IncompleteState.
        """
        ids = await room_requests.get_room_state_ids(self.client, server_name, room.room_id, event_id)
        if not await self._complete(room, server_name, event_id, ids):
            raise IncompleteState("so many of its events are missing that not all were fetched")
        await self.fetch_with_auth_events(room, server_name, [event_id])
        entries = await self._entries(room, [*_event_ids(ids.pdu_ids), event_id])
        now = head.state_ver
        async with self.database.connection() as tx:
            current = await room_state.whole(tx, StateAt(room.nid, now))
        return ForkState(now, difference(current, entries))

    async def _entries(self, room: RoomRef, event_ids: Sequence[EventId]) -> StateEntries:
        """The state that events make, later ones in the place of earlier ones. Raises IncompleteState."""
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, room.nid, event_ids)
        entries: StateEntries = {}
        for event_id in event_ids:
            place = places.get(event_id)
            if place is None or place.key is None or place.is_unchecked or place.is_rejected:
                continue
            entries[place.key] = place.nid
        create = await key_numbers(self.forks.dictionaries, [CREATE])
        if create.get(CREATE) not in entries:
            raise IncompleteState("a state without a create event")
        return entries

    async def _complete(
        self, room: RoomRef, server_name: ServerName, event_id: EventId, ids: StateIdsAnswer
    ) -> bool:
        """Fetch and store what is not here of a state and its auth chains, as far as the server gives it.

        Whether all of it was asked for. Raises FederationError.
        """
        wanted = _event_ids([*ids.pdu_ids, *ids.auth_chain_ids])
        missing = await self.not_stored(room, wanted)
        if len(missing) * ONE_BY_ONE_UP_TO > len(wanted):
            answer = await room_requests.get_room_state(self.client, server_name, room.room_id, event_id)
            events = [*answer.auth_chain, *answer.pdus]
            outcomes = await self.gate.verify(room.version, events, pushed=False)
            await self.outliers.store(room, _of_room(room, outcomes))
            refused = {one.event_id for one in outcomes if isinstance(one, RefusedPdu)}
            missing = await self.not_stored(room, missing) - refused
        found, failure = await self._fetch(room, server_name, missing)
        await self.outliers.store(room, found)
        if failure is not None:
            raise failure
        return len(missing) <= MAX_FETCHED_EVENTS

    async def fetch_with_auth_events(
        self, room: RoomRef, server_name: ServerName, event_ids: Collection[EventId]
    ) -> None:
        """Fetch and store events one by one, with those that they name as auth events, as far as possible.

        Raises FederationError where the server cannot be reached.
        """
        found: dict[EventId, Pdu] = {}
        failure: FederationError | None = None
        missing = set(event_ids)
        for _ in range(MAX_ROUNDS):
            if not missing or failure is not None:
                break
            new, failure = await self._fetch(room, server_name, missing)
            found |= {pdu.event_id: pdu for pdu in new}
            named = {event_id for pdu in new for event_id in pdu.auth_events} - set(found)
            missing = await self.not_stored(room, named)
        await self.outliers.store(room, found.values())
        if failure is not None:
            raise failure

    async def _fetch(
        self, room: RoomRef, server_name: ServerName, event_ids: Collection[EventId]
    ) -> tuple[list[Pdu], FederationError | None]:
        """Events of a room by their IDs, a few at a time: those that the server gives.

        Also why it did not give the others, where that may pass.
        """
        found: list[Pdu] = []
        failures: list[FederationError] = []
        turns = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fetch(event_id: EventId) -> None:
            async with turns:
                try:
                    if not failures:
                        event = await room_requests.get_event(self.client, server_name, event_id)
                        found.extend(await self._verified(room, [event], [event_id]))
                except FederationError as error:
                    log.debug("%s cannot be fetched: %s", event_id, error)
                    if may_pass(error):
                        failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for event_id in sorted(event_ids)[:MAX_FETCHED_EVENTS]:
                tasks.create_task(fetch(event_id))
        return found, next(iter(failures), None)

    async def _verified(
        self, room: RoomRef, events: Sequence[object], event_ids: Sequence[EventId] | None = None
    ) -> list[Pdu]:
        return _of_room(room, await self.gate.verify(room.version, events, pushed=False, event_ids=event_ids))

    async def not_stored(self, room: RoomRef, event_ids: Collection[EventId]) -> set[EventId]:
        """Those of some events that are not here, or were never checked."""
        if not event_ids:
            return set()
        async with self.database.connection() as tx:
            places = await stored_places.load(tx, room.nid, event_ids)
        return {one for one in event_ids if one not in places or places[one].is_unchecked}


class IncompleteState(Exception):
    """A state of which some events cannot be had."""


def parents_first(pdus: Iterable[Pdu], *, auth_events_too: bool = False) -> list[Pdu]:
    """Events in their order, but each after those of them that it has among its prev_events.

    `auth_events_too`: and among its auth_events.
    """
    by_id: Mapping[EventId, Pdu] = {pdu.event_id: pdu for pdu in pdus}
    waiting_for: list[int] = []
    children: dict[EventId, list[int]] = {}
    for number, pdu in enumerate(by_id.values()):
        named = (*pdu.prev_events, *pdu.auth_events) if auth_events_too else pdu.prev_events
        parents = {parent for parent in named if parent in by_id}
        waiting_for.append(len(parents))
        for parent in parents:
            children.setdefault(parent, []).append(number)
    ready = [number for number, count in enumerate(waiting_for) if count == 0]
    in_order = list(by_id.values())
    order: list[Pdu] = []
    while ready:
        pdu = in_order[heappop(ready)]
        order.append(pdu)
        for child in children.get(pdu.event_id, ()):
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                heappush(ready, child)
    return order


def _of_room(room: RoomRef, outcomes: Iterable[Pdu | RefusedPdu]) -> list[Pdu]:
    """The events of a room that the gate lets in, each once."""
    pdus = [one for one in outcomes if isinstance(one, Pdu) and one.room_id == room.room_id]
    return list({pdu.event_id: pdu for pdu in pdus}.values())


def _event_ids(texts: Iterable[str]) -> list[EventId]:
    found = []
    for text in dict.fromkeys(texts):
        try:
            found.append(parse_event_id(text))
        except InvalidIdentifier:
            continue
    return found
