"""What is asked about a random room beyond what its own history asks: other states, and other merges."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from homeserver.protocol.identifiers import EventId
from synapse_compat_tests.core_cases import Case, Merge, State, StateCheck
from synapse_compat_tests.our_core import OurRoom
from synapse_compat_tests.random_pdus import Place


def another_state(random: Random, event_id: EventId, places: Sequence[Place]) -> StateCheck:
    """Have an event judged by a state that it was not made for, which may lack what matters."""
    state: State = list(random.choice(places).state.values())
    if random.random() < 0.3:
        state = random.sample(state, random.randint(0, len(state)))
    return StateCheck(event_id, state)


def random_merge(random: Random, places: Sequence[Place], never_in_states: Collection[EventId]) -> Merge:
    """States to resolve, which may lack keys or hold older and rejected events, as after a wrong answer."""
    states = [dict(place.state) for place in random.sample(places, min(len(places), random.randint(2, 4)))]
    for state in states:
        if random.random() < 0.15:
            for key in random.sample(list(state), min(len(state), random.randint(1, 3))):
                del state[key]
        if state and random.random() < 0.15:
            key = random.choice(list(state))
            of_this_key = [place.pdu for place in places if (place.pdu.type, place.pdu.state_key) == key]
            state[key] = random.choice(
                [pdu.event_id for pdu in of_this_key if pdu.event_id not in never_in_states]
            )
    return [list(state.values()) for state in states if state]


def without_some_events(random: Random, room: OurRoom, case: Case) -> Case:
    """The resolutions of a case alone, and without one or two events that nobody has any more."""
    known = list(room.events)[1:]
    lost = set(random.sample(known, min(len(known), 2)))
    ids = [room.describe(event).get("event_id") for event in case.events]
    return Case(
        case.room_version,
        [event for event, event_id in zip(case.events, ids, strict=True) if event_id not in lost],
        [event_id for event_id in case.rejected if event_id not in lost],
        resolutions=[
            state_sets
            for state_sets in case.resolutions
            if not any(lost.intersection(state) for state in state_sets)
        ],
    )
