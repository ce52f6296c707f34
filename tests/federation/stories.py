"""Random stories of users of several servers in one room, whose servers cannot always reach each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from random import Random
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.services import incoming_events, outgoing_transactions
from homeserver.services.destination_queue import Turn
from homeserver.services.federation_sending import FederationSending
from storage.database import Database
from tests.client_api.rooms import new_room, room_path
from tests.clients import Client, Response
from tests.federation.cut_lines import Lines
from tests.federation.homeservers import name_of
from tests.federation.recomputed_rooms import (
    KnownRoom,
    Resolver,
    StoredRoom,
    TrueRoom,
    check_room,
    differences,
    load_room,
)
from tests.servers import MovableClock, RunningServer

PEACE_LIMIT_S: Final = 20.0
LONGEST_BACK_OFF_MS: Final = 2 * 3600 * 1000
ROUNDS_OF_GREETINGS: Final = 6
"""So many events of each server are enough to bring all forks together."""

ENOUGH_STORIES: Final = 10
"""With fewer nothing is said of how many were worth telling."""
SHARE_OF_FOLLIES: Final = 0.15
"""So many of the acts are of users who hardly can do such a thing now."""


def seeds(number: int) -> range:
    """The seeds of so many stories, unless LAIR_TEST_STORIES and LAIR_TEST_FIRST_STORY say otherwise."""
    first = int(os.environ.get("LAIR_TEST_FIRST_STORY", "1"))
    return range(first, first + int(os.environ.get("LAIR_TEST_STORIES", number)))


class StoryServer(Protocol):
    """A server that has a part in stories."""

    @property
    def name(self) -> ServerName: ...

    async def unrest(self, room_id: str, others: Collection[ServerName], lines: Lines) -> list[object]:
        """What is under way there, but for what has to wait for a line that does not work."""

    async def known(self, room_id: str) -> KnownRoom | None:
        """What it knows of the room; None where it was never in it."""

    async def hear(self, other: ServerName) -> None:
        """Let it know that another one can be reached again."""


@dataclass(frozen=True)
class OurServer:
    """A server of ours in this process."""

    server: RunningServer

    @property
    def name(self) -> ServerName:
        return name_of(self.server)

    @property
    def _sending(self) -> FederationSending:
        return self.server.services.remote_joins._handshakes._sending

    @property
    def _database(self) -> Database:
        return self.server.services.room_history.database

    async def unrest(self, room_id: str, others: Collection[ServerName], lines: Lines) -> list[object]:
        unrest: list[object] = [
            queue.server.name
            for queue in self._sending._queues
            if queue.turn is not Turn.WAITING or lines.works((self.name, queue.server.name))
        ]
        if self._sending.undistributed or self.server.services.room_events.persister.pending:
            unrest.append("events that nobody has looked at")
        tables = ["room_joins"]
        if all(lines.works((self.name, other)) for other in others):
            tables.append("waiting_pdus")  # otherwise one that is not heard may know what they wait for
        async with self._database.connection() as tx:
            for table in tables:
                query = f"SELECT count(*) FROM {table} JOIN rooms ON nid = room_nid WHERE room_id = $1"
                if count := await tx.fetchval(query, room_id):
                    unrest.append((table, count))
        return unrest

    async def known(self, room_id: str) -> StoredRoom | None:
        return await load_room(self._database, self.name, RoomId(room_id))

    async def hear(self, other: ServerName) -> None:
        await self.server.services.destinations.succeeded(other)


def shorten_pauses(patched: pytest.MonkeyPatch) -> None:
    """Let servers of ours try again at once what is measured by the time of the event loop."""
    patched.setattr(outgoing_transactions, "FIRST_PAUSE_S", 0.0)
    patched.setattr(incoming_events, "PAUSE_S", 0.02)
    patched.setattr(incoming_events, "MAX_PAUSE_S", 0.5)


@dataclass
class Follower:
    """A client that takes the state of a room from what /sync tells."""

    client: Client
    room_id: str
    limit: int
    token: str | None = None
    is_in: bool = False
    state: dict[StateKey, EventId] = field(default_factory=dict)

    async def follow(self) -> None:
        """Take what is new."""
        wanted = {"room": {"rooms": [self.room_id], "timeline": {"limit": self.limit}}}
        answer = await self.client.sync(self.token, filter=wanted)
        self.token = answer["next_batch"]
        rooms = answer["rooms"]
        self.is_in = self.room_id in rooms.get("join", {}) or (
            self.is_in and not any(self.room_id in rooms.get(kind, {}) for kind in ("leave", "invite"))
        )
        room = rooms.get("join", {}).get(self.room_id, {})
        for events in (room.get("state", {}), room.get("timeline", {})):
            for event in events.get("events", ()):
                if "state_key" in event:
                    self.state[event["type"], event["state_key"]] = event["event_id"]


@dataclass
class World:
    """Three servers, which have a part in stories one after the other."""

    servers: Sequence[StoryServer]
    users: Sequence[Sequence[Client]]
    """Three of each server."""
    lines: Lines
    clocks: Sequence[MovableClock]
    """Those of our servers."""
    back_off_ms: int = LONGEST_BACK_OFF_MS
    """So long it takes until a line that works again is tried; 0: one hears of it at once."""
    poll_s: float = 0.001
    """How often one looks whether there is peace."""
    deviating: Resolver | None = None
    """How servers of another kind resolve states, where that is not what the specification says."""
    pairs: list[int] = field(default_factory=list)
    """How many pairs of servers were together in the room in the end: of each story."""

    async def tell(self, seed: int) -> None:
        """Tell a story of the first two servers, or of all, and look at what has become of the room."""
        random = Random(seed)
        number = 3 if random.random() < 0.3 else 2
        users = [user for of_server in self.users[:number] for user in of_server[: 5 - number]]
        story = Story(random, self, self.servers[:number], users, is_hasty=random.random() < 0.4)
        try:
            await story.begin(random.choice(list(ROOM_VERSIONS)))
            await story.go_on(random.randint(2, 5))
            await story.end()
            self.pairs.append(await story.check())
        finally:
            self.lines.mend()

    def check(self) -> None:
        """Servers that have nothing in common in the end prove nothing: most stories must end otherwise."""
        if len(self.pairs) >= ENOUGH_STORIES:
            assert sum(map(bool, self.pairs)) > len(self.pairs) / 2, self.pairs

    def pass_time(self, ms: int) -> None:
        for clock in self.clocks:
            clock.advance(ms)


@dataclass
class Story:
    """One room, and what its users do. Everything by chance comes from `random`."""

    random: Random
    world: World
    servers: Sequence[StoryServer]
    users: Sequence[Client]
    room_id: str = ""
    inside: set[str] = field(default_factory=set)
    """The users who are in the room, as far as their own acts tell."""
    keeper: Client | None = None
    """Who neither leaves nor is thrown out: a room that everybody has left is the end of most stories."""
    struck: list[Client] = field(default_factory=list)
    """Those to whom others did something of which they may not know yet: what they do is of interest."""
    strikers: list[Client] = field(default_factory=list)
    """Those who removed or banned others: without their power that may not hold."""
    said: list[str] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    """Clients of users of our servers."""
    is_hasty: bool = False
    """Whether users act before all servers know what others did."""

    # -- telling it

    async def begin(self, version: str) -> None:
        """Make the room, and let most others in."""
        creator = self._any(self.users)
        levels = {user.user_id: self._any((0, 50, 100, 100)) for user in self.users}
        levels[creator.user_id] = 100
        if version == "12":
            del levels[creator.user_id]
        content = {"users": levels, "invite": self._any((0, 50)), "events": {}}
        print(f"{creator.user_id} makes a room of version {version}, levels {levels}")
        self.room_id = await new_room(creator, room_version=version, power_level_content_override=content)
        self.inside.add(creator.user_id)
        self.keeper = creator if self.random.random() < 0.8 else None
        ours = {server.name for server in self.servers if isinstance(server, OurServer)}
        followed = [user for user in self.users if _server_of(user) in ours]
        self.followers = [Follower(user, self.room_id, self._any((1, 3, 20))) for user in followed]
        for user in self.users:
            if user is not creator and self.random.random() < 0.8:
                await self._join(user)
                await self.peace()

    async def go_on(self, chapters: int) -> None:
        """Let users act; in most chapters some servers do not hear of it before the end."""
        for _ in range(chapters):
            await self._find_insiders()
            self.struck.clear()
            self.strikers.clear()
            for server in self.servers:
                if self.random.random() < 0.8:
                    await self._come_back(server)
            if self.random.random() < 0.8:
                self._cut()
            weights = [weight * self._any((0.3, 1, 3)) for weight in ACTS.values()]
            for act in self.random.choices(list(ACTS), weights, k=self.random.randint(4, 12)):
                self.world.pass_time(self.random.randint(1, 400))
                await act(self)
                if not self.is_hasty or self.random.random() < 0.3:
                    await self.peace()
            if self.random.random() < 0.8:
                await self._mend()
                if not self.is_hasty or self.random.random() < 0.3:
                    await self.peace()
                    check_rooms(await self._known())

    async def _find_insiders(self) -> None:
        """Look who is in the room."""
        self.inside = {
            user.user_id
            for user in self.users
            if (await user.get(room_path(self.room_id, "joined_members"))).status == 200
        }

    async def _come_back(self, server: StoryServer) -> None:
        """Let a user of a server in, if there is none."""
        users = [user for user in self.users if _server_of(user) == server.name]
        if self.inside.isdisjoint(user.user_id for user in users):
            await self._join(self._any(users))
            await self.peace()

    async def end(self) -> None:
        """Let all servers hear everything, and bring all of them and all forks together."""
        await self._mend()
        await self.peace()
        for server in self.servers:
            await self._bring_in(server)
        for _ in range(ROUNDS_OF_GREETINGS):
            for server in self.servers:
                await self._greet(server)
                await self.peace()
            together = together_in_room(await self._known())
            if all(one.extremities == other.extremities for one, other in together):
                return
        raise AssertionError("the forks stay")

    async def _bring_in(self, server: StoryServer) -> None:
        """Let a user of a server in, if there is none, and if anybody can do that."""
        await self._find_insiders()
        users = [user for user in self.users if _server_of(user) == server.name]
        for user in users:
            for whats in ((), ("unban", "invite")):
                if not self.inside.isdisjoint(user.user_id for user in users):
                    return
                hosts = [host for host in self.users if host.user_id in self.inside]
                for host, what in product(hosts, whats):
                    path = room_path(self.room_id, what)
                    await self._ask(host, "POST", path, {"user_id": user.user_id})
                await self.peace()
                await self._join(user)
                await self.peace()

    async def _greet(self, server: StoryServer) -> None:
        """A member of a server changes its name, which no rule forbids."""
        for user in self.users:
            if _server_of(user) == server.name:
                self.world.pass_time(10)
                if (await user.get(room_path(self.room_id, "joined_members"))).status == 200:
                    await self._rename(user)
                    return

    # -- what users do

    async def do_say(self) -> None:
        user = self._insider()
        path = room_path(self.room_id, "send", "m.room.message", uuid4().hex)
        answer = await self._ask(user, "PUT", path, {"msgtype": "m.text", "body": "hello"})
        if answer.status == 200:
            self.said.append(answer.body["event_id"])

    async def do_set_topic(self) -> None:
        kind = self._any(("topic", "topic", "name"))
        await self._set(self._insider(), f"m.room.{kind}", {kind: str(self.random.randrange(100))})

    async def do_set_levels(self) -> None:
        user, target, level = self._insider(), self._any(self.users), self._any((0, 50, 100))
        if self.strikers and self.random.random() < 0.6:
            target, level = self.strikers[-1], 0
        current = await user.get(room_path(self.room_id, "state", "m.room.power_levels", ""))
        if current.status == 200:
            users = {**current.body["users"], target.user_id: level}
            await self._set(user, "m.room.power_levels", {**current.body, "users": users})
            self.struck.append(target)

    async def do_set_rules(self) -> None:
        await self._set(
            self._insider(), "m.room.join_rules", {"join_rule": self._any(("public", "public", "invite"))}
        )

    async def do_set_visibility(self) -> None:
        visibility = self._any(("shared", "joined", "invited", "world_readable"))
        await self._set(self._insider(), "m.room.history_visibility", {"history_visibility": visibility})

    async def do_join(self) -> None:
        await self._join(self._outsider())

    async def do_leave(self) -> None:
        await self._leave(self._insider())

    async def do_rename(self) -> None:
        user = self._insider()
        if user.user_id in self.inside:
            await self._rename(user)

    async def do_invite(self) -> None:
        await self._change("invite", self._outsider())

    async def do_kick(self) -> None:
        await self._change("kick", self._insider())

    async def do_ban(self) -> None:
        await self._change("ban", self._insider())

    async def do_unban(self) -> None:
        await self._change("unban", self._outsider())

    async def do_redact(self) -> None:
        if self.said:
            path = room_path(self.room_id, "redact", self._any(self.said[-6:]), uuid4().hex)
            await self._ask(self._insider(), "PUT", path, {})

    async def do_look(self) -> None:
        await self._any(self.followers).follow()

    async def do_look_back(self) -> None:
        path = room_path(self.room_id, "messages")
        await self._ask(self._insider(), "GET", path, {"dir": "b", "limit": "100"})

    async def do_leave_all(self) -> None:
        """All users of a server leave."""
        server = self._any(self.servers)
        for user in self.users:
            if _server_of(user) == server.name and user.user_id in self.inside:
                await self._leave(user)

    def _cut(self) -> None:
        """Two servers cannot reach each other any more, or only one the other, or they hear no answers."""
        one, other = self.random.sample([server.name for server in self.servers], 2)
        broken = self.world.lines.deaf if self.random.random() < 0.15 else self.world.lines.cut
        broken.add((one, other))
        if self.random.random() < 0.8:
            broken.add((other, one))
        print(f"cut: {self.world.lines.cut}, deaf: {self.world.lines.deaf}")

    async def _mend(self) -> None:
        print("mended")
        self.world.lines.mend()
        self.world.pass_time(self.world.back_off_ms)
        if not self.world.back_off_ms or self.random.random() < 0.8:  # or it takes a moment until they try
            for server in self.servers:
                for other in self.servers:
                    if other is not server:
                        await server.hear(other.name)

    async def _join(self, user: Client) -> None:
        others = [server.name for server in self.servers if server.name != _server_of(user)]
        self.random.shuffle(others)
        query = urlencode([("via", name) for name in others])
        path = f"/_matrix/client/v3/join/{quote(self.room_id, safe='')}?{query}"
        answer = await self._ask(user, "POST", path, {})
        if answer.status == 200:
            self.inside.add(user.user_id)

    async def _leave(self, user: Client) -> None:
        if user is self.keeper:
            return
        if (await self._ask(user, "POST", room_path(self.room_id, "leave"), {})).status == 200:
            self.inside.discard(user.user_id)

    async def _rename(self, user: Client) -> None:
        content = {"membership": "join", "displayname": str(self.random.randrange(10**6))}
        await self._set(user, "m.room.member", content, user.user_id)

    async def _change(self, what: str, target: Client) -> None:
        if target is self.keeper:
            return
        path = room_path(self.room_id, what)
        user = self._insider()
        answer = await self._ask(user, "POST", path, {"user_id": target.user_id})
        if answer.status == 200 and what in ("kick", "ban"):
            self.struck.append(target)
            self.strikers.append(user)

    async def _set(self, user: Client, event_type: str, content: Any, state_key: str = "") -> None:
        await self._ask(user, "PUT", room_path(self.room_id, "state", event_type, state_key), content)

    async def _ask(self, user: Client, method: str, path: str, body: Any) -> Response:
        answer = await (user.get(path, body) if method == "GET" else user.send(method, path, body))
        rest = path.removeprefix(room_path(self.room_id))
        told = answer.body.get("event_id", answer.body.get("error", ""))
        print(f"{user.user_id} {method} {rest} {body}: {answer.status} {told}")
        assert answer.status != 500, answer.body
        return answer

    def _any(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def _insider(self) -> Client:
        if self.struck and self.random.random() < 0.3:
            return self.struck[-1]
        return self._one(lambda user: user.user_id in self.inside)

    def _outsider(self) -> Client:
        return self._one(lambda user: user.user_id not in self.inside)

    def _one(self, is_likely: Callable[[Client], bool]) -> Client:
        """A user who can probably act so; now and then any."""
        likely = [user for user in self.users if is_likely(user)]
        found: Client = self._any(
            likely if likely and self.random.random() > SHARE_OF_FOLLIES else self.users
        )
        return found

    # -- peace

    async def peace(self) -> None:
        """Wait until nothing is under way, but for what has to wait for a line that does not work."""
        quiet, unrest = 0, []
        try:
            async with asyncio.timeout(PEACE_LIMIT_S):
                while quiet < 2:
                    unrest = await self._unrest()
                    quiet = 0 if any(unrest) else quiet + 1
                    await asyncio.sleep(self.world.poll_s)
        except TimeoutError:
            raise AssertionError(f"no peace: {unrest}") from None

    async def _unrest(self) -> list[list[object]]:
        names = [server.name for server in self.servers]
        return [await server.unrest(self.room_id, names, self.world.lines) for server in self.servers]

    # -- what is true in the end

    async def check(self) -> int:
        """What the servers have stored is what follows from the events, and clients are told that.

        Returns how many pairs of servers were together in the room, and compared.
        """
        rooms = await self._known()
        together = together_in_room(rooms)
        for one, other in together:
            assert one.extremities == other.extremities
            if found := differences(one.current, other.current):
                assert self._is_deviation(rooms, one, other), (one.server_name, found)
        check_rooms(rooms)
        for server in self.servers:
            if isinstance(server, OurServer):
                stored = await server.known(self.room_id)
                for follower in self.followers:
                    if _server_of(follower.client) == server.name:
                        await self._check_told(follower, stored)
        return len(together)

    def _is_deviation(self, rooms: Sequence[KnownRoom], one: KnownRoom, other: KnownRoom) -> bool:
        """Whether a server of another kind has just the state that is to be expected of it.

        What ours should have is looked at in any case.
        """
        foreign = [room for room in (one, other) if not isinstance(room, StoredRoom)]
        if self.world.deviating is None or not foreign:
            return False
        print(f"{foreign[0].server_name} has another state")
        true = TrueRoom.of(rooms, self.world.deviating)
        expected = true.resolve([true.after[event_id] for event_id in sorted(foreign[0].extremities)])
        return not differences(foreign[0].current, expected)

    async def _check_told(self, follower: Follower, room: StoredRoom | None) -> None:
        """What a client is told of the room."""
        client = follower.client
        print(f"what {client.user_id} is told")
        afresh = Follower(client, self.room_id, self._any((1, 5, 100)))
        for one in (follower, afresh):
            await one.follow()
        members = await client.get(room_path(self.room_id, "joined_members"))
        is_in = room is not None and client.user_id in room.joined()
        assert (follower.is_in, afresh.is_in, members.status == 200) == (is_in, is_in, is_in)
        if room is None or not is_in:
            return
        current = room.current
        followed = {key: one for key, one in follower.state.items() if key in current}  # keys may go
        for told in (afresh.state, followed):
            assert not (found := differences(told, current)), found
        assert set(members.body["joined"]) == room.joined()
        events = await client.in_room("GET", self.room_id, "state")
        assert {(one["type"], one["state_key"]): one["event_id"] for one in events} == current

    async def _known(self) -> list[KnownRoom]:
        rooms = [await server.known(self.room_id) for server in self.servers]
        return [room for room in rooms if room is not None]


Act = Callable[[Story], Awaitable[None]]

ACTS: Final[dict[Act, float]] = {
    Story.do_say: 3,
    Story.do_set_topic: 3,
    Story.do_set_levels: 3,
    Story.do_set_rules: 2,
    Story.do_set_visibility: 1,
    Story.do_join: 4,
    Story.do_leave: 2,
    Story.do_rename: 2,
    Story.do_invite: 2,
    Story.do_kick: 2,
    Story.do_ban: 1.5,
    Story.do_unban: 2,
    Story.do_redact: 1,
    Story.do_look: 2,
    Story.do_look_back: 1,
    Story.do_leave_all: 1,
}
"""What happens in a story, and how often."""


def check_rooms(rooms: Sequence[KnownRoom]) -> None:
    """What servers of ours have stored is what follows from the events."""
    true = TrueRoom.of(rooms)
    for room in rooms:
        if isinstance(room, StoredRoom):
            print(f"what is stored by {room.server_name}")
            check_room(room, true)


def together_in_room(rooms: Sequence[KnownRoom]) -> list[tuple[KnownRoom, KnownRoom]]:
    """All two servers that are in a room as both of them have it.

    Not so where one does not hear that its users are out. It was let in by a server that did not know of a
    ban: who banned the user does not take that server to be in the room, then or later. Or what a kick builds
    on is missing: nobody gives that to a server whose last user was kicked.
    """
    return [
        (one, other)
        for one, other in combinations(rooms, 2)
        if all({one.server_name, other.server_name} <= room.servers for room in (one, other))
    ]


def _server_of(user: Client) -> ServerName:
    return ServerName(user.user_id.partition(":")[2])
