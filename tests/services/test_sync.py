"""Laws of /sync, over random stories of three users in one room.

What is answered from memory is what is answered from the database; whoever applies all answers knows the
room's state; and nobody misses an event, or is shown one that the room's history hides.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homeserver.errors import MatrixError
from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import EventDraft
from homeserver.protocol.filters import parse_filter
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import ClientEvents
from homeserver.services.room_history import PageRequest, RoomHistory
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.sync import Sync, SyncRequest
from storage import room_timeline, sync_reads
from storage.database import Database
from storage.event_flags import EventFlag
from storage.events import event_ids_of
from storage.sync_reads import TimelineEntry
from tests.services.syncing import INCARNATION, asking, later, listening, new_sync
from tests.storage.stores import NOBODY, Store, open_store

Key = tuple[str, str]


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
    known: set[str] = field(default_factory=set)
    """What it had heard when it was in the room last: events of a room it is not in come with gaps."""
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
        visibility = RoomVisibility()
        events = ClientEvents(visibility, later)
        return RoomHistory(
            self.store.database, self.store.dictionaries, visibility, events, INCARNATION, NOBODY
        )

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
            if follower.joined:
                follower.known |= follower.heard

    async def gap(self, follower: Follower, prev_batch: str) -> set[str]:
        """What lies before a timeline, up to what the client knows."""
        found: set[str] = set()
        token: str | None = prev_batch
        while token is not None:
            page = await self.history.messages(follower.user, self.room_id, PageRequest("b", token, limit=3))
            for event in page.chunk:
                if event["event_id"] in follower.known:
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


DEEDS = [
    *("say", "say", "topic", "visibility", "name", "redact", "join", "join", "profile"),
    *("leave", "invite", "kick", "ban", "unban"),
]
ACTIONS = st.tuples(
    st.integers(0, 2),
    st.sampled_from(DEEDS),
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
@example(
    preset="public_chat",
    modes=[(False, 1), (False, 0), (False, 0)],
    story=[(0, "sync", 0), (0, "say", 0), (0, "leave", 0), (0, "sync", 0), (0, "join", 0)],
)
@example(
    preset="public_chat",
    modes=[(False, 0), (False, 0), (False, 1)],
    story=[(0, "say", 0), (0, "ban", 1), (0, "unban", 1), (2, "sync", 0), (2, "join", 0)],
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


@dataclass
class Meanwhile:
    """Something that happens just before or after the next call of a function of `module`."""

    monkeypatch: pytest.MonkeyPatch

    def do(self, module: Any, name: str, act: Callable[[], Awaitable[object]], *, after: bool) -> None:
        function = getattr(module, name)

        async def patched(*arguments: Any) -> Any:
            self.monkeypatch.setattr(module, name, function)
            if not after:
                await act()
            found = await function(*arguments)
            if after:
                await act()
            return found

        self.monkeypatch.setattr(module, name, patched)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    return Meanwhile(monkeypatch)


async def ask(sync: Sync, user: Requester, since: str | None = None, **request: Any) -> Any:
    return json.loads(await sync.sync(user, SyncRequest(since=since, **request)))


def bodies(room: Any) -> list[str]:
    return [event["content"]["body"] for event in room["timeline"]["events"] if "body" in event["content"]]


@pytest.mark.invariant("SEC-VIS-2")
@pytest.mark.parametrize("name", ["seqs_at", "newest_entries", "changes", "current_events"])
async def test_sec_vis_2_what_happens_while_an_answer_is_made_is_left_to_the_next(
    database: Database, database_url: str, meanwhile: Meanwhile, name: str
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        await store.room_membership.join(bob, room_id, {})
        lazy = parse_filter({"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}})
        since = (await ask(new_sync(store), bob))["next_batch"]
        for number in range(4):
            await store.send(alice, room_id, str(number))
        topic = EventDraft("m.room.topic", {"topic": "late"}, "")

        async def act() -> None:
            await store.send(alice, room_id, "late")
            await store.room_events.set_state(alice, room_id, topic)
            await store.room_membership.kick(alice, room_id, bob.user_id, {})
            await store.send(alice, room_id, "too late")

        sync = listening(store, new_sync(store))
        meanwhile.do(sync_reads, name, act, after=False)
        answer = await ask(sync, bob, since, filter=lazy)
        assert list(answer["rooms"]) == ["join"]
        assert bodies(answer["rooms"]["join"][room_id]) == ["2", "3"]
        assert "late" not in str(answer)
        following = await ask(sync, bob, answer["next_batch"])
        assert list(following["rooms"]) == ["leave"]
        assert bodies(following["rooms"]["leave"][room_id]) == ["late"]


async def test_what_is_redacted_while_it_is_read_is_not_remembered(
    database: Database, database_url: str, meanwhile: Meanwhile
) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        room_id = await store.room(alice)
        topic = EventDraft("m.room.topic", {"topic": "secret"}, "")
        event_id = await store.room_events.set_state(alice, room_id, topic)

        async def act() -> None:
            await store.room_events.redact(alice, room_id, event_id, {}, "redact", "1")

        sync = listening(store, new_sync(store))
        meanwhile.do(room_timeline, "by_nids", act, after=True)
        await ask(sync, alice)
        assert "secret" not in str(await ask(sync, alice))


async def test_a_summary_that_changes_while_it_is_read_is_not_remembered(
    database: Database, database_url: str, meanwhile: Meanwhile
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        sync = listening(store, new_sync(store))

        async def act() -> None:
            await store.room_membership.join(bob, room_id, {})

        meanwhile.do(sync_reads, "first_members", act, after=True)
        await ask(sync, alice)
        summary = (await ask(sync, alice))["rooms"]["join"][room_id]["summary"]
        assert (summary["m.joined_member_count"], summary["m.heroes"]) == (2, [bob.user_id])


async def test_any_number_of_rooms_takes_the_same_number_of_queries(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = 0
    fetch = asyncpg.connection.Connection._execute

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal queries
        queries += asking.get()
        return await fetch(*arguments, **named)

    monkeypatch.setattr(asyncpg.connection.Connection, "_execute", counted)
    lazy = parse_filter({"room": {"state": {"lazy_load_members": True}, "include_leave": True}})
    counts = []
    async with open_store(database_url) as store:
        for rooms in (2, 12):
            alice, bob = await store.user("alice"), await store.user("bob")
            since = (await ask(new_sync(store), bob))["next_batch"]
            for number in range(rooms):
                room_id = await store.room(alice, invite=[bob.user_id])
                if number % 2:
                    await store.room_membership.join(bob, room_id, {})
                    await store.send(bob, room_id, "hello")
                    await store.room_events.set_state(alice, room_id, EventDraft("m.room.topic", {}, ""))
            for token, request in (
                (None, {}),
                (None, {"filter": lazy}),
                (since, {}),
                (since, {"filter": lazy}),
            ):
                for _ in range(2):  # the first one also asks what a new connection has to know
                    queries = 0
                    asking.set(True)
                    await ask(new_sync(store), bob, token, **request)
                    asking.set(False)
                counts.append(queries)
    assert counts[:4] == counts[4:]
    assert max(counts) <= 25


async def test_what_is_in_memory_takes_no_query(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        sync = listening(store, new_sync(store))
        room_id = await store.room(alice)
        await store.room_membership.join(bob, room_id, {})
        lazy: dict[str, Any] = {"filter": parse_filter({"room": {"state": {"lazy_load_members": True}}})}
        await store.send(alice, room_id, "known")
        answers = [await ask(sync, bob, **request) for request in ({}, lazy)]
        await store.send(alice, room_id, "hello")

        execute = asyncpg.connection.Connection._execute

        async def refuse(*arguments: Any, **named: Any) -> Any:
            assert not asking.get(), "a query"
            return await execute(*arguments, **named)

        monkeypatch.setattr(asyncpg.connection.Connection, "_execute", refuse)
        asking.set(True)
        for answer, request in zip(answers, ({}, lazy), strict=True):
            room = (await ask(sync, bob, answer["next_batch"], **request))["rooms"]["join"][room_id]
            assert bodies(room) == ["hello"]
        asking.set(False)


async def test_a_ring_that_is_too_small_loses_nothing(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        sync = listening(store, new_sync(store, budget_bytes=20_000))
        room_id, other = await store.room(alice), await store.room(alice)
        token = (await ask(sync, alice))["next_batch"]
        for number in range(9):
            await store.send(alice, room_id, str(number))
            await store.send(alice, other, str(number))
        answer = await ask(sync, alice, token)
        for room in answer["rooms"]["join"].values():
            assert bodies(room) == [str(number) for number in range(9)]
        assert len(sync.recent) < 10


async def test_a_transaction_id_is_shown_whichever_process_took_the_event(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store, open_store(database_url) as other:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        await store.room_membership.join(bob, room_id, {})
        await other.stream.catch_up()
        sync = listening(other, new_sync(other))
        tokens = [(await ask(sync, user))["next_batch"] for user in (alice, bob)]
        await store.send(alice, room_id, "hello", "my-txn")
        await other.stream.catch_up()
        for user, token, txn_id in zip((alice, bob), tokens, ("my-txn", None), strict=True):
            [event] = (await ask(sync, user, token))["rooms"]["join"][room_id]["timeline"]["events"]
            assert event["unsigned"].get("transaction_id") == txn_id


async def test_hidden_history_is_not_read(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[TimelineEntry] = []
    newest_entries = sync_reads.newest_entries

    async def noted(*arguments: Any) -> dict[int, list[TimelineEntry]]:
        found = await newest_entries(*arguments)
        read.extend(entry for entries in found.values() for entry in entries)
        return found

    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        hidden = {"history_visibility": "joined"}
        await store.room_events.set_state(alice, room_id, EventDraft("m.room.history_visibility", hidden, ""))
        for number in range(50):
            await store.send(alice, room_id, str(number))
        await store.room_membership.join(bob, room_id, {})
        monkeypatch.setattr(sync_reads, "newest_entries", noted)
        room = (await ask(new_sync(store), bob))["rooms"]["join"][room_id]
    assert bodies(room) == []
    assert len(read) < 30


async def test_an_event_after_a_gap_begins_a_limited_timeline(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store:
        alice = await store.user("alice")
        sync = listening(store, new_sync(store))
        room_id = await store.room(alice)
        token = (await ask(sync, alice))["next_batch"]
        await store.send(alice, room_id, "before the gap")
        gapped = await store.send(alice, room_id, "after the gap")
        await store.send(alice, room_id, "last")
        async with store.database.connection() as tx:
            await tx.execute(
                "UPDATE events SET flags = flags | $2 WHERE event_id = $1",
                encode_event_id(gapped),
                EventFlag.GAP,
            )
        async with open_store(database_url) as other:
            # A process that is told of these events by the stream, as of what another has written.
            other.stream.position = int(token[1:].partition("_")[0])
            from_memory = listening(other, new_sync(other))
            await other.stream.catch_up()
            for answering in (new_sync(store), from_memory):
                room = (await ask(answering, alice, token))["rooms"]["join"][room_id]
                assert bodies(room) == ["after the gap", "last"]
                assert room["timeline"]["limited"] is True
