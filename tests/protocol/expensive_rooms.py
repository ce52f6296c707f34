"""Rooms whose forks are dear to resolve: a large one, and those that somebody makes to that end."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from homeserver.protocol.auth_events import POWER_LEVELS, auth_state_keys
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.state_resolution import AuthGraph
from homeserver.protocol.strict_json import JsonObject
from tests.protocol.rooms import ALICE, create_content_of

VERSIONS: Final = tuple(ROOM_VERSIONS[name] for name in ("1", "11", "12"))
"""One for each algorithm of state resolution."""


@dataclass
class NumberedRoom:
    """A room that is told event by event, as a server has it: its events have numbers, the graph is there."""

    version: RoomVersion
    graph: AuthGraph[int] = field(default_factory=AuthGraph)
    events: dict[int, Pdu] = field(default_factory=dict)
    state: MutableMapping[StateKey, int] = field(default_factory=dict)
    overlays: list[Mapping[StateKey, int | None]] = field(default_factory=list)
    """What each of its forks has other than the state."""
    absent: set[int] = field(default_factory=set)
    """Auth events that nobody can supply."""

    def __post_init__(self) -> None:
        """Alice made the room, which everyone may join."""
        is_hash = self.version.room_id_is_create_hash
        self.room_id = RoomId("!" + (event_id_of(0)[1:] if is_hash else "room:test"))
        self.create = self.say(ALICE, "m.room.create", "", create_content_of(self.version))
        self.alice = self.join(ALICE)
        self.set_levels()
        self.say(ALICE, "m.room.join_rules", "", {"join_rule": "public"})

    def say(
        self,
        sender: str,
        event_type: str,
        state_key: str,
        content: JsonObject,
        auth_events: tuple[int, ...] | None = None,
    ) -> int:
        """An event in the state so far, which has it then. `auth_events`: others than it would name."""
        number = len(self.events)
        keys = auth_state_keys(self.version, event_type, sender, state_key, content)
        if auth_events is None:
            auth_events = tuple(self.state[key] for key in keys if key in self.state)
        if self.version.room_id_is_create_hash:
            auth_events = tuple(one for one in auth_events if one != self.create)
        self.events[number] = Pdu(
            event_id=event_id_of(number),
            room_id=self.room_id,
            type=event_type,
            sender=UserId(sender),
            state_key=state_key,
            content=content,
            prev_events=(event_id_of(number - 1),) if number else (),
            auth_events=tuple(map(event_id_of, auth_events)),
            depth=number,
            origin_server_ts=number,
            json={},
        )
        key = (event_type, state_key)
        self.graph.add(number, auth_events, is_power_levels=key == POWER_LEVELS)
        self.state[key] = number
        return number

    def join(self, user: str, **profile: str) -> int:
        return self.say(user, "m.room.member", user, {"membership": "join", **profile})

    def move(self, sender: str, target: str, membership: str) -> int:
        return self.say(sender, "m.room.member", target, {"membership": membership})

    def set_topic(self, topic: str, sender: str = ALICE) -> int:
        return self.say(sender, "m.room.topic", "", {"topic": topic})

    def set_levels(self, users: Mapping[str, int] | None = None, **content: int) -> int:
        """Power levels by Alice, in which she has her place."""
        creator = {} if self.version.privileged_creators else {ALICE: 100}
        return self.say(ALICE, "m.room.power_levels", "", {"users": {**creator, **(users or {})}, **content})

    def set_levels_often(self, times: int, users: Mapping[str, int] | None = None) -> list[int]:
        return [self.set_levels(users, ban=50 + number % 2) for number in range(times)]

    def fork(self, tell: Callable[[int], object], forks: int) -> None:
        """Continue the room in so many ways, each of them told from the state so far, which stays."""
        state = self.state
        for number in range(forks):
            changes: dict[StateKey, int] = {}
            self.state = ChainMap(changes, state)
            tell(number)
            self.overlays.append(dict(changes))
        self.state = state

    def whole_states(self) -> list[dict[StateKey, EventId]]:
        """The state of each fork, in event IDs."""
        numbered = ({**self.state, **overlay} for overlay in self.overlays)
        return [
            {key: event_id_of(number) for key, number in state.items() if number is not None}
            for state in numbered
        ]


def event_id_of(number: int) -> EventId:
    return EventId(f"${number:043d}")


def large_room(
    version: RoomVersion, members: int, forks: int, changes: int, graph: AuthGraph[int] | None = None
) -> NumberedRoom:
    """A room that so many people are in and as many have left, where forks change about so many keys each."""
    room = NumberedRoom(version, AuthGraph() if graph is None else graph)
    random = Random(members)
    moderators = {f"@moderator{number}:one.test": 50 for number in range(forks)}
    for user in moderators:
        room.join(user)
    room.set_levels(moderators)
    users = [f"@user{number}:server{number % 97}.test" for number in range(members)]
    for number, user in enumerate(users):
        room.join(user)
        if number % 1000 == 999:
            room.set_levels(moderators, invite=number // 1000 % 2)
    for number in range(members):
        user = f"@former{number}:server{number % 97}.test"
        room.join(user)
        room.move(user, user, "leave")

    def tell(fork: int) -> None:
        moderator = f"@moderator{fork}:one.test"
        room.set_topic(f"topic {fork}", moderator)
        for number in range(changes):
            user = random.choice(users)
            match number % 10:
                case 0 | 1 | 2:
                    room.join(f"@new{number}:server{fork}.test")
                case 3 | 4:
                    room.move(user, user, "leave")
                case 5:
                    room.move(moderator, user, random.choice(("ban", "leave")))
                case _:
                    room.join(user, displayname=f"{fork}")
        if fork % 2:
            room.set_levels({**moderators, f"@new0:server{fork}.test": 50})
        else:
            room.say(moderator, "m.room.join_rules", "", {"join_rule": "invite" if fork % 4 else "public"})

    room.fork(tell, forks)
    return room


def topics_above_a_long_chain(room: NumberedRoom, size: int) -> None:
    """The auth chain is long, the disagreement small."""
    room.set_levels_often(size)
    room.fork(lambda number: room.set_topic(f"{number}"), 20)


def states_all_along_a_long_chain(room: NumberedRoom, size: int) -> None:
    """Ten forks have old power levels: nearly the whole chain is in conflict, all of one key."""
    chain = room.set_levels_often(size)
    room.overlays += [{POWER_LEVELS: chain[number * size // 10]} for number in range(10)]


def a_state_without_anything(room: NumberedRoom, size: int) -> None:
    """Nothing is common: the long chain is in one state's, whole."""
    room.set_levels_often(size)
    room.overlays += [{}, dict.fromkeys(room.state)]


