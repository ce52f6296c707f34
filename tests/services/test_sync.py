"""Laws of /sync, over random stories of three users in one room.

What is answered from memory is what is answered from the database; whoever applies all answers knows the
room's state; and nobody misses an event, or is shown one that the room's history hides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.errors import MatrixError
from homeserver.protocol.events import EventDraft
from homeserver.protocol.filters import parse_filter
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import ClientEvents
from homeserver.services.notifier import Notifier
from homeserver.services.recent_events import RecentEvents
from homeserver.services.room_history import PageRequest, RoomHistory
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.sync import Sync, SyncRequest
from homeserver.services.sync_sections import SyncSections
from storage import sync_reads
from storage.database import Database
from storage.events import event_ids_of
from tests.storage.stores import Store, open_store

LATER_MS = 4_000_000_000_000
INCARNATION = "test"
Key = tuple[str, str]


def later() -> int:
    return LATER_MS


def new_sync(store: Store, budget_bytes: int = 1 << 25) -> Sync:
    """What answers /sync in a process that has just started."""
    recent = RecentEvents(store.stream.position, budget_bytes)
    notifier = Notifier(store.database, store.stream)
    sections = SyncSections(store.database, recent)
    return Sync(notifier, recent, store.stream, sections, INCARNATION, later)


def listening(store: Store, sync: Sync) -> Sync:
    for listener in (sync.recent.add, sync.sections.listen, sync.notifier.listen):
        store.stream.listen(listener)
    return sync


@dataclass
class Follower:
    """A user's client, which applies every answer to what it knows."""

    user: Requester
    state_after: bool
    limit: int
    token: str | None = None
    joined: bool = False
    state: dict[Key, str] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)

    @property
    def request(self) -> dict[str, Any]:
        filter_ = parse_filter({"room": {"timeline": {"limit": self.limit}}})
        return {"filter": filter_, "state_after_key": "state_after" if self.state_after else None}


@dataclass
class Story:
    """A room, its users and everybody's clients."""

    store: Store
    sync: Sync
    users: list[Requester]
    room_id: RoomId
    followers: list[Follower]
    tokens: list[str] = field(default_factory=list)
    events: list[EventId] = field(default_factory=list)

    @property
    def history(self) -> RoomHistory:
        visibility = RoomVisibility(self.store.dictionaries)
        events = ClientEvents(visibility, later)
        return RoomHistory(self.store.database, self.store.dictionaries, visibility, events, INCARNATION)

    async def act(self, actor: int, what: str, number: int) -> None:
        """Something that a user does, or tries to do."""
        user, other = self.users[actor], self.users[(actor + 1 + number % 2) % 3]
        membership, room_id = self.store.room_membership, self.room_id
        try:
            match what:
                case "say":
                    event_id = await self.store.send(user, room_id, str(number))
                case "topic":
                    event_id = await self.set_state(user, "m.room.topic", {"topic": str(number)})
                case "visibility":
                    values = ("joined", "invited", "shared", "world_readable")
                    content = {"history_visibility": values[number % 4]}
                    event_id = await self.set_state(user, "m.room.history_visibility", content)
                case "name":
                    event_id = await self.set_state(user, "m.room.name", {"name": "Tea" * (number % 2)})
                case "join":
                    event_id = await membership.join(user, room_id, {})
                case "profile":
                    event_id = await membership.join(user, room_id, {"displayname": str(number)})
                case "leave":
                    event_id = await membership.leave(user, room_id, {})
                case "invite":
                    event_id = await membership.invite(user, room_id, other.user_id, {})
                case "kick":
                    event_id = await membership.kick(user, room_id, other.user_id, {})
                case "ban":
                    event_id = await membership.ban(user, room_id, other.user_id, {})
                case "unban":
                    event_id = await membership.unban(user, room_id, other.user_id, {})
                case _:
                    target = self.events[number % len(self.events)]
                    events = self.store.room_events
                    await events.redact(user, room_id, target, {}, "redact", str(len(self.store.told)))
                    return
        except MatrixError:
            return
        self.events.append(event_id)

    async def set_state(self, user: Requester, event_type: str, content: dict[str, Any]) -> EventId:
        draft = EventDraft(event_type, content, "")
        return await self.store.room_events.set_state(user, self.room_id, draft)

    async def answer(self, sync: Sync, user: Requester, since: str | None, **request: Any) -> Any:
        return json.loads(await sync.sync(user, SyncRequest(since=since, **request)))

    async def compare(self, user: Requester, since: str, number: int) -> None:
        """The same question is answered the same from memory and from the database."""
        filters: list[dict[str, Any]] = [
            {"room": {"timeline": {"limit": number % 5}}},
            {"room": {"timeline": {"limit": 2, "not_types": ["m.room.message"]}}},
            {"room": {"timeline": {"types": ["m.room.t*", "*sage"]}, "state": {"not_types": ["*.topic"]}}},
            {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}},
            {"event_fields": ["type", "content.membership"], "event_format": "federation"},
        ]
        for filter_ in filters:
            request = {
                "filter": parse_filter(filter_),
                "state_after_key": "state_after" if number % 2 else None,
            }
            answers = [
                _normal(await self.answer(sync, user, since, **request))
                for sync in (self.sync, new_sync(self.store))
            ]
            assert answers[0] == answers[1], (since, filter_)

    async def follow(self, follower: Follower) -> None:
        """A client asks what is new, fills the gaps and applies all of it."""
        answer = await self.answer(self.sync, follower.user, follower.token, **follower.request)
        follower.token = answer["next_batch"]
        self.tokens.append(answer["next_batch"])
        for kind in ("join", "leave"):
            room = answer["rooms"].get(kind, {}).get(self.room_id)
            if room is None:
                continue
            timeline, state = room["timeline"], room.get("state", room.get("state_after"))["events"]
            order = [self.event_order(event["event_id"]) for event in timeline["events"]]
            assert order == sorted(set(order))
            shown = {event["event_id"] for event in timeline["events"]}
            assert follower.state_after or shown.isdisjoint(event["event_id"] for event in state)
            if follower.joined and kind == "join":
                assert shown.isdisjoint(follower.heard)
            changes = state if follower.state_after else [*state, *timeline["events"]]
            follower.state |= {
                (event["type"], event["state_key"]): event["event_id"]
                for event in changes
                if "state_key" in event
            }
            follower.heard |= shown
            if kind == "leave":
                follower.own |= {
                    event["event_id"]
                    for event in timeline["events"]
                    if event.get("state_key") == follower.user.user_id
                }
            if timeline["limited"] and kind == "join":
                follower.heard |= await self.gap(follower, timeline["prev_batch"])
            follower.joined = kind == "join"

    async def gap(self, follower: Follower, prev_batch: str) -> set[str]:
        """What lies before a timeline, up to what the client knows."""
        found: set[str] = set()
        token: str | None = prev_batch
        while token is not None:
            page = await self.history.messages(
                follower.user, self.room_id, PageRequest("b", token, limit=3)
            )
            for event in page.chunk:
                if event["event_id"] in follower.heard:
                    return found
                found.add(event["event_id"])
            token = page.end
        return found

    def event_order(self, event_id: str) -> int:
        [pos] = [event.pos for event in self.store.told if event.stored.pdu.event_id == event_id]
        return pos

    async def check(self, follower: Follower) -> None:
        """What a client knows is what the room is, as far as its user may know."""
        try:
            page = await self.history.messages(follower.user, self.room_id, PageRequest("b", limit=1000))
        except MatrixError:
            visible = set()
        else:
            visible = {event["event_id"] for event in page.chunk}
        assert follower.heard - follower.own <= visible
        if not follower.joined:
            return
        assert follower.heard == visible | follower.own
        async with self.store.database.connection() as tx:
            room_nid = await tx.fetchval("SELECT nid FROM rooms WHERE room_id = $1", self.room_id)
            entries = (await sync_reads.whole_states(tx, {room_nid: 2**62}))[room_nid]
            event_ids = await event_ids_of(tx, entries.values())
        assert set(follower.state.values()) == set(event_ids.values())


