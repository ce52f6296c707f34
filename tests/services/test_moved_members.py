"""What a state resolution does to the members of a room, and to what else its state says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from homeserver.errors import Forbidden
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.filters import parse_filter
from homeserver.protocol.identifiers import EventId, UserId
from homeserver.services.access_tokens import Requester
from homeserver.services.room_history import PageRequest
from homeserver.services.room_state import MembersRequest
from homeserver.services.sync import Sync, SyncRequest
from storage.database import Database
from storage.memberships import Membership
from tests.room_versions import versions_since_v2
from tests.services.forked_rooms import FIRST_TS, ForkedRoom, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.syncing import listening, new_sync
from tests.storage.stores import open_store

EVERYTHING = {"room": {"timeline": {"limit": 1000}, "include_leave": True}}


@dataclass
class Scene:
    """A room of alice, in which bob, also of ours, is or was; carol and dave of another server have power."""

    store: IncomingStore
    room: ForkedRoom
    sync: Sync
    bob: Requester
    carol: UserId
    dave: UserId

    @property
    def alice(self) -> Requester:
        return self.store.alice

    async def join(self, user: Requester) -> None:
        await self.store.store.room_membership.join(user, self.room.room_id, {})

    async def ask(self, user: Requester, since: str | None = None, **request: Any) -> Any:
        return await self.ask_one(self.sync, user, since, **request)

    async def ask_one(self, sync: Sync, user: Requester, since: str | None = None, **request: Any) -> Any:
        filter_ = parse_filter(request.pop("filter", EVERYTHING))
        return json.loads(await sync.sync(user, SyncRequest(since=since, filter=filter_, **request)))

    async def token(self, user: Requester) -> str:
        answer = await self.ask(user)
        token: str = answer["next_batch"]
        return token

    async def answers(self, user: Requester, since: str, **request: Any) -> list[Any]:
        """What is new, from a process that heard all of it and from one that has just started."""
        return [
            await self.ask_one(sync, user, since, **request)
            for sync in (self.sync, new_sync(self.store.store))
        ]

    async def closed_before_bob(self) -> Pdu:
        """On a fork without bob carol lets only invited users in: when it comes, bob's join does not hold."""
        before_bob = self.room.heads
        await self.join(self.bob)
        return self.room.build(self.carol, "m.room.join_rules", {"join_rule": "invite"}, "", after=before_bob)

    async def undone_kick(self) -> tuple[Pdu, Pdu]:
        """Dave kicks bob; and on a fork carol has taken away the power that dave needs for it."""
        await self.join(self.bob)
        with_bob = self.room.heads
        kick = self.room.build(self.dave, "m.room.member", {"membership": "leave"}, self.bob.user_id)
        await self.room.receive(kick)
        levels = self.room.model.events[self.room.model.before[kick.event_id]["m.room.power_levels", ""]]
        content = {**levels.content, "users": {**levels.content["users"], self.dave: 0}}
        return kick, self.room.build(self.carol, "m.room.power_levels", content, "", after=with_bob)

    async def member_ids(self, request: MembersRequest, user: Requester | None = None) -> set[str]:
        events = await self.room.state.members(user or self.alice, self.room.room_id, request)
        return {event["state_key"] for event in events}


@asynccontextmanager
async def scene(database_url: str, version: str = "12") -> AsyncIterator[Scene]:
    async with open_incoming(database_url) as store:
        carol, dave, bob = guest("carol"), guest("dave"), await store.store.user("bob")
        room = await ForkedRoom.new(store, carol, dave, room_version=version)
        content: dict[str, Any] = {"users": {carol: 100, dave: 50}}
        if not room.ref.version.privileged_creators:
            content["users"][store.alice.user_id] = 100
        draft = EventDraft("m.room.power_levels", content, "")
        await store.store.room_events.set_state(store.alice, room.room_id, draft)
        sync = listening(store.store, new_sync(store.store))
        yield Scene(store, room, sync, bob, carol, dave)


def state_of(room: Any) -> dict[tuple[str, str], EventId]:
    events = [*room.get("state", room.get("state_after"))["events"], *room["timeline"]["events"]]
    return {
        (event["type"], event["state_key"]): event["event_id"] for event in events if "state_key" in event
    }


