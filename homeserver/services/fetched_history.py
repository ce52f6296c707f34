"""What becomes of history that other servers give: it gets its place before what was known of the room.

Only what leads back from events that are here is taken, so nobody can put anything else there: an event's ID
covers its prev_events. The states before the events are worked out forwards from the oldest of them, of which
the server tells it; the events are authorised by them, and later shown by them. What the room is now does not
change: there is no soft failure, no forward extremity, and nobody is told.
Source: Server-Server API, "Backfilling and retrieving missing events", "Checks performed on receipt of a
PDU".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.events import MAX_PREV_EVENTS, Pdu
from homeserver.protocol.identifiers import EventId, ServerName
from homeserver.protocol.power_levels import redacts_others
from homeserver.services.history_states import HistoryStates
from homeserver.services.missing_events import MissingEvents, parents_first
from homeserver.services.pdu_gate import RefusedPdu
from storage import fetched_history, stored_places
from storage.database import Database
from storage.fetched_history import FetchedEvent
from storage.nids import NidBlocks
from storage.room_heads import RoomRef
from storage.room_timeline import TimelineRow
from storage.state_deltas import ForkState
from storage.stored_places import StoredPlace

log = logging.getLogger(__name__)

MAX_TOLD_STATES: Final = 4
"""So many states are asked for at most, for one piece of history: in a line of events it takes one."""
MAX_MISSING: Final = 100
"""So many missing events are remembered of one gap: whoever names more of them names some in vain."""


@dataclass(frozen=True, slots=True)
class _Border:
    """Where what is known of a room meets what is missing before a gap."""

    room: RoomRef
    seq: int
    """The room_seq of the live event after the gap."""
    missing: Collection[EventId]
    """What the events after the gap name, and is not here."""
    oldest: TimelineRow
    """The oldest event that is known after the gap."""
    beyond: Collection[EventId]
    """What is missing before an older gap too."""
    places: Mapping[EventId, StoredPlace]
    """Of events that were given, and of those before them: what is stored already."""

    def is_known(self, event_id: EventId) -> bool:
        """Whether an event has its place already."""
        return event_id in self.places and self.places[event_id].has_state_before

    def reached(self, parents: Mapping[EventId, Sequence[EventId]]) -> set[EventId]:
        """Those of some events, given with their prev_events, to which what is known leads back."""
        found: set[EventId] = set()
        ahead = list(self.missing)
        for event_id in ahead:  # grows as it is walked
            is_new = event_id in parents and event_id not in found and event_id not in self.beyond
            if is_new and not self.is_known(event_id):
                found.add(event_id)
                ahead += parents[event_id]
        return found

    def missing_behind(
        self, parents: Mapping[EventId, Sequence[EventId]], given: Collection[EventId]
    ) -> list[EventId]:
        """What is missing once some events are here: `parents` has the prev_events of each.

        An event that names very many others, most of them in vain, must not hide what there is: so those come
        first that can be had, which were `given` already.
        """
        seen: set[EventId] = set()
        newly_named: dict[EventId, None] = {}
        ahead = [event_id for event_id in self.missing if event_id in parents]
        for event_id in ahead:  # grows as it is walked
            if event_id not in seen:
                seen.add(event_id)
                ahead += [parent for parent in parents[event_id] if parent in parents]
                absent = [one for one in parents[event_id] if one not in parents and not self.is_known(one)]
                absent.sort(key=lambda one: one not in given)
                newly_named |= dict.fromkeys(absent[:MAX_PREV_EVENTS])
        still = [event_id for event_id in self.missing if event_id not in parents]
        return list(newly_named | dict.fromkeys(still))[:MAX_MISSING]


@dataclass(frozen=True)
class FetchedHistory:
    """Checks and stores history."""

    database: Database
    missing_events: MissingEvents
    redacted: Callable[[RoomRef, EventId, Pdu], None]
    """Told of what a redaction in history takes the content of: (room, event, redaction)."""
    _nids: NidBlocks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nids", NidBlocks(self.database))

    async def take(
        self,
        room: RoomRef,
        seq: int,
        asked: Collection[EventId],
        events: Sequence[Any],
        server_name: ServerName,
        *,
        skipping: bool,
    ) -> bool:
        """Store what a server gave of the history before a gap; whether less of it is missing now.

        `asked`: the missing events that the server was to begin with. `skipping`: events that do not pass the
        gate, or whose auth events cannot be had, are passed over for good; otherwise the history ends there
        for now. Raises FederationError and IncompleteState where the server does not tell what is needed
        besides.
        """
        states = HistoryStates(self.database, self.missing_events.forks, self._nids, room, seq - 1)
        given, refused = await self._verified(states, events)
        named = {event_id for pdu in given.values() for event_id in (pdu.event_id, *pdu.prev_events)}
        border = await self._border(room, seq, named.union(refused, *refused.values()))
        if border is None:
            return False
        skipped = refused if skipping else {}
        chunk = _chosen(given, border.reached(_parents(given) | skipped))
        await self._store_outliers(room, chunk, server_name)
        async with self.database.connection() as tx:
            stored = await stored_places.load(tx, room.nid, list(chunk))
        stored = {event_id: place for event_id, place in stored.items() if not place.is_unchecked}
        if skipping:
            skipped = skipped | _parents(_chosen(chunk, chunk.keys() - stored.keys()))
        chunk = _chosen(chunk, stored)
        chunk = _chosen(chunk, border.reached(_parents(chunk) | skipped))
        by_age = sorted(chunk.values(), key=lambda pdu: (pdu.depth, pdu.origin_server_ts))
        ordered = parents_first(by_age, auth_events_too=True)
        newest = _newer_than_missing(ordered, {*chunk, *skipped, *asked}, border)
        quiet = _quiet_before(border.oldest.pdu(room), chunk)
        kept = _with_few_ends(newest, border, quiet)
        near = await states.before(border.oldest)
        work = _Work(self.missing_events, border, stored, server_name, quiet, states, near)
        fetched = [await work.fetched(pdu) for pdu in kept]
        missing = border.missing_behind(_parents({pdu.event_id: pdu for pdu in kept}) | skipped, chunk)
        found = set(border.missing).difference(missing)
        redacted = await fetched_history.place(
            self.database,
            room.nid,
            seq,
            fetched,
            found=found,
            missing=set(missing).difference(border.missing),
        )
        by_nid = {stored[pdu.event_id].nid: pdu for pdu in kept}
        for event_id, redaction_nid in redacted:
            if redaction_nid in by_nid:
                self.redacted(room, event_id, by_nid[redaction_nid])
        return bool(found)

    async def _verified(
        self, states: HistoryStates, events: Sequence[Any]
    ) -> tuple[dict[EventId, Pdu], dict[EventId, Sequence[EventId]]]:
        """What the gate lets in of what was given; and of what it does not, the prev_events.

        An event without prev_events has to be the one that made the room.
        """
        room = states.room
        outcomes = await self.missing_events.gate.verify(room.version, events, pushed=False)
        create = (await states.events(ForkState(states.ver), [CREATE])).get(CREATE)
        given: dict[EventId, Pdu] = {}
        refused: dict[EventId, Sequence[EventId]] = {}
        for outcome in outcomes:
            if isinstance(outcome, RefusedPdu):
                if outcome.event_id is not None and outcome.prev_events:
                    refused[outcome.event_id] = outcome.prev_events
            elif outcome.room_id == room.room_id and (
                outcome.prev_events or (create is not None and outcome.event_id == create.event_id)
            ):
                given[outcome.event_id] = outcome
        refused = {event_id: parents for event_id, parents in refused.items() if event_id not in given}
        if refused:
            log.info("%d events of the history of %s are refused", len(refused), room.room_id)
        return given, refused

    async def _border(self, room: RoomRef, seq: int, named: Collection[EventId]) -> _Border | None:
        """The border of a gap; None where nothing is missing there any more."""
        async with self.database.connection() as tx:
            missing = await fetched_history.missing(tx, room.nid, seq)
            oldest = await fetched_history.oldest_known(tx, room.nid, seq)
            places = await stored_places.load(tx, room.nid, named)
        here = [event_id for event_id, at in missing.items() if at == seq]
        beyond = {event_id for event_id, at in missing.items() if at < seq}
        return None if oldest is None or not here else _Border(room, seq, here, oldest, beyond, places)

    async def _store_outliers(
        self, room: RoomRef, chunk: Mapping[EventId, Pdu], server_name: ServerName
    ) -> None:
        """Store events, checked against their auth events: those of them that these can be had of."""
        named = {event_id for pdu in chunk.values() for event_id in pdu.auth_events}
        missing = await self.missing_events.not_stored(room, named - set(chunk))
        await self.missing_events.fetch_with_auth_events(room, server_name, missing)
        await self.missing_events.outliers.store(room, chunk.values())


@dataclass
class _Work:
    """Finds out what the place of each event of a piece of history needs, the oldest first."""

    missing_events: MissingEvents
    border: _Border
    stored: Mapping[EventId, StoredPlace]
    """The events, as outliers."""
    server_name: ServerName
    quiet: Collection[EventId]
    """Events in whose states nothing happens up to the oldest that was known."""
    states: HistoryStates
    near: ForkState
    """The state before the oldest event that was known."""
    after: dict[EventId, ForkState] = field(default_factory=dict)
    """The states after events that were looked at."""
    rejected: set[EventId] = field(default_factory=set)

    async def fetched(self, pdu: Pdu) -> FetchedEvent:
        """What is to be stored of an event. Raises FederationError, IncompleteState."""
        place, version = self.stored[pdu.event_id], self.border.room.version
        before = await self.states.stored(await self._before(pdu))
        refusal = "an earlier verdict" if place.is_rejected else await self._refusal(before, pdu)
        if refusal is not None:
            log.info("%s in room %s is rejected: %s", pdu.event_id, pdu.room_id, refusal)
            self.rejected.add(pdu.event_id)
        self.after[pdu.event_id] = before
        if place.key is not None and refusal is None:
            self.after[pdu.event_id] = before.after(place.key, place.nid)
        parents = (self._place(event_id) for event_id in dict.fromkeys(pdu.prev_events))
        redacts = pdu.redacts
        return FetchedEvent(
            place.nid,
            pdu.event_id,
            before.ver,
            before.over_id,
            tuple(parent.nid for parent in parents if parent is not None),
            refusal is not None,
            redacts,
            redacts is not None
            and redacts_others(version, pdu, await self.states.events(before, [CREATE, POWER_LEVELS])),
        )

    def _place(self, event_id: EventId) -> StoredPlace | None:
        """The place of an event that has one, or gets one now."""
        if event_id in self.after and event_id in self.stored:
            return self.stored[event_id]
        return self.border.places[event_id] if self.border.is_known(event_id) else None

    async def _before(self, pdu: Pdu) -> ForkState:
        """The state before an event: what those after all its parents come to, where they are known."""
        parents = list(dict.fromkeys(pdu.prev_events))
        if not parents:
            return await self.states.of_entries({}, self.near)
        if all(self._place(event_id) is not None for event_id in parents):
            await self._learn_after(parents)
            return await self.states.merged([self.after[event_id] for event_id in parents])
        if pdu.event_id in self.quiet:
            return self.near
        entries = await self.missing_events.told_state(self.border.room, pdu.event_id, self.server_name)
        return await self.states.of_entries(entries, self.near)

    async def _learn_after(self, event_ids: Iterable[EventId]) -> None:
        """Find the states after those of some events that had their places before."""
        places = [self.border.places[event_id] for event_id in event_ids if event_id not in self.after]
        states = await self.missing_events.forks.after(places)
        for place in places:
            self.after[place.event_id] = await self.states.at_version(states[place.nid])

    async def _refusal(self, before: ForkState, pdu: Pdu) -> str | None:
        """Why the state before an event does not allow it, or an auth event of its.

        A state event that was here before is not judged again: the state of today may stand on it.
        """
        known = self.border.places.get(pdu.event_id)
        if known is not None and known.key is not None and not known.is_unchecked:
            return None
        if self.rejected.intersection(pdu.auth_events):
            return "an auth event is rejected"
        version = self.border.room.version
        keys = auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        return why_refused(version, pdu, await self.states.events(before, keys))


def _chosen(events: Mapping[EventId, Pdu], event_ids: Collection[EventId]) -> dict[EventId, Pdu]:
    return {event_id: pdu for event_id, pdu in events.items() if event_id in event_ids}


def _parents(events: Mapping[EventId, Pdu]) -> dict[EventId, Sequence[EventId]]:
    return {event_id: pdu.prev_events for event_id, pdu in events.items()}


def _newer_than_missing(ordered: Sequence[Pdu], given: Collection[EventId], border: _Border) -> Sequence[Pdu]:
    """The newest of some events, without those that other missing ones may build on; one at least.

    What is missing is less deep than the events that name it. `given`: what was given, or asked for in vain.
    """
    most_depth: dict[EventId, int] = {}
    for pdu in ordered:
        for event_id in pdu.prev_events:
            if event_id not in given and not border.is_known(event_id):
                most_depth[event_id] = min(pdu.depth - 1, most_depth.get(event_id, pdu.depth))
    deepest = max(most_depth.values(), default=0)
    first = max((index for index, pdu in enumerate(ordered) if pdu.depth < deepest), default=-1) + 1
    return ordered[min(first, len(ordered) - 1) :] if ordered else ordered


def _quiet_before(oldest: Pdu, chunk: Mapping[EventId, Pdu]) -> set[EventId]:
    """The messages that lead in one line to the oldest event that was known: no state changes there."""
    quiet: set[EventId] = set()
    pdu = oldest
    while len(set(pdu.prev_events)) == 1:
        parent = chunk.get(pdu.prev_events[0])
        if parent is None or parent.state_key is not None:
            break
        quiet.add(parent.event_id)
        pdu = parent
    return quiet


def _with_few_ends(ordered: Sequence[Pdu], border: _Border, quiet: Collection[EventId]) -> Sequence[Pdu]:
    """The newest of some events, as many as can be had without asking for the states before too many.

    The state has to be asked for where parents of an event are not among them.
    """
    lacking: dict[EventId, int] = {}
    children: dict[EventId, list[EventId]] = {}
    ends, first = 0, len(ordered)
    for index in reversed(range(len(ordered))):
        pdu = ordered[index]
        parents = {one for one in pdu.prev_events if not border.is_known(one)}
        for event_id in parents:
            children.setdefault(event_id, []).append(pdu.event_id)
        lacking[pdu.event_id] = len(parents)
        ends += bool(parents) and pdu.event_id not in quiet
        for child in children.get(pdu.event_id, ()):
            lacking[child] -= 1
            ends -= lacking[child] == 0 and child not in quiet
        if ends <= MAX_TOLD_STATES:
            first = index
    return ordered[first:]
