"""The place of an event from outside that its room's head alone does not tell.

It stands on a fork: then the states of the forks are read and resolved, and it is judged by the one before it
and the current one. Or it names other auth events than those of the current state: then these are read.
Source: Server-Server API, "Checks performed on receipt of a PDU", "Soft failure".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from homeserver.protocol.auth_events import CREATE, auth_state_keys
from homeserver.protocol.auth_rules import why_refused, why_refused_by_auth_events
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.history_visibility import HISTORY_VISIBILITY, Visibility, visibility_in
from homeserver.protocol.identifiers import EventId, ServerName, UserId, server_in
from homeserver.protocol.power_levels import redacts_others
from homeserver.services.arrival import (
    Arrival,
    AuthFacts,
    ForkFacts,
    HeadView,
    MissingAuthEvents,
    MissingParents,
    Verdict,
    kind_of_head,
    levels_keys,
    names_just,
    nids_of_named,
)
from homeserver.services.fork_states import ForkStates, NewNode, key_numbers
from storage import memberships, stored_places
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.packed_state import REMOVED, StateEntries
from storage.placement import Placed
from storage.room_heads import RoomRef, StoredEvent
from storage.state_deltas import ForkState
from storage.stored_places import StoredPlace

MAX_REFUSED_BEHIND: Final = 100
"""Through so many rejected or soft-failed events it is looked for the extremities that an event covers."""


class ForkPlacement:
    """Finds out what a head does not tell about an arrival, and notes it there.

    Runs beside the persister's loop. Takes connections by itself: hold none while asking.
    """

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        forks: ForkStates,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._forks = forks
        self._server_name = server_name

    async def learn_auth_events(self, view: HeadView, arrival: Arrival) -> None:
        """Find out what the auth events of an event say about it. Raises MissingAuthEvents."""
        async with self._database.connection() as tx:
            arrival.auth = await self._auth_facts(tx, view, arrival.pdu)

    async def _auth_facts(self, tx: Transaction, view: HeadView, pdu: Pdu) -> AuthFacts:
        """What the auth events of an event say about it. Raises MissingAuthEvents."""
        version = view.room.version
        current = view.pdus(auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content))
        if names_just(version, pdu, current):
            return AuthFacts(nids_of_named(pdu, view.current.values()), why_refused(version, pdu, current))
        found = await stored_places.bodies(tx, view.room, set(pdu.auth_events))
        missing = set(pdu.auth_events) - set(found)
        if missing:
            raise MissingAuthEvents(pdu, missing)
        named = [found[event_id] for event_id in pdu.auth_events]
        return AuthFacts(
            tuple(body.nid for body in named),
            why_refused_by_auth_events(
                version,
                pdu,
                [body.pdu for body in named],
                {body.pdu.event_id for body in named if body.is_rejected},
                current.get(CREATE),
            ),
        )

    async def work_out(self, view: HeadView, arrival: Arrival) -> None:
        """Find out the place of an event on a fork, for heads like this one.

        Raises MissingParents, MissingAuthEvents.
        """
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
                redacts_others=redacts_others(room.version, pdu, view.pdus(levels_keys(pdu))),
            )
        fits = kind_of_head(now, view.extremities, placed.covers)
        arrival.fork = ForkFacts(fits, placed, verdict, refusal or "")

    async def _before(
        self, view: HeadView, arrival: Arrival, parents: Iterable[StoredPlace]
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

    async def _overlays(self, view: HeadView) -> dict[EventId, StateEntries]:
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
        view: HeadView,
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

    async def _agree(
        self, view: HeadView, keys: Collection[StateKey], overlays: Iterable[StateEntries]
    ) -> bool:
        """Whether all states have the same event for each of some keys: then what they come to has it too."""
        numbers = await key_numbers(self._dictionaries, keys)
        return all(
            key in view.current and not any(numbers[key] in overlay for overlay in overlays) for key in keys
        )

    async def _changes(
        self, view: HeadView, staying: Sequence[StateEntries], before: StateEntries, arrival: Arrival
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
        self, view: HeadView, changes: StateEntries, arrival: Arrival
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


def _is_open(state: Mapping[StateKey, Pdu]) -> bool:
    """Whether a state shows a room's history to whoever is a member."""
    event = state.get(HISTORY_VISIBILITY)
    visibility = visibility_in(None if event is None else event.content)
    return visibility in (Visibility.SHARED, Visibility.WORLD_READABLE)