@versions_since_v2
async def test_who_is_thrown_out_by_a_resolution_sees_a_leave_without_an_event(
    database: Database, database_url: str, version: str
) -> None:
    async with scene(database_url, version) as told:
        room_id, bob, key = told.room.room_id, told.bob, ("m.room.member", told.bob.user_id)
        closing = await told.closed_before_bob()
        tokens = {user.user_id: await told.token(user) for user in (told.alice, bob)}
        await told.room.receive(closing)
        await told.room.say(told.carol, "bob is gone")
        assert key not in told.room.model.current

        for state_after_key in (None, "state_after"):
            for answer in await told.answers(bob, tokens[bob.user_id], state_after_key=state_after_key):
                assert list(answer["rooms"]) == ["leave"]
                left = answer["rooms"]["leave"][room_id]
                assert [event["event_id"] for event in left["timeline"]["events"]] == [closing.event_id]
                assert "bob is gone" not in str(answer)
            for answer in await told.answers(
                told.alice, tokens[told.alice.user_id], state_after_key=state_after_key
            ):
                joined = answer["rooms"]["join"][room_id]
                assert joined["summary"]["m.joined_member_count"] == 3
                assert told.room.model.current["m.room.join_rules", ""] in state_of(joined).values()
        assert (await told.ask(bob, await told.token(bob)))["rooms"] == {}
        whole = (await told.ask(bob))["rooms"]["leave"][room_id]
        assert key not in state_of(whole)
        lazy = {"room": {"state": {"lazy_load_members": True}, "include_leave": True}}
        for answer in await told.answers(bob, tokens[bob.user_id], filter=lazy):
            assert list(answer["rooms"]) == ["leave"]
        assert "leave" not in (await told.ask(bob, filter={}))["rooms"]


async def test_who_is_thrown_out_reads_the_room_as_it_was(database: Database, database_url: str) -> None:
    async with scene(database_url) as told:
        room, bob = told.room, told.bob
        closing = await told.closed_before_bob()
        before = await told.store.store.send(told.alice, room.room_id, "hello bob")
        await room.receive(closing)
        after = await room.say(told.carol, "bob is gone")
        await room.event(told.carol, "m.room.topic", {"topic": "without bob"}, "")

        page = await room.history.messages(bob, room.room_id, PageRequest("b", limit=1000))
        shown = [event["event_id"] for event in page.chunk]
        assert before in shown and after not in shown
        state = {(event["type"], event["state_key"]) for event in await room.state.state(bob, room.room_id)}
        assert ("m.room.topic", "") not in state
        assert ("m.room.member", bob.user_id) not in state
        with pytest.raises(Forbidden):
            await room.state.joined_members(bob, room.room_id)

        others = {told.alice.user_id, told.carol, told.dave}
        assert set(await room.state.joined_members(told.alice, room.room_id)) == others
        for request in (
            MembersRequest(),
            MembersRequest(membership="join"),
            MembersRequest(not_membership="leave"),
        ):
            assert await told.member_ids(request) == others
        for membership in ("leave", "ban", "invite"):
            assert await told.member_ids(MembersRequest(membership=membership)) == set()


