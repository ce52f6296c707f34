"""Rooms made of a seed: how they fork, merge and break rules, and what is asked about them.

A room is the same whenever it is made of the same version and seed, as long as its making is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.strict_json import JsonObject
from synapse_compat_tests.core_cases import Case, Merge, StateCheck
from synapse_compat_tests.deviations import LEVEL_KEYS, UNHASHED, deviations_in_verdict, fails_synapse
from synapse_compat_tests.odd_json import odd_value
from synapse_compat_tests.our_core import OurRoom
from synapse_compat_tests.random_drafts import ALICE, PEOPLE, Draft, Drafting
from synapse_compat_tests.random_pdus import PduBuilder, Place
from synapse_compat_tests.random_questions import another_state, random_merge, without_some_events

_MERGES: Final = 4


def random_case(version: str, seed: int) -> Case:
    """The room of a seed, with questions about it."""
    random = Random(f"{version} {seed}")
    history = _History(random, OurRoom(version))
    history.start()
    for _ in range(random.randint(5, random.choice((20, 20, 20, 90)))):
        history.extend()
    return history.case()


class _History:
    """A room that grows by what its people try.

    Our core says what becomes of each event; whether that is so, the comparison says.
    """

    def __init__(self, random: Random, room: OurRoom) -> None:
        self._random = random
        self._room = room
        self._version = int(room.version.version)
        room_id = None if self._version >= 12 else f"!{random.randrange(10**6)}:one.test"
        self._builder = PduBuilder(random, room, room_id)
        self._places: list[Place] = []
        self._never_in_states: set[EventId] = set()
        """Events that no server takes into a state; what only the state before them refuses may get there."""
        self._events: list[JsonObject] = []
        self._checks: list[StateCheck] = []
        self._merges: list[Merge] = []

    def start(self) -> None:
        """The first events of a room, which now and then are strange already, or lack one."""
        self._put(self._create(), [])
        self._builder.room_id = self._places[0].pdu.room_id
        friends = self._random.sample(PEOPLE[1:], 4)
        join_rule = self._random.choice(("public", "public", "invite", "knock", "restricted"))
        for draft in (
            Draft("m.room.member", ALICE, ALICE, {"membership": "join"}),
            Draft("m.room.power_levels", ALICE, "", self._first_levels(friends)),
            Draft("m.room.join_rules", ALICE, "", {"join_rule": "public"}),
            *(Draft("m.room.member", user, user, {"membership": "join"}) for user in friends[:3]),
            Draft("m.room.join_rules", ALICE, "", {"join_rule": join_rule}),
        ):
            if self._random.random() < 0.97:
                self._put(draft, self._places[-1:])
        if self._random.random() < 0.2:
            self._add_event_of_another_room()

    def extend(self) -> None:
        """One more event: after the newest one, beside it, or where forks meet."""
        fork = self._random.random()
        if fork < 0.6:
            parents = self._places[-1:]
        elif fork < 0.85:
            parents = [self._random.choice(self._places)]
        else:
            count = min(len(self._places), self._random.randint(2, 3))
            parents = self._random.sample(self._places, count)
        state = {key: self._room.events[one].json for key, one in self._state_before(parents).items()}
        drafting = Drafting(self._random, self._version, state, list(self._room.events))
        self._put(drafting.draft(), parents)

    def case(self) -> Case:
        """The room with all that is asked about it."""
        never_in_states = self._room.rejected if self._version == 1 else self._never_in_states
        for _ in range(_MERGES):
            self._ask_to_resolve(random_merge(self._random, self._places, never_in_states))
        if self._random.random() < 0.1:
            self._add_event_that_synapse_takes_otherwise()
        rejected, events = sorted(self._room.rejected), list(self._room.events)
        case = Case(self._room.version.version, self._events, rejected, events, self._checks, self._merges)
        lacks_some = self._random.random() < 0.1
        return without_some_events(self._random, self._room, case) if lacks_some else case

    def _create(self) -> Draft:
        random, version = self._random, self._version
        content: JsonObject = {"room_version": str(version)}
        if version < 11:
            content["creator"] = ALICE if random.random() < 0.9 else random.choice(PEOPLE)
        if version >= 12 and random.random() < 0.5:
            content["additional_creators"] = random.sample(PEOPLE, random.randrange(3))
        if random.random() < 0.15:
            content["m.federate"] = random.choice((True, False))
        if random.random() < 0.1:
            key = random.choice(("creator", "additional_creators", "predecessor"))
            content[key] = odd_value(random, version)
        if random.random() < 0.02:
            content["room_version"] = random.choice(("unknown", "", 0, None))
        if version == 1 and random.random() < 0.3:
            del content["room_version"]
        if random.random() < 0.03:
            content.pop("creator", None)
        return Draft("m.room.create", ALICE, "", content)

    def _first_levels(self, friends: Sequence[str]) -> JsonObject:
        random, levels = self._random, (25, 50, 75, 100)
        users: JsonObject = {user_id: random.choice(levels) for user_id in friends[1:]}
        if self._version < 12:
            users[ALICE] = 100
        defaults = random.choice(({}, {"kick": 25, "ban": 75}, {"invite": 50}))
        others = {key: random.choice((0, *levels)) for key in LEVEL_KEYS if random.random() < 0.15}
        return {"users": users, **defaults, **others}

    def _state_before(self, parents: Sequence[Place]) -> Mapping[StateKey, EventId]:
        if len(parents) < 2:
            return parents[0].state if parents else {}
        state_sets = [list(parent.state.values()) for parent in parents if parent.state]
        self._ask_to_resolve(state_sets)
        return self._room.state_map(self._room.resolve(state_sets)["state"])

    def _ask_to_resolve(self, state_sets: Merge) -> None:
        if len(state_sets) > 1:
            self._merges.append(state_sets)

    def _put(self, draft: Draft, parents: Sequence[Place]) -> None:
        """Add an event after some places. One that is refused has a place too, but changes no state."""
        state = self._state_before(parents)
        event = self._builder.build(draft, parents, state)
        self._events.append(event)
        pdu = self._room.add(event)
        if pdu is None:
            return
        self._checks.append(StateCheck(pdu.event_id, list(state.values())))
        if self._places:
            self._checks.append(another_state(self._random, pdu.event_id, self._places))
        if self._room.judge_by_auth_events(pdu.event_id) or fails_synapse(self._room.version, pdu):
            self._never_in_states.add(pdu.event_id)
            self._room.rejected.add(pdu.event_id)
        elif not self._is_allowed_by_both(pdu, state):
            self._room.rejected.add(pdu.event_id)
        elif pdu.state_key is not None:
            state = {**state, pdu.key: pdu.event_id}
        self._places.append(Place(pdu, state))

    def _is_allowed_by_both(self, pdu: Pdu, state: Mapping[StateKey, EventId]) -> bool:
        """Whether a state allows an event, and no deviation is known by which Synapse would refuse it."""
        if self._room.judge_by_state(pdu.event_id, state.values()):
            return False
        before = {key: self._room.events[event_id] for key, event_id in state.items()}
        return not deviations_in_verdict(self._room.version, pdu, before, allowed=True)

    def _add_event_of_another_room(self) -> None:
        """A join in a room elsewhere, which events of this one may name as an auth event."""
        draft = Draft("m.room.member", ALICE, ALICE, {"membership": "join"})
        elsewhere = "!other:one.test" if self._version < 12 else "!" + "A" * 43
        event = self._builder.build(draft, self._places[:1], {})
        event = self._builder.hashed({**event, "room_id": elsewhere})
        self._events.append(event)
        self._room.add(event)

    def _add_event_that_synapse_takes_otherwise(self) -> None:
        """A message that nothing refers to, with a key that Synapse does not hash, or too deep for it."""
        top_level = {self._random.choice(UNHASHED): 1}
        if self._version < 6 and self._random.random() < 0.3:
            top_level = {"depth": self._random.choice((2**53, 2**63 - 1))}
        draft = Draft("m.room.message", ALICE, None, {}, top_level)
        self._events.append(self._builder.build(draft, self._places[-1:], self._places[-1].state))
