"""Where an event from outside has its place in a room, and whether it is rejected or soft-failed there.

`Arrivals` is the decision that the persister asks. Mostly an event names the room's forward extremities as
its parents: then it is judged by the head alone. Otherwise what its forks come to is worked out first, beside
the persister's loop (`ForkPlacement`), and the decision only checks that this still fits the head.
Source: Server-Server API, "Checks performed on receipt of a PDU", "Soft failure".
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import StateKey
from homeserver.protocol.power_levels import redacts_others
from homeserver.services.arrival import (
    Arrival,
    HeadView,
    Verdict,
    keys_that_matter,
    kind_of_head,
    levels_keys,
    names_just,
    nids_of_named,
)
from homeserver.services.fork_placement import ForkPlacement
from storage.event_flags import EventFlag
from storage.placement import Placed
from storage.room_heads import Needs, NeedsCommit, NeedsWork, RoomHead
from storage.state_deltas import ForkState


class Arrivals:
    """A decision: gives some events of one room their places, in their order.

    It takes as many as it can at once: the IDs that come back are those of the events that it has taken, and
    the others are to be handed over again. Raises MissingParents, MissingAuthEvents, and NotAllowed for a
    fixed event that is refused.
    """

    def __init__(self, fork_placement: ForkPlacement, arrivals: Sequence[Arrival]) -> None:
        self._fork_placement = fork_placement
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
            keys.update(keys_that_matter(head.version, arrival.pdu))
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
        if facts is None or facts.fits != kind_of_head(head.state_ver, head.extremities, facts.placed.covers):
            view = HeadView.of(head, pdu)
            raise NeedsWork(lambda: self._fork_placement.work_out(view, arrival))
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
        if names_just(version, pdu, state):
            stored = [one for key in keys if (one := head.stored(key)) is not None]
            auth_nids = nids_of_named(pdu, stored)
        else:
            if arrival.auth is None:
                view = HeadView.of(head, pdu)
                raise NeedsWork(lambda: self._fork_placement.learn_auth_events(view, arrival))
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
            redacts_others=redacts_others(head.version, pdu, head.events(levels_keys(pdu))),
        )
