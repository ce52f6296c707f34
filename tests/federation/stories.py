"""Random stories of users of several servers in one room, whose servers cannot always reach each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, server_name_of
from homeserver.services.destination_queue import Turn
from homeserver.services.federation_sending import FederationSending
from storage.database import Database
from tests.client_api.rooms import new_room, room_path
from tests.clients import Client, Response
from tests.federation.cut_lines import Lines
from tests.federation.homeservers import name_of
from tests.federation.recomputed_rooms import StoredRoom, TrueRoom, check_room, differences, load_room
from tests.servers import MovableClock, RunningServer

PEACE_LIMIT_S: Final = 20.0
LONGEST_BACK_OFF_MS: Final = 2 * 3600 * 1000
ROUNDS_OF_GREETINGS: Final = 6
"""So many events of each server are enough to bring all forks together."""

SHARE_OF_FOLLIES: Final = 0.15
"""So many of the acts are of users who hardly can do such a thing now."""


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
class Story:
    """One room, and what its users do. Everything by chance comes from `random`."""

    random: Random
    servers: Sequence[RunningServer]
    users: Sequence[Client]
    lines: Lines
    clocks: Sequence[MovableClock]
    """Those of all servers, of the ones too that have no part in the story."""
    room_id: str = ""
    inside: set[str] = field(default_factory=set)
    """The users who are in the room, as far as their own acts tell."""
    struck: list[Client] = field(default_factory=list)
    """Those to whom others did something of which they may not know yet: what they do is of interest."""
    strikers: list[Client] = field(default_factory=list)
    """Those who removed or banned others: without their power that may not hold."""
    said: list[str] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
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
        self.followers = [Follower(user, self.room_id, self._any((1, 3, 20))) for user in self.users]
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
                self.pass_time(self.random.randint(1, 400))
                await act(self)
                if not self.is_hasty or self.random.random() < 0.3:
                    await self.peace()
            if self.random.random() < 0.8:
                self._mend()
                if not self.is_hasty or self.random.random() < 0.3:
                    await self.peace()
                    check_rooms(await self._stored())

    async def _find_insiders(self) -> None:
        """Look who is in the room."""
        self.inside = {
            user.user_id
            for user in self.users
            if (await user.get(room_path(self.room_id, "joined_members"))).status == 200
        }

    async def _come_back(self, server: RunningServer) -> None:
        """Let a user of a server in, if there is none."""
        users = [user for user in self.users if _server_of(user) == name_of(server)]
        if self.inside.isdisjoint(user.user_id for user in users):
            await self._join(self._any(users))
            await self.peace()

    async def end(self) -> None:
        """Let all servers hear everything, and bring all forks together."""
        self._mend()
        await self.peace()
        for _ in range(ROUNDS_OF_GREETINGS):
            for server in self.servers:
                await self._greet(server)
                await self.peace()
            together = together_in_room(await self._stored())
            if all(one.extremities == other.extremities for one, other in together):
                return
        raise AssertionError("the forks stay")

    async def _greet(self, server: RunningServer) -> None:
        """A member of a server changes its name, which no rule forbids."""
        for user in self.users:
            if server_name_of(user.user_id) == name_of(server):
                self.pass_time(10)
                if (await user.get(room_path(self.room_id, "joined_members"))).status == 200:
                    await self._rename(user)
                    return

    def pass_time(self, ms: int) -> None:
        for clock in self.clocks:
            clock.advance(ms)

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
            if server_name_of(user.user_id) == name_of(server) and user.user_id in self.inside:
                await self._leave(user)

    def _cut(self) -> None:
        """Two servers cannot reach each other any more, or only one the other, or they hear no answers."""
        one, other = self.random.sample([name_of(server) for server in self.servers], 2)
        broken = self.lines.deaf if self.random.random() < 0.15 else self.lines.cut
        broken.add((one, other))
        if self.random.random() < 0.8:
            broken.add((other, one))
        print(f"cut: {self.lines.cut}, deaf: {self.lines.deaf}")

    def _mend(self) -> None:
        print("mended")
        self.lines.mend()
        self.pass_time(LONGEST_BACK_OFF_MS)
        if self.random.random() < 0.8:  # otherwise it takes a moment before servers try again
            for server in self.servers:
                for other in self.servers:
                    server.services.destinations.heard(name_of(other))

    async def _join(self, user: Client) -> None:
        others = [name_of(server) for server in self.servers if name_of(server) != _server_of(user)]
        self.random.shuffle(others)
        query = urlencode([("via", name) for name in others])
        answer = await self._ask(user, "POST", f"{room_path(self.room_id, 'join')}?{query}", {})
        if answer.status == 200:
            self.inside.add(user.user_id)

    async def _leave(self, user: Client) -> None:
        if (await self._ask(user, "POST", room_path(self.room_id, "leave"), {})).status == 200:
            self.inside.discard(user.user_id)

    async def _rename(self, user: Client) -> None:
        content = {"membership": "join", "displayname": str(self.random.randrange(10**6))}
        await self._set(user, "m.room.member", content, user.user_id)

    async def _change(self, what: str, target: Client) -> None:
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
        quiet = 0
        try:
            async with asyncio.timeout(PEACE_LIMIT_S):
                while quiet < 2:
                    quiet = quiet + 1 if await self._is_quiet() else 0
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(
                f"no peace: {[await self._unrest(server) for server in self.servers]}"
            ) from None

    async def _is_quiet(self) -> bool:
        return not any([await self._unrest(server) for server in self.servers])

    async def _unrest(self, server: RunningServer) -> list[object]:
        """What is under way on a server."""
        sending, own = sending_of(server), name_of(server)
        unrest: list[object] = [
            queue.server.name
            for queue in sending._queues
            if queue.turn is not Turn.WAITING or self.lines.works((own, queue.server.name))
        ]
        if sending.undistributed or server.services.room_events.persister.pending:
            unrest.append("events that nobody has looked at")
        tables = ["room_joins"]
        if all(self.lines.works((own, name_of(other))) for other in self.servers):
            tables.append("waiting_pdus")  # otherwise one that is not heard may know what they wait for
        async with database_of(server).connection() as tx:
            for table in tables:
                query = f"SELECT count(*) FROM {table} JOIN rooms ON nid = room_nid WHERE room_id = $1"
                if count := await tx.fetchval(query, self.room_id):
                    unrest.append((table, count))
        return unrest

    # -- what is true in the end

    async def check(self) -> None:
        """What the servers have stored is what follows from the events, and clients are told that."""
        rooms = await self._stored()
        for one, other in together_in_room(rooms):
            assert differences(one.trunk[-1], other.trunk[-1]) == {}
            assert one.extremities == other.extremities
        check_rooms(rooms)
        for server in self.servers:
            stored = next((room for room in rooms if room.server_name == name_of(server)), None)
            for follower in self.followers:
                if _server_of(follower.client) == name_of(server):
                    await self._check_told(follower, stored)

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
        current = room.trunk[-1]
        assert afresh.state == current
        assert {key: follower.state.get(key) for key in current} == current
        assert set(members.body["joined"]) == room.joined()
        events = await client.in_room("GET", self.room_id, "state")
        assert {(one["type"], one["state_key"]): one["event_id"] for one in events} == current

    async def _stored(self) -> list[StoredRoom]:
        rooms = [
            await load_room(database_of(server), name_of(server), RoomId(self.room_id))
            for server in self.servers
        ]
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


def check_rooms(rooms: Sequence[StoredRoom]) -> None:
    """What servers have stored is what follows from the events."""
    true = TrueRoom.of(rooms)
    for room in rooms:
        print(f"what is stored by {room.server_name}")
        check_room(room, true)


def together_in_room(rooms: Sequence[StoredRoom]) -> list[tuple[StoredRoom, StoredRoom]]:
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


def sending_of(server: RunningServer) -> FederationSending:
    return server.services.remote_joins._handshakes._sending


def database_of(server: RunningServer) -> Database:
    return server.services.room_history.database
