"""Where an event from outside has its place in a room, and whether it is rejected or soft-failed there.

`Arrivals` is the decision that the persister asks. Mostly an event names the room's forward extremities as
its parents: then it is judged by the head alone. Otherwise what its forks come to is worked out first, beside
the persister's loop, and the decision only checks that this still fits the head.
Source: Server-Server API, "Checks performed on receipt of a PDU", "Soft failure".
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from homeserver.protocol.auth_events import CREATE, auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import check_auth, check_auth_events
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.power_levels import PowerLevels
from homeserver.protocol.room_versions import RoomVersion
from homeserver.services.fork_states import ForkStates, NewNode
from storage import stored_places
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.packed_state import StateEntries
from storage.placement import Placed
from storage.room_heads import (
    Extremity,
    Needs,
    NeedsCommit,
    NeedsWork,
    RoomHead,
    RoomRef,
    StoredEvent,
)
from storage.state_deltas import ForkState
from storage.stored_places import StoredBody, StoredPlace

MAX_REFUSED_BEHIND: Final = 100
"""Through so many rejected or soft-failed events it is looked for the extremities that an event covers."""


class Verdict(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    SOFT_FAILED = "soft-failed"
    REJECTED = "rejected"


class MissingParents(Exception):
    """Events that an event has among its prev_events are not here."""

    def __init__(self, pdu: Pdu, missing: Iterable[EventId]) -> None:
        super().__init__()
        self.pdu = pdu
        self.missing = frozenset(missing)


class MissingAuthEvents(MissingParents):
    """Events that an event has among its auth_events are not here."""


@dataclass(slots=True, eq=False)
class Arrival:
    """An event from outside that is to be stored.

    `nid`: its number, new or that of its row where `is_promoted`. `flags`: those that hold if it is accepted.
    `is_fixed`: it is stored only if it is accepted; otherwise the decision raises NotAllowed. `before`: the
    state before it where that cannot be had from stored parents, those in `missing` being absent for good.
    """

    pdu: Pdu
    nid: int
    is_promoted: bool = False
    flags: int = 0
    is_fixed: bool = False
    before: ForkState | None = None
    missing: frozenset[EventId] = frozenset()
    verdict: Verdict | None = None
    reason: str = ""
    """Why it is not accepted."""
    auth: _AuthFacts | None = None
    fork: _ForkFacts | None = None


@dataclass(frozen=True, slots=True)
class _AuthFacts:
    """The auth events that an event names, and what they say about it: the same for ever."""

    nids: tuple[int, ...]
    events: Mapping[StateKey, Pdu]
    refusal: str | None
    """Why they do not allow the event."""


@dataclass(frozen=True, slots=True)
class _ForkFacts:
    """What was worked out about an event that does not just follow the extremities, for one kind of head."""

    fits: Hashable
    """What the head has to be like: see `_kind_of_head`."""
    placed: Placed
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class _View:
    """A head, as far as it matters to a fork; it does not change any more."""

    room: RoomRef
    state_ver: int
    extremities: tuple[Extremity, ...]
    create: Pdu | None


class Arrivals:
    """A decision: gives some events of one room their places, in their order.

    It takes as many as it can at once: the IDs that come back are those of the events that it has taken, and
    the others are to be handed over again. Raises MissingParents, MissingAuthEvents, and NotAllowed for a
    fixed event that is refused.
    """

    def __init__(
        self, database: Database, dictionaries: Dictionaries, forks: ForkStates, arrivals: Sequence[Arrival]
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._forks = forks
        self._arrivals = arrivals

    def __call__(self, head: RoomHead) -> list[Placed]:
        """The events that can be placed on this head, each with its place."""
        head = head.overlay()
        taken: list[Placed] = []
        for arrival in self._arrivals:
            try:
                placed = self._place(head, arrival)
            except (Needs, NeedsWork, NeedsCommit):
                if taken:
                    break
                raise
            taken.append(placed)
            if placed.is_live:
                changes = placed.changes
                if changes is None:
                    pdu = placed.pdu
                    changes = {} if pdu.state_key is None else {pdu.key: StoredEvent(placed.nid, pdu)}
                covers = head.prev_events if placed.covers is None else placed.covers
                head.put(placed.pdu, placed.nid, changes, covers, is_extremity=placed.is_extremity)
        return taken

    def _place(self, head: RoomHead, arrival: Arrival) -> Placed:
        pdu = arrival.pdu
        parents = set(pdu.prev_events)
        extremities = {extremity.event_id for extremity in head.extremities}
        if arrival.before is None and parents == extremities and parents:
            return self._on_top(head, arrival)
        if not head.is_committed:
            raise NeedsCommit
        facts = arrival.fork
        if facts is None or facts.fits != _kind_of_head(
            head.state_ver, head.extremities, facts.placed.covers
        ):
            view = _View(head.room, head.state_ver, head.extremities, head.event(*CREATE))
            raise NeedsWork(lambda: self._work_out(view, arrival))
        arrival.verdict, arrival.reason = facts.verdict, facts.reason
        if arrival.is_fixed and facts.verdict is not Verdict.ACCEPTED:
            raise NotAllowed("soft failure", facts.reason)
        return facts.placed

    # -- on top of the extremities

    def _on_top(self, head: RoomHead, arrival: Arrival) -> Placed:
        """The place of an event whose parents are just the extremities: the state before it is today's."""
        pdu, version = arrival.pdu, head.version
        keys = auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        state = head.events(keys)
        selected = select_auth_events(version, pdu.type, pdu.sender, pdu.state_key, pdu.content, state)
        refusal: str | None = None
        if len(selected) == len(pdu.auth_events) and set(selected) == set(pdu.auth_events):
            stored = (head.stored(key) for key in keys)
            named = set(selected)
            auth_nids = tuple(one.nid for one in stored if one is not None and one.pdu.event_id in named)
        else:
            if arrival.auth is None:
                view = _View(head.room, head.state_ver, head.extremities, head.event(*CREATE))
                raise NeedsWork(lambda: self._learn_auth_events(view, arrival))
            auth_nids, refusal = arrival.auth.nids, arrival.auth.refusal
        if refusal is None:
            refusal = _refusal(version, pdu, state)
        if refusal is not None:
            arrival.verdict, arrival.reason = Verdict.REJECTED, refusal
            if arrival.is_fixed:
                raise NotAllowed("authorization", refusal)
            return Placed(
                pdu,
                arrival.nid,
                EventFlag.REJECTED,
                auth_nids,
                tuple(extremity.nid for extremity in head.extremities),
                state=ForkState(head.seq),
                is_live=False,
                is_promoted=arrival.is_promoted,
            )
        arrival.verdict, arrival.reason = Verdict.ACCEPTED, ""
        return Placed(
            pdu,
            arrival.nid,
            arrival.flags,
            auth_nids,
            None if not head.names_extremities else tuple(one.nid for one in head.extremities),
            frozenset(pdu.prev_events),
            is_promoted=arrival.is_promoted,
            redacts_others=_redacts_others(head.version, pdu, head.events(_levels_keys(pdu))),
        )

    # -- beside the persister's loop

    async def _learn_auth_events(self, view: _View, arrival: Arrival) -> None:
        async with self._database.connection() as tx:
            arrival.auth = await self._auth_facts(tx, view, arrival.pdu)

    async def _auth_facts(self, tx: Transaction, view: _View, pdu: Pdu) -> _AuthFacts:
        """What the auth events of an event say about it. Raises MissingAuthEvents."""
        found = await stored_places.bodies(tx, view.room, set(pdu.auth_events))
        missing = set(pdu.auth_events) - set(found)
        if missing:
            raise MissingAuthEvents(pdu, missing)
        named = [found[event_id] for event_id in pdu.auth_events]
        return _AuthFacts(
            tuple(body.nid for body in named),
            {body.pdu.key: body.pdu for body in named if body.pdu.state_key is not None},
            _refusal_by_auth_events(view, pdu, named),
        )

    async def _work_out(self, view: _View, arrival: Arrival) -> None:
        """Find out the place of an event on a fork, for heads like this one."""
        pdu, room, now = arrival.pdu, view.room, view.state_ver
        async with self._database.connection() as tx:
            parents = await stored_places.load(tx, room.nid, set(pdu.prev_events))
            placed_parents = {i: place for i, place in parents.items() if not place.is_outlier}
            missing = set(pdu.prev_events) - set(placed_parents)
            if (missing and missing != arrival.missing) or not pdu.prev_events:
                raise MissingParents(pdu, missing)
            if arrival.auth is None:
                arrival.auth = await self._auth_facts(tx, view, pdu)
            covered = await self._covered(tx, room, placed_parents)
            late = bool(await stored_places.are_missing(tx, room.nid, [pdu.event_id]))
        before = arrival.before
        if before is None:
            states = await self._forks.after(placed_parents.values())
            before = await self._one_state(room, now, list(states.values()))
        extremities = {extremity.event_id for extremity in view.extremities}
        covers = frozenset(covered & extremities)
        overlay = await self._forks.relative(room.nid, before, now)
        keys = auth_state_keys(room.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        # After one of the extremities the state is taken into account already.
        follows = arrival.before is None and len(pdu.prev_events) == 1 and pdu.prev_events[0] in extremities
        verdict, refusal = Verdict.ACCEPTED, arrival.auth.refusal
        if refusal is None:
            state = await self._forks.of_keys(room, now, overlay, keys)
            refusal = _refusal(room.version, pdu, state)
        if refusal is not None:
            verdict = Verdict.REJECTED
        else:
            refusal = await self._refused_now(view, pdu, before, {} if follows else overlay, keys)
            if refusal is not None:
                verdict = Verdict.SOFT_FAILED
        placed = Placed(
            pdu,
            arrival.nid,
            arrival.flags,
            arrival.auth.nids,
            tuple(place.nid for place in placed_parents.values()),
            frozenset() if late else covers,
            is_extremity=not late,
            state=before,
            changes={},
            is_promoted=arrival.is_promoted,
            missing=arrival.missing,
            fills_gap=late,
        )
        if verdict is not Verdict.ACCEPTED:
            flag = EventFlag.REJECTED if verdict is Verdict.REJECTED else EventFlag.SOFT_FAILED
            placed = replace(placed, flags=flag, is_live=False)
        else:
            levels = await self._forks.of_keys(room, now, {}, _levels_keys(pdu))
            changes: Mapping[StateKey, StoredEvent | None] = {}
            if not late and not (follows and pdu.state_key is None):
                changes = await self._changes(view, covers, before, arrival)
            redacts_others = _redacts_others(room.version, pdu, levels)
            placed = replace(placed, changes=changes, redacts_others=redacts_others)
        fits = _kind_of_head(now, view.extremities, placed.covers)
        arrival.fork = _ForkFacts(fits, placed, verdict, refusal or "")

    async def _one_state(self, room: RoomRef, now: int, states: Sequence[ForkState]) -> ForkState:
        """The state that the states after all parents come to."""
        if len(states) == 1:
            return states[0]
        return ForkState(now, await self._forks.resolve(room, now, states))

    async def _refused_now(
        self, view: _View, pdu: Pdu, before: ForkState, overlay: StateEntries, keys: Sequence[StateKey]
    ) -> str | None:
        """Why the current state does not allow an event: that of all extremities and the one before it.

        Source: Server-Server API, "Soft failure".
        """
        current: StateEntries = {}
        if overlay:
            states = [*await self._states_of(view, view.extremities), before]
            current = await self._forks.resolve(view.room, view.state_ver, states)
        state = await self._forks.of_keys(view.room, view.state_ver, current, keys)
        return _refusal(view.room.version, pdu, state)

    async def _changes(
        self, view: _View, covers: Collection[EventId], before: ForkState, arrival: Arrival
    ) -> dict[StateKey, StoredEvent | None]:
        """How the current state changes when an event joins the extremities that it does not cover."""
        assert arrival.auth is not None
        pdu, after = arrival.pdu, before
        if pdu.state_key is not None:
            type_nid = await self._dictionaries.event_types.nid(pdu.type)
            after = before.after((type_nid, await self._dictionaries.atoms.nid(pdu.state_key)), arrival.nid)
        others = [extremity for extremity in view.extremities if extremity.event_id not in covers]
        new = NewNode(arrival.nid, pdu, arrival.auth.nids)
        states = [*await self._states_of(view, others), after]
        changes = await self._forks.resolve(view.room, view.state_ver, states, new)
        if not changes:
            return {}
        types = await self._dictionaries.event_types.texts({type_nid for type_nid, _ in changes})
        state_keys = await self._dictionaries.atoms.texts({skey_nid for _, skey_nid in changes})
        async with self._database.connection() as tx:
            events = await stored_places.bodies_by_nid(tx, view.room, set(changes.values()))
        bodies = {nid: StoredEvent(nid, body.pdu) for nid, body in events.items()}
        bodies[arrival.nid] = StoredEvent(arrival.nid, pdu)
        return {
            (types[type_nid], state_keys[skey_nid]): bodies.get(nid)
            for (type_nid, skey_nid), nid in changes.items()
        }

    async def _states_of(self, view: _View, extremities: Sequence[Extremity]) -> list[ForkState]:
        """The states after some extremities."""
        sole = [ForkState(extremity.seq) for extremity in extremities if extremity.is_sole]
        forked = [extremity.event_id for extremity in extremities if not extremity.is_sole]
        if not forked:
            return sole
        async with self._database.connection() as tx:
            places = await stored_places.load(tx, view.room.nid, forked)
        return [*sole, *(await self._forks.after(places.values())).values()]

    async def _covered(
        self, tx: Transaction, room: RoomRef, parents: Mapping[EventId, StoredPlace]
    ) -> set[EventId]:
        """An event's parents, and those that it reaches through rejected and soft-failed ones."""
        covered = set(parents)
        refused = [place for place in parents.values() if place.is_refused]
        looked_at = 0
        while refused and looked_at < MAX_REFUSED_BEHIND:
            looked_at += len(refused)
            bodies = await stored_places.bodies_by_nid(tx, room, [place.nid for place in refused])
            behind = {event_id for body in bodies.values() for event_id in body.pdu.prev_events} - covered
            covered |= behind
            places = await stored_places.load(tx, room.nid, behind)
            refused = [place for place in places.values() if place.is_refused]
        return covered


def _kind_of_head(
    state_ver: int, extremities: Iterable[Extremity], covers: Iterable[EventId] | None
) -> Hashable:
    """What decides how an event changes a head: its state, and the states of the extremities that stay.

    Messages that come on top of an extremity meanwhile change none of that.
    """
    covered = set(covers or ())
    staying = frozenset(
        0 if extremity.is_sole and extremity.seq >= state_ver else extremity.nid
        for extremity in extremities
        if extremity.event_id not in covered
    )
    return (
        state_ver,
        staying,
        frozenset(extremity.event_id for extremity in extremities if extremity.event_id in covered),
    )


def _refusal(version: RoomVersion, pdu: Pdu, state: Mapping[StateKey, Pdu]) -> str | None:
    """Why a state does not allow an event."""
    try:
        check_auth(version, pdu, state)
    except NotAllowed as error:
        return str(error)
    return None


def _refusal_by_auth_events(view: _View, pdu: Pdu, named: Sequence[StoredBody]) -> str | None:
    """Why an event's own auth events do not allow it."""
    version = view.room.version
    rejected = {body.pdu.event_id for body in named if body.is_rejected}
    state = {body.pdu.key: body.pdu for body in named if body.pdu.state_key is not None}
    if version.room_id_is_create_hash and view.create is not None:
        state[CREATE] = view.create
    try:
        check_auth_events(version, pdu, [body.pdu for body in named], rejected)
        check_auth(version, pdu, state)
    except NotAllowed as error:
        return str(error)
    return None


def _levels_keys(pdu: Pdu) -> list[StateKey]:
    return [CREATE, ("m.room.power_levels", "")] if pdu.type == "m.room.redaction" else []


def _redacts_others(version: RoomVersion, pdu: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    """Whether the sender of a redaction may redact what others have sent."""
    create = state.get(CREATE)
    if create is None:
        return True
    levels = PowerLevels.of(version, create, state.get(("m.room.power_levels", "")))
    return levels.user_level(pdu.sender) >= levels.redact