def a_ladder(room: NumberedRoom, size: int) -> None:
    """More paths than anyone could walk lead from the newest member event and power levels to the oldest."""
    member = ("m.room.member", ALICE)
    old = {key: room.state[key] for key in (member, POWER_LEVELS)}
    for number in range(size // 2):
        room.join(ALICE, displayname=f"{number}")
        room.set_levels(ban=50 + number % 2)
    room.overlays += [{}, old]


def a_star(room: NumberedRoom, size: int) -> None:
    """All members of two forks name the power levels of their fork, which are in conflict."""

    def tell(fork: int) -> None:
        room.set_levels(ban=50 + fork)
        for number in range(size // 2):
            room.join(f"@user{number}:test", displayname=f"{fork}")

    room.fork(tell, 2)


def chains_of_power_levels(room: NumberedRoom, size: int) -> None:
    """Ten forks change the power levels again and again."""
    room.fork(lambda number: room.set_levels_often(size // 10, {f"@user{number}:test": number}), 10)


def states_of_one_key(room: NumberedRoom, size: int) -> None:
    """As many forks as events, each with power levels of its own."""
    room.fork(lambda number: room.set_levels(ban=number % 50), size)


def everything_in_conflict(room: NumberedRoom, size: int) -> None:
    """Ten forks have other events for every member."""
    users = [f"@user{number}:test" for number in range(size // 10)]
    room.fork(lambda fork: [room.join(user, displayname=f"{fork}") for user in users], 10)


def events_beside_a_long_mainline(room: NumberedRoom, size: int) -> None:
    """As many events as power levels; half of both stand on a branch beside the mainline."""
    chain = room.set_levels_often(size // 2)
    levels: JsonObject = {"users": {}}
    forks: list[dict[StateKey, int | None]] = [{}, {}]
    state = dict(room.state)
    base = (room.create, room.alice)
    off = chain[0]
    for number, on_mainline in enumerate(chain):
        off = room.say(ALICE, "m.room.power_levels", "", levels, (*base, off))
        for fork, its_levels in zip(forks, (on_mainline, off), strict=True):
            fork["test", f"{number}"] = room.say(ALICE, "test", f"{number}", {}, (*base, its_levels))
    room.state = state
    room.overlays += forks


def events_with_many_auth_events(room: NumberedRoom, size: int) -> None:
    """Each event in conflict names two hundred."""
    joins = tuple(room.join(f"@user{number}:test") for number in range(200))
    named = (room.create, *joins, room.alice, room.state[POWER_LEVELS])
    state = dict(room.state)
    forks = [{("test", f"{n}"): room.say(ALICE, "test", f"{n}", {}, named)} for n in range(size)]
    room.state = state
    room.overlays += [
        {key: number for fork in forks[half::2] for key, number in fork.items()} for half in (0, 1)
    ]


def a_circle(room: NumberedRoom, size: int) -> None:
    """Power levels that name each other all around, as those whose event IDs are chosen may."""
    first, state = len(room.events), dict(room.state)
    for number in range(size):
        following = first + (number + 1) % size
        room.say(ALICE, "m.room.power_levels", "", {"users": {}}, (room.create, room.alice, following))
    room.state = state
    room.overlays += [{POWER_LEVELS: first + number * size // 10} for number in range(10)]


def events_that_name_missing_ones(room: NumberedRoom, size: int) -> None:
    """Each event in conflict names one that nobody has."""
    forks: list[dict[StateKey, int | None]] = [{}, {}]
    state = dict(room.state)
    for number in range(size):
        missing = 1_000_000 + number
        room.absent.add(missing)
        named = (room.create, room.alice, room.state[POWER_LEVELS], missing)
        forks[number % 2]["test", f"{number}"] = room.say(ALICE, "test", f"{number}", {}, named)
    room.state = state
    room.overlays += forks


def large_power_levels(room: NumberedRoom, size: int) -> None:
    """Power levels of a thousand users, changed again and again in two forks."""
    users = {f"@user{number}:server.test": number % 50 for number in range(1000)}
    room.fork(lambda fork: room.set_levels_often(size // 2, {**users, f"@fork{fork}:test": 1}), 2)


HOSTILE_ROOMS: Final[Mapping[Callable[[NumberedRoom, int], None], int]] = {
    topics_above_a_long_chain: 100_000,
    states_all_along_a_long_chain: 100_000,
    a_state_without_anything: 100_000,
    a_ladder: 100_000,
    a_star: 10_000,
    chains_of_power_levels: 10_000,
    states_of_one_key: 10_000,
    everything_in_conflict: 100_000,
    events_beside_a_long_mainline: 10_000,
    events_with_many_auth_events: 2_000,
    a_circle: 10_000,
    events_that_name_missing_ones: 10_000,
    large_power_levels: 1_000,
}
"""With the size that is large for each."""
