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

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import why_refused, why_refused_by_auth_events
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.history_visibility import HISTORY_VISIBILITY, Visibility, visibility_in
from homeserver.protocol.identifiers import EventId, ServerName, UserId, server_in
from homeserver.protocol.power_levels import redacts_others
from homeserver.protocol.room_versions import RoomVersion
from homeserver.services.fork_states import ForkStates, NewNode, key_numbers
from storage import memberships, stored_places
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.packed_state import REMOVED, StateEntries
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
from storage.stored_places import StoredPlace

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
        self.pdu = pdu
        self.missing = frozenset(missing)
        super().__init__(f"{pdu.event_id} builds on what is not here: {', '.join(sorted(self.missing))}")


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
    current: Mapping[StateKey, StoredEvent]
    """The current state, as far as it matters to the event."""

    def pdus(self, keys: Iterable[StateKey]) -> dict[StateKey, Pdu]:
        """The current events of some keys that matter, less those that have none."""
        return {key: self.current[key].pdu for key in keys if key in self.current}


class Arrivals:
    """A decision: gives some events of one room their places, in their order.

    It takes as many as it can at once: the IDs that come back are those of the events that it has taken, and
    the others are to be handed over again. Raises MissingParents, MissingAuthEvents, and NotAllowed for a
    fixed event that is refused.
    """

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        forks: ForkStates,
        server_name: ServerName,
        arrivals: Sequence[Arrival],
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._forks = forks
        self._server_name = server_name
        self._arrivals = arrivals

    def __call__(self, head: RoomHead) -> list[Placed]:
        """The events that can be placed on this head, each with its place."""
        head = head.overlay()
        taken: list[Placed] = []
        for arrival in self._arrivals:
            try:
                placed = self._place(head, arrival)
            except Needs as needs:
                raise Needs(needs.keys | self._missing_keys(head)) from None
            except (NeedsWork, NeedsCommit):
                if taken:
                    break
                raise
            taken.append(placed)
            placed.put_into(head)
        return taken

    def _missing_keys(self, head: RoomHead) -> frozenset[StateKey]:
        """What the head has not loaded of all that the events may need: to be had in one go."""
        keys: set[StateKey] = set()
        for arrival in self._arrivals:
            keys.update(_keys_that_matter(head.version, arrival.pdu))
        try:
            head.events(keys)
        except Needs as needs:
            return needs.keys
        return frozenset()

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
            view = _view(head, pdu)
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
        refusal: str | None = None
        if _names_just(version, pdu, state):
            stored = [one for key in keys if (one := head.stored(key)) is not None]
            auth_nids = _nids_of_named(pdu, stored)
        else:
            if arrival.auth is None:
                view = _view(head, pdu)
                raise NeedsWork(lambda: self._learn_auth_events(view, arrival))
            auth_nids, refusal = arrival.auth.nids, arrival.auth.refusal
        if refusal is None:
            refusal = why_refused(version, pdu, state)
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
            redacts_others=redacts_others(head.version, pdu, head.events(_levels_keys(pdu))),
        )

    # -- beside the persister's loop

    async def _learn_auth_events(self, view: _View, arrival: Arrival) -> None:
        async with self._database.connection() as tx:
            arrival.auth = await self._auth_facts(tx, view, arrival.pdu)

    async def _auth_facts(self, tx: Transaction, view: _View, pdu: Pdu) -> _AuthFacts:
        """What the auth events of an event say about it. Raises MissingAuthEvents."""
        version = view.room.version
        current = view.pdus(auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content))
        if _names_just(version, pdu, current):
            return _AuthFacts(_nids_of_named(pdu, view.current.values()), why_refused(version, pdu, current))
        found = await stored_places.bodies(tx, view.room, set(pdu.auth_events))
        missing = set(pdu.auth_events) - set(found)
        if missing:
            raise MissingAuthEvents(pdu, missing)
        named = [found[event_id] for event_id in pdu.auth_events]
        return _AuthFacts(
            tuple(body.nid for body in named),
            why_refused_by_auth_events(
                version,
                pdu,
                [body.pdu for body in named],
                {body.pdu.event_id for body in named if body.is_rejected},
                current.get(CREATE),
            ),
        )

    async def _work_out(self, view: _View, arrival: Arrival) -> None:
        """Find out the place of an event on a fork, for heads like this one."""
        pdu, room, now = arrival.pdu, view.room, view.state_ver
        async with self._database.connection() as tx:
            parents = await stored_places.load(tx, room.nid, set(pdu.prev_events))
            placed_parents = {i: place for i, place in parents.items() if place.has_state_before}
            missing = set(pdu.prev_events) - set(placed_parents)
            if (missing and missing != arrival.missing) or not pdu.prev_events:
                raise MissingParents(pdu, missing)
            if arrival.auth is None:
                arrival.auth = await self._auth_facts(tx, view, pdu)
            covered = await self._covered(tx, room, placed_parents)
            late = bool(await stored_places.are_missing(tx, room.nid, [pdu.event_id]))
        before, overlay = await self._before(view, arrival, placed_parents.values())
        extremities = {extremity.event_id for extremity in view.extremities}
        covers = frozenset(covered & extremities)
        keys = auth_state_keys(room.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        # After one of the extremities the state is taken into account already.
        follows = arrival.before is None and len(pdu.prev_events) == 1 and pdu.prev_events[0] in extremities
        verdict, refusal, flags = Verdict.ACCEPTED, arrival.auth.refusal, arrival.flags
        if refusal is None:
            keys_read = [*keys, HISTORY_VISIBILITY]
            state = await self._forks.overlaid(room, view.pdus(keys_read), keys_read, overlay)
            refusal = why_refused(room.version, pdu, state)
            if _is_open(state):
                flags |= EventFlag.OPEN
        if refusal is not None:
            verdict = Verdict.REJECTED
        else:
            plain = follows and pdu.state_key is None and not late
            others = {} if plain else await self._overlays(view)
            refusal = await self._refused_now(view, pdu, overlay, None if follows else others, keys)
            if refusal is not None:
                verdict = Verdict.SOFT_FAILED
        placed = Placed(
            pdu,
            arrival.nid,
            flags,
            arrival.auth.nids,
            tuple(place.nid for place in placed_parents.values()),
            covers,
            is_extremity=not late or covers == extremities,
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
            changes: Mapping[StateKey, StoredEvent | None] = {}
            staying = [others[event_id] for event_id in extremities - covers if event_id in others]
            if not placed.is_extremity:
                if covers:
                    changes = await self._in_words(view, await self._forks.merge(room, now, staying), arrival)
            elif not (follows and pdu.state_key is None):
                changes = await self._changes(view, staying, overlay, arrival)
            placed = replace(
                placed,
                changes=changes,
                keeps_out=await self._kept_out(room, changes, arrival),
                redacts_others=redacts_others(room.version, pdu, view.pdus(_levels_keys(pdu))),
            )
        fits = _kind_of_head(now, view.extremities, placed.covers)
        arrival.fork = _ForkFacts(fits, placed, verdict, refusal or "")

    async def _before(
        self, view: _View, arrival: Arrival, parents: Iterable[StoredPlace]
    ) -> tuple[ForkState, StateEntries]:
        """The state before an event, to which its parents come, and how it differs from the current one."""
        room, now = view.room, view.state_ver
        if arrival.before is not None:
            states = [arrival.before]
        else:
            states = list((await self._forks.after(parents)).values())
        overlays = [await self._forks.relative(room.nid, state, now) for state in states]
        if len(states) == 1:
            return states[0], overlays[0]
        overlay = await self._forks.merge(room, now, overlays)
        return ForkState(now, overlay), overlay

    async def _overlays(self, view: _View) -> dict[EventId, StateEntries]:
        """How the state after each of the extremities differs from the current one."""
        states = {
            extremity.event_id: ForkState(extremity.seq)
            for extremity in view.extremities
            if extremity.is_sole
        }
        forked = [extremity.event_id for extremity in view.extremities if not extremity.is_sole]
        if forked:
            async with self._database.connection() as tx:
                places = await stored_places.load(tx, view.room.nid, forked)
            after = await self._forks.after(places.values())
            states |= {event_id: after[place.nid] for event_id, place in places.items()}
        return {
            event_id: await self._forks.relative(view.room.nid, state, view.state_ver)
            for event_id, state in states.items()
        }

    async def _refused_now(
        self,
        view: _View,
        pdu: Pdu,
        overlay: StateEntries,
        others: Mapping[EventId, StateEntries] | None,
        keys: Sequence[StateKey],
    ) -> str | None:
        """Why the current state does not allow an event: that of all extremities and the one before it.

        `overlay`, `others`: how the state before it, which does allow it, and those after the extremities
        differ from trunk. None where the event follows one of them: the trunk is the current state then.
        Source: Server-Server API, "Soft failure".
        """
        overlays = [*(others or {}).values(), overlay]
        if not overlay or await self._agree(view, keys, overlays):
            return None
        current = {} if others is None else await self._forks.merge(view.room, view.state_ver, overlays)
        state = await self._forks.overlaid(view.room, view.pdus(keys), keys, current)
        return why_refused(view.room.version, pdu, state)

    async def _agree(self, view: _View, keys: Collection[StateKey], overlays: Iterable[StateEntries]) -> bool:
        """Whether all states have the same event for each of some keys: then what they come to has it too."""
        numbers = await key_numbers(self._dictionaries, keys)
        return all(
            key in view.current and not any(numbers[key] in overlay for overlay in overlays) for key in keys
        )

    async def _changes(
        self, view: _View, staying: Sequence[StateEntries], before: StateEntries, arrival: Arrival
    ) -> dict[StateKey, StoredEvent | None]:
        """How the current state changes when an event joins the extremities that it does not cover.

        `staying`, `before`: how the states after those, and the one before the event, differ from now.
        """
        assert arrival.auth is not None
        pdu, after = arrival.pdu, before
        if pdu.state_key is not None:
            type_nid = await self._dictionaries.event_types.nid(pdu.type)
            own = (type_nid, await self._dictionaries.atoms.nid(pdu.state_key))
            after = {key: nid for key, nid in before.items() if key != own}
            current = view.current.get(pdu.key)
            if current is None or current.nid != arrival.nid:
                after[own] = arrival.nid
        new = NewNode(arrival.nid, pdu, arrival.auth.nids)
        changes = await self._forks.merge(view.room, view.state_ver, [*staying, after], new)
        return await self._in_words(view, changes, arrival)

    async def _in_words(
        self, view: _View, changes: StateEntries, arrival: Arrival
    ) -> dict[StateKey, StoredEvent | None]:
        """Changes of the current state, with their events."""
        if not changes:
            return {}
        types = await self._dictionaries.event_types.texts({type_nid for type_nid, _ in changes})
        state_keys = await self._dictionaries.atoms.texts({skey_nid for _, skey_nid in changes})
        bodies = {arrival.nid: StoredEvent(arrival.nid, arrival.pdu)}
        if stored := set(changes.values()) - {REMOVED, arrival.nid}:
            async with self._database.connection() as tx:
                events = await stored_places.bodies_by_nid(tx, view.room, stored)
            bodies |= {nid: StoredEvent(nid, body.pdu) for nid, body in events.items()}
        return {
            (types[type_nid], state_keys[skey_nid]): bodies.get(nid)
            for (type_nid, skey_nid), nid in changes.items()
        }

    async def _kept_out(
        self, room: RoomRef, changes: Mapping[StateKey, StoredEvent | None], arrival: Arrival
    ) -> frozenset[StateKey]:
        """The users of this server whom a resolution would bring into the room: it moves nobody into one."""
        moved = {
            UserId(key[1]): key
            for key, stored in changes.items()
            if key[0] == "m.room.member"
            and stored is not None
            and stored.nid != arrival.nid
            and stored.pdu.membership == "join"
            and server_in(key[1]) == self._server_name
        }
        if not moved:
            return frozenset()
        async with self._database.connection() as tx:
            inside = await memberships.joined_among(tx, room.nid, moved)
        return frozenset(key for user_id, key in moved.items() if user_id not in inside)

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


def _keys_that_matter(version: RoomVersion, pdu: Pdu) -> list[StateKey]:
    """The keys of the current state that may be looked at when an event gets its place."""
    keys = auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
    own = () if pdu.state_key is None else (pdu.key,)
    return list(dict.fromkeys([CREATE, HISTORY_VISIBILITY, *keys, *own]))


def _view(head: RoomHead, pdu: Pdu) -> _View:
    """What is seen of a head for an event. Raises Needs."""
    keys = _keys_that_matter(head.version, pdu)
    current = {key: stored for key in keys if (stored := head.stored(key)) is not None}
    return _View(head.room, head.state_ver, head.extremities, current)


def _names_just(version: RoomVersion, pdu: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    """Whether the auth events of an event are just those that a state has for it."""
    selected = select_auth_events(version, pdu.type, pdu.sender, pdu.state_key, pdu.content, state)
    return len(selected) == len(pdu.auth_events) and set(selected) == set(pdu.auth_events)


def _nids_of_named(pdu: Pdu, stored: Iterable[StoredEvent]) -> tuple[int, ...]:
    """The numbers of those of some events that are among the auth events of an event."""
    named = set(pdu.auth_events)
    return tuple(one.nid for one in stored if one.pdu.event_id in named)


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


def _is_open(state: Mapping[StateKey, Pdu]) -> bool:
    """Whether a state shows a room's history to whoever is a member."""
    event = state.get(HISTORY_VISIBILITY)
    visibility = visibility_in(None if event is None else event.content)
    return visibility in (Visibility.SHARED, Visibility.WORLD_READABLE)


def _levels_keys(pdu: Pdu) -> list[StateKey]:
    """What decides whether a redaction takes effect on events of others."""
    return [CREATE, POWER_LEVELS] if pdu.type == "m.room.redaction" else []