def _normal(answer: Any) -> Any:
    """An answer in which the order of state and members does not matter."""
    for kind in answer["rooms"].values():
        for room in kind.values():
            for key in ("state", "state_after"):
                if key in room:
                    room[key]["events"].sort(key=json.dumps)
    return answer


ACTIONS = st.tuples(
    st.integers(0, 2),
    st.sampled_from(
        ["say", "say", "topic", "visibility", "name", "join", "join", "profile", "leave", "invite"]
        + ["kick", "ban", "unban", "redact"]
    ),
    st.integers(0, 20),
)
ASKING = st.tuples(st.integers(0, 2), st.just("sync"), st.integers(0, 20))


@pytest.mark.invariant("PROM-SYNC")
@pytest.mark.invariant("SEC-VIS-2")
@settings(max_examples=30)
@given(
    preset=st.sampled_from(["public_chat", "private_chat"]),
    modes=st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=3, max_size=3),
    story=st.lists(ACTIONS | ACTIONS | ASKING, min_size=5, max_size=40),
)
async def test_prom_sync_and_sec_vis_2_whoever_follows_knows_the_room_and_no_more(
    database: Database,
    database_url: str,
    preset: str,
    modes: list[tuple[bool, int]],
    story: list[tuple[int, str, int]],
) -> None:
    async with open_store(database_url) as store:
        users = [await store.user(name) for name in ("alice", "bob", "carol")]
        followers = [Follower(user, *mode) for user, mode in zip(users, modes, strict=True)]
        told = Story(store, listening(store, new_sync(store)), users, RoomId(""), followers)
        for follower in followers:
            await told.follow(follower)
        told.room_id = await store.room(users[0], power_level_content_override={"users_default": 100})
        if preset == "private_chat":
            await told.set_state(users[0], "m.room.join_rules", {"join_rule": "invite"})
        told.events.append(store.told[-1].stored.pdu.event_id)
        for actor, what, number in story:
            if what == "sync":
                await told.follow(followers[actor])
                await told.compare(users[actor], told.tokens[number % len(told.tokens)], number)
            else:
                await told.act(actor, what, number)
        for follower in followers:
            await told.follow(follower)
            await told.check(follower)
