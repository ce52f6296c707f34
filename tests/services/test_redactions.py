"""Redactions that come from outside: in any order with what they redact, and with or without the right to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import randbits
from typing import Any

import pytest

from homeserver.errors import NotFound
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.filters import EventFilter, parse_filter
from homeserver.protocol.identifiers import EventId, UserId
from homeserver.services.access_tokens import Requester
from homeserver.services.event_building import build_event
from homeserver.services.room_history import PageRequest
from homeserver.services.sync import Sync, SyncRequest
from storage import outliers, served_events, stored_places
from storage.database import Database
from storage.event_flags import EventFlag
from storage.outliers import Outlier
from storage.room_heads import RoomHead
from tests.room_versions import versions_of_each_form, versions_since_v2
from tests.services.forked_rooms import ForkedRoom, flags_of, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.room_models import OTHER_SERVER
from tests.services.syncing import listening, new_sync
from tests.storage.stores import open_store

SECRET = "something rude"


@dataclass
class Scene:
    """A room of alice and bob, who are ours, with carol, who may redact, and dave of yet another server."""

    store: IncomingStore
    room: ForkedRoom
    sync: Sync
    bob: Requester
    carol: UserId
    dave: UserId
    token: str
    """Of alice: from before all that is said."""

    @property
    def alice(self) -> Requester:
        return self.store.alice

    def message(self, sender: UserId, body: str = SECRET) -> Pdu:
        """What a guest says, not knowing of what comes meanwhile."""
        return self.room.build(sender, "m.room.message", {"msgtype": "m.text", "body": body})

    def redaction(self, sender: UserId, target: str, **more: Any) -> Pdu:
        return self.room.build(sender, "m.room.redaction", {"redacts": target}, **more)

    async def ask(self, since: str | None, sync: Sync | None = None, **room: Any) -> Any:
        filter_ = parse_filter({"room": {"timeline": {"limit": 1000}, **room}})
        request = SyncRequest(since=since, filter=filter_, state_after_key="state_after")
        return json.loads(await (sync or self.sync).sync(self.alice, request))

    async def shown(self, since: str | None = None) -> dict[EventId, Any]:
        """The events of the timeline, the same whoever answers."""
        answers = []
        for sync in (self.sync, new_sync(self.store.store)):
            room = (await self.ask(since, sync))["rooms"].get("join", {}).get(self.room.room_id)
            answers.append([] if room is None else room["timeline"]["events"])
        assert answers[0] == answers[1]
        return {event["event_id"]: event for event in answers[0]}

    async def is_shown(self, event_id: EventId) -> bool:
        """Whether alice can see an event; all that could show it to her agree."""
        history, room_id = self.room.history, self.room.room_id
        page = await history.messages(self.alice, room_id, PageRequest("b", limit=1000))
        forwards = await history.messages(self.alice, room_id, PageRequest("f", limit=1000))
        context = await history.context(self.alice, room_id, page.chunk[-1]["event_id"], 1000, EventFilter())
        found = [
            event_id in [event["event_id"] for event in events]
            for events in (page.chunk, forwards.chunk, [context.event, *context.events_after])
        ]
        found.append(event_id in await self.shown())
        try:
            await history.event(self.alice, room_id, event_id)
            found.append(True)
        except NotFound:
            found.append(False)
        assert len(set(found)) == 1
        return found[0]

    async def event(self, event_id: EventId) -> Any:
        return await self.room.history.event(self.alice, self.room.room_id, event_id)

    async def check_redacted(self, target: EventId, by: EventId) -> None:
        """A message is pruned wherever it is shown, and its redaction stands beside it."""
        history, room_id = self.room.history, self.room.room_id
        page = await history.messages(self.alice, room_id, PageRequest("b", limit=1000))
        everywhere = [*(await self.shown()).values(), *page.chunk, await self.event(target)]
        events = [event for event in everywhere if event["event_id"] == target]
        assert len(events) == 3
        for event in events:
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == by
        assert await self.is_shown(by)

    async def check_pruned(self, redaction: EventId, by: EventId) -> None:
        """A redaction keeps nothing but what it redacts."""
        event = await self.event(redaction)
        assert set(event["content"]) == {"redacts"}
        assert event["unsigned"]["redacted_because"]["event_id"] == by

    async def check_without_effect(self, target: EventId, redaction: EventId) -> None:
        """Clients see neither the redaction nor an effect of it; other servers get it like any event."""
        assert not await self.is_shown(redaction)
        event = await self.event(target)
        assert event["content"]["body"] == SECRET
        assert "redacted_because" not in event["unsigned"]
        async with self.store.database.connection() as tx:
            assert not await flags_of(tx, target) & EventFlag.REDACTED
            assert await flags_of(tx, redaction) & EventFlag.SERVERS_ONLY
            assert len(await served_events.find(tx, self.room.ref.nid, [redaction])) == 1


@asynccontextmanager
async def scene(database_url: str, version: str = "12") -> AsyncIterator[Scene]:
    async with open_incoming(database_url) as store:
        carol, bob = guest("carol"), await store.store.user("bob")
        dave = UserId(guest("dave").replace(OTHER_SERVER, "third.test"))
        room = await ForkedRoom.new(store, carol, dave, room_version=version)
        await store.store.room_membership.join(bob, room.room_id, {})
        await room.make_admin(carol)
        sync = listening(store.store, new_sync(store.store))
        told = Scene(store, room, sync, bob, carol, dave, "")
        told.token = (await told.ask(None))["next_batch"]
        yield told


@pytest.mark.invariant("SEC-REDACT-1")
@versions_of_each_form
@pytest.mark.parametrize("by", ["carol", "dave"])
async def test_sec_redact_1_a_redaction_waits_for_its_target(
    database: Database, database_url: str, version: str, by: str
) -> None:
    async with scene(database_url, version) as told:
        target = told.message(told.dave)
        redaction = await told.room.event(getattr(told, by), "m.room.redaction", {"redacts": target.event_id})
        assert await told.shown(told.token) == {}
        assert not await told.is_shown(redaction.event_id)
        between = (await told.ask(told.token))["next_batch"]

        await told.room.receive(target)
        await told.check_redacted(target.event_id, redaction.event_id)
        for since in (told.token, between):
            event = (await told.shown(since))[target.event_id]
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == redaction.event_id
        async with open_store(
            database_url
        ) as other:  # a process that is told of all this by the stream alone
            others_sync = listening(other, new_sync(other))
            other.stream.position = int(told.token[1:].partition("_")[0])
            await other.stream.catch_up()
            assert SECRET not in str(await told.ask(told.token, others_sync))


@pytest.mark.invariant("SEC-REDACT-1")
@versions_since_v2
async def test_sec_redact_1_who_has_no_right_to_redact_has_no_effect_and_is_not_shown(
    database: Database, database_url: str, version: str
) -> None:
    async with scene(database_url, version) as told:
        by_alice = await told.store.store.send(told.alice, told.room.room_id, SECRET)
        by_carol = await told.room.say(told.carol, SECRET)
        early = told.message(told.carol)
        redactions = {
            target: await told.room.event(told.dave, "m.room.redaction", {"redacts": target})
            for target in (by_alice, by_carol, early.event_id)
        }
        await told.room.receive(early)
        for target, redaction in redactions.items():
            await told.check_without_effect(target, redaction.event_id)
        assert set(await told.shown(told.token)) == {by_alice, by_carol, early.event_id}
        # What holds later is shown alone, and as the reason.
        valid = await told.room.event(told.carol, "m.room.redaction", {"redacts": by_alice})
        await told.check_redacted(by_alice, valid.event_id)
        assert not await told.is_shown(redactions[by_alice].event_id)


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_users_of_one_server_redact_what_it_has_sent(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        frank = UserId(guest("frank").replace(OTHER_SERVER, "third.test"))
        await told.room.join(frank)
        target = await told.room.say(told.dave, SECRET)
        redaction = await told.room.event(frank, "m.room.redaction", {"redacts": target})
        await told.check_redacted(target, redaction.event_id)


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_the_create_event_and_other_rooms_cannot_be_redacted(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        other = await ForkedRoom.new(told.store, told.carol)
        elsewhere = await other.say(told.carol, SECRET)
        create = told.room.model.current["m.room.create", ""]
        for target in (create, elsewhere, "$nothing", "no event ID"):
            redaction = await told.room.event(told.carol, "m.room.redaction", {"redacts": target})
            assert not await told.is_shown(redaction.event_id)
        odd = await told.room.event(told.carol, "m.room.redaction", {"redacts": [create]})
        assert not await told.is_shown(odd.event_id)
        async with told.store.database.connection() as tx:
            for event_id in (create, elsewhere):
                assert not await flags_of(tx, event_id) & EventFlag.REDACTED
        assert (await told.event(create))["content"]["room_version"] == "12"
        assert await told.shown(told.token) == {}


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_a_redaction_that_is_soft_failed_does_not_apply(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        target = await told.store.store.send(told.alice, told.room.room_id, SECRET)
        late = told.message(told.dave, "late")
        before_kick = told.room.heads
        kick = EventDraft("m.room.member", {"membership": "ban"}, told.carol)
        await told.store.store.room_events.set_state(told.alice, told.room.room_id, kick)
        for redacted in (target, late.event_id):
            redaction = await told.room.event(
                told.carol, "m.room.redaction", {"redacts": redacted}, after=before_kick
            )
            async with told.store.database.connection() as tx:
                assert await flags_of(tx, redaction.event_id) & EventFlag.SOFT_FAILED
            assert not await told.is_shown(redaction.event_id)
        await told.room.receive(late)
        assert (await told.event(target))["content"]["body"] == SECRET
        assert (await told.event(late.event_id))["content"]["body"] == "late"


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_redactions_of_redactions_bring_nothing_back(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        target = await told.room.say(told.dave, SECRET)
        content = {"redacts": target, "reason": "a rude reason"}
        first = await told.room.event(told.carol, "m.room.redaction", content)
        await told.ask(told.token)
        second = await told.room.event(told.carol, "m.room.redaction", {"redacts": first.event_id})
        third = await told.room.event(told.carol, "m.room.redaction", {"redacts": second.event_id})
        await told.check_redacted(target, first.event_id)
        await told.check_pruned(first.event_id, second.event_id)
        assert await told.is_shown(third.event_id)
        for since in (None, told.token):
            text = str(await told.shown(since))
            assert SECRET not in text and "a rude reason" not in text


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_one_of_ours_cannot_redact_others_before_they_speak(
    database: Database, database_url: str
) -> None:
    """Where a room was joined through another server, an event to redact may not be known here yet."""
    async with scene(database_url) as told:
        target = told.message(told.dave)

        async def redact(user: Requester) -> EventId:
            def decide(head: RoomHead) -> list[Pdu]:
                draft = EventDraft("m.room.redaction", {"redacts": target.event_id})
                return [build_event(head, draft, user.user_id, 0)]

            [event_id] = await told.store.store.persister.append(told.room.room_id, decide)
            return event_id

        by_bob = await redact(told.bob)
        await told.room.receive(target)
        await told.check_without_effect(target.event_id, by_bob)
        by_alice = await redact(told.alice)
        await told.check_redacted(target.event_id, by_alice)


@pytest.mark.invariant("SEC-REDACT-1")
async def test_sec_redact_1_state_that_is_fetched_after_its_redaction_comes_pruned(
    database: Database, database_url: str
) -> None:
    async with scene(database_url) as told:
        topic = told.room.build(told.carol, "m.room.topic", {"topic": SECRET}, "")
        await told.room.event(told.carol, "m.room.redaction", {"redacts": topic.event_id})
        row = Outlier(randbits(60), topic, canonical_json(topic.json), ())
        store = told.store.store
        await outliers.insert(store.database, store.dictionaries, told.room.ref.nid, [row], 0)
        async with store.database.connection() as tx:
            stored = (await stored_places.bodies(tx, told.room.ref, [topic.event_id]))[topic.event_id]
        assert stored.pdu.content == {}