async def test_who_was_thrown_out_can_leave_forget_and_come_back(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        room_id, bob = told.room.room_id, told.bob
        closing = await told.closed_before_bob()
        token = await told.token(bob)
        await told.room.receive(closing)
        membership = told.store.store.room_membership
        with pytest.raises(Forbidden):
            await membership.leave(bob, room_id, {})
        await membership.forget(bob, room_id)
        whole = await told.ask_one(new_sync(told.store.store), bob)
        assert room_id not in whole["rooms"].get("leave", {})
        with pytest.raises(Forbidden):
            await told.join(bob)
        await membership.invite(told.alice, room_id, bob.user_id, {})
        for answer in await told.answers(bob, token):
            assert list(answer["rooms"]) == ["invite"]
        await told.join(bob)
        for answer in await told.answers(bob, token):
            assert list(answer["rooms"]) == ["join"]
            own = ("m.room.member", bob.user_id)
            assert state_of(answer["rooms"]["join"][room_id])[own] == told.room.model.current[own]


@pytest.mark.invariant("SEC-VIS-2")
@versions_since_v2
async def test_sec_vis_2_a_resolution_moves_nobody_into_a_room(
    database: Database, database_url: str, version: str
) -> None:
    async with scene(database_url, version) as told:
        room, bob, key = told.room, told.bob, ("m.room.member", told.bob.user_id)
        kick, undone = await told.undone_kick()
        token = await told.token(bob)
        await room.receive(undone)
        assert room.model.current[key] != kick.event_id
        secret = await told.store.store.send(told.alice, room.room_id, "secret")
        assert room.model.events[room.model.current[key]].membership == "join"

        for sync in (told.sync, new_sync(told.store.store)):
            assert (await told.ask_one(sync, bob, token))["rooms"] == {}
            assert list((await told.ask_one(sync, bob))["rooms"]) == ["leave"]
        page = await room.history.messages(bob, room.room_id, PageRequest("b", limit=1000))
        assert secret not in [event["event_id"] for event in page.chunk]
        assert bob.user_id not in await room.state.joined_members(told.alice, room.room_id)
        assert room.room_id not in await room.state.joined_rooms(bob)
        async with open_store(database_url) as other:  # a process that is told by the stream alone
            others_sync = listening(other, new_sync(other))
            other.stream.position = int(token[1:].partition("_")[0])
            await other.stream.catch_up()
            assert list((await told.ask_one(others_sync, bob, token))["rooms"]) == []

        await told.join(bob)
        answer = await told.ask(bob, token)
        assert list(answer["rooms"]) == ["join"]
        assert room.model.current[key] in state_of(answer["rooms"]["join"][room.room_id]).values()
        assert bob.user_id in await room.state.joined_members(told.alice, room.room_id)
        said = await told.store.store.send(told.alice, room.room_id, "welcome back")
        assert said in [
            event["event_id"]
            for event in (await room.history.messages(bob, room.room_id, PageRequest("b"))).chunk
        ]


async def test_users_of_other_servers_are_what_the_resolution_says(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        room, erin = told.room, guest("erin")
        join = await room.join(erin)
        with_erin = room.heads
        kick = await room.event(told.dave, "m.room.member", {"membership": "leave"}, erin)
        assert erin not in await room.state.joined_members(told.alice, room.room_id)
        levels = room.model.events[room.model.before[kick.event_id]["m.room.power_levels", ""]].content
        content = {**levels, "users": {**levels["users"], told.dave: 0}}
        await room.event(told.carol, "m.room.power_levels", content, "", after=with_erin)
        assert room.model.current["m.room.member", erin] == join.event_id
        assert erin in await room.state.joined_members(told.alice, room.room_id)


async def test_a_key_that_a_resolution_changes_is_told_as_state(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        room, key = told.room, ("m.room.topic", "")
        first = await room.event(told.carol, *_topic("first"))
        fork = room.heads
        second = await room.event(told.dave, *_topic("second"))
        token = await told.token(told.alice)
        levels = room.model.events[room.model.current["m.room.power_levels", ""]].content
        content = {**levels, "users": {**levels["users"], told.dave: 0}}
        demoting = await room.event(told.carol, "m.room.power_levels", content, "", after=fork)
        assert room.model.current[key] == first.event_id

        for answer in await told.answers(told.alice, token):
            joined = answer["rooms"]["join"][room.room_id]
            assert state_of(joined) == {key: first.event_id, ("m.room.power_levels", ""): demoting.event_id}
        for answer in await told.answers(told.alice, token, state_after_key="state_after"):
            joined = answer["rooms"]["join"][room.room_id]
            after = {event["event_id"] for event in joined["state_after"]["events"]}
            assert after == {first.event_id, demoting.event_id}
        state = {
            event["type"]: event["event_id"] for event in await room.state.state(told.alice, room.room_id)
        }
        assert state["m.room.topic"] == first.event_id
        assert second.event_id not in state.values()
        entry = await room.state.entry(told.alice, room.room_id, *key)
        assert entry.event_id == first.event_id


async def test_members_without_an_event_break_no_summary(database: Database, database_url: str) -> None:
    """A room without a name is named after its members; where there is nobody else, after those who left."""
    async with scene(database_url) as told:
        room, bob = told.room, told.bob
        for user in (told.carol, told.dave):
            await room.event(user, "m.room.member", {"membership": "leave"}, user)
        before_bob = room.heads
        await told.join(bob)
        token = await told.token(told.alice)
        alice, rules = UserId(told.alice.user_id), {"join_rule": "invite"}
        closing = room.build(alice, "m.room.join_rules", rules, "", after=before_bob, ts=2 * FIRST_TS)
        await room.receive(closing)
        assert ("m.room.member", bob.user_id) not in room.model.current
        async with told.store.database.connection() as tx:
            row = await tx.fetchrow(
                "SELECT membership, event_nid FROM memberships WHERE user_nid = $1 AND room_nid = $2",
                bob.user_nid,
                room.ref.nid,
            )
        assert (row["membership"], row["event_nid"]) == (Membership.LEAVE, 0)
        for answer in await told.answers(told.alice, token):
            summary = answer["rooms"]["join"][room.room_id]["summary"]
            assert summary["m.joined_member_count"] == 1
            assert set(summary["m.heroes"]) == {bob.user_id, told.carol, told.dave}
        lazy = {"room": {"state": {"lazy_load_members": True}}}
        for answer in await told.answers(told.alice, token, filter=lazy):
            assert room.room_id in answer["rooms"]["join"]


def _topic(text: str) -> tuple[str, dict[str, Any], str]:
    return "m.room.topic", {"topic": text}, ""
