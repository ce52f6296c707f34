"""Random rooms that forked, for the laws that hold in every room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from hypothesis import strategies as st

from homeserver.protocol import room_versions
from homeserver.protocol.auth_events import POWER_LEVELS, auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.rooms import Draft, make_event

ROOM_VERSIONS: Final = tuple(room_versions.ROOM_VERSIONS.values())

PEOPLE: Final = ("@alice:one.test", "@bob:one.test", "@carol:two.test", "@dave:three.test", "@eve:three.test")
"""Alice creates every room."""


@dataclass(frozen=True)
class ForkedRoom:
    """A room whose servers disagree: each of its states was true at some place of its history.

    All events passed the auth rules where they were sent. In a room that is not `consistent` states may hold
    older events than their other events know of, as after a wrong answer of a peer.
    """

    version: RoomVersion
    events: Mapping[EventId, Pdu]
    states: tuple[Mapping[StateKey, EventId], ...]


@st.composite
def forked_rooms(
    draw: st.DrawFn, *, versions: tuple[RoomVersion, ...] = ROOM_VERSIONS, consistent: bool = False
) -> ForkedRoom:
    """Rooms of five people with two to four forks; `consistent` as in `ForkedRoom`."""
    version = draw(st.sampled_from(versions))
    return random_forked_room(draw(st.randoms(use_true_random=False)), version, consistent=consistent)


def random_forked_room(random: Random, version: RoomVersion, *, consistent: bool = False) -> ForkedRoom:
    """A room all whose choices come from `random`."""
    history = _History(random, version)
    tips = [history.extend(history.start(), random.randint(0, 6))]
    tips += [
        history.extend(random.choice(history.places), random.randint(1, 6))
        for _ in range(random.randint(1, 3))
    ]
    states = [{key: event.event_id for key, event in tip.state.items()} for tip in tips]
    if not consistent and random.random() < 0.3:
        history.make_stale(random.choice(states))
    return ForkedRoom(version, history.events, tuple(states))


@dataclass(frozen=True)
class _Place:
    """A place in a room's history: the event there and the state after it."""

    event: Pdu
    state: Mapping[StateKey, Pdu]


@dataclass
class _History:
    """A room that grows by what its people may do."""

    random: Random
    version: RoomVersion
    events: dict[EventId, Pdu] = field(default_factory=dict)
    places: list[_Place] = field(default_factory=list)

    def start(self) -> _Place:
        alice = PEOPLE[0]
        creator = {"creator": alice} if self.version.creator_in_content else {}
        content = {"room_version": self.version.version, **creator}
        create = self._make(Draft("m.room.create", alice, "", content), None)
        place = self._store(create, {})
        users = (
            {"@bob:one.test": 50} if self.version.privileged_creators else {alice: 100, "@bob:one.test": 50}
        )
        for draft in (
            Draft("m.room.member", alice, alice, {"membership": "join"}),
            Draft("m.room.power_levels", alice, "", {"users": users}),
            Draft("m.room.join_rules", alice, "", {"join_rule": "public"}),
            *(Draft("m.room.member", user, user, {"membership": "join"}) for user in PEOPLE[1:4]),
        ):
            place = self._store(self._make(draft, place), place.state)
        return place

    def extend(self, place: _Place, count: int) -> _Place:
        """Add up to `count` events after a place; attempts that the auth rules refuse leave no trace."""
        for _ in range(count):
            event = self._make(self._draft(place), place)
            keys = auth_state_keys(self.version, event.type, event.sender, event.state_key, event.content)
            try:
                check_auth(self.version, event, {key: place.state[key] for key in keys if key in place.state})
            except NotAllowed:
                continue
            place = self._store(event, place.state)
        return place

    def make_stale(self, state: dict[StateKey, EventId]) -> None:
        """Put an older or newer event in the place of one or two entries."""
        for _ in range(self.random.randint(1, 2)):
            key = self.random.choice(list(state))
            state[key] = self.random.choice(
                [event.event_id for event in self.events.values() if event.key == key]
            )

    def _store(self, event: Pdu, state: Mapping[StateKey, Pdu]) -> _Place:
        self.events[event.event_id] = event
        place = _Place(event, {**state, event.key: event})
        self.places.append(place)
        return place

    def _make(self, draft: Draft, place: _Place | None) -> Pdu:
        """An event with an ID of random order, and a clock that is sometimes slow."""
        state = {} if place is None else place.state
        return make_event(
            self.version,
            draft.type,
            draft.sender,
            draft.state_key,
            draft.content,
            room_id=None if place is None else self.places[0].event.room_id,
            prev_events=() if place is None else (place.event.event_id,),
            auth_events=select_auth_events(
                self.version, draft.type, draft.sender, draft.state_key, draft.content, state
            ),
            depth=1 if place is None else place.event.depth + 1,
            origin_server_ts=1
            if place is None
            else place.event.origin_server_ts + self.random.randint(-3, 3),
            event_id=f"${self.random.randrange(10**6):06d}{len(self.events):037d}",
        )

    def _draft(self, place: _Place) -> Draft:
        choose = self.random.choice
        sender, target = choose(PEOPLE), choose(PEOPLE)
        match choose(
            ("profile", "member", "member", "power_levels", "power_levels", "join_rules", "topic", "leave")
        ):
            case "profile":
                name = str(self.random.randrange(100))
                return Draft("m.room.member", sender, sender, {"membership": "join", "displayname": name})
            case "leave":
                return Draft("m.room.member", sender, sender, {"membership": "leave"})
            case "member":
                return Draft(
                    "m.room.member", sender, target, {"membership": choose(("invite", "leave", "ban", "ban"))}
                )
            case "power_levels":
                users = place.state[POWER_LEVELS].content["users"] if POWER_LEVELS in place.state else {}
                return Draft(
                    "m.room.power_levels", sender, "", {"users": {**users, target: choose((0, 50, 100))}}
                )
            case "join_rules":
                rule = choose(("public", "invite", "knock"))
                return Draft("m.room.join_rules", sender, "", {"join_rule": rule})
            case _:
                return Draft("m.room.topic", sender, "", {"topic": str(self.random.randrange(100))})
