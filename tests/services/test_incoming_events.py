"""Events from outside, compared with a model that keeps the whole state at every event."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeserver.protocol.events import EventDraft, StateKey
from homeserver.protocol.filters import parse_filter
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.services.access_tokens import Requester
from homeserver.services.sync import Sync, SyncRequest
from storage.database import Database
from tests.room_versions import OF_EACH_FORM
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.room_models import OTHER_SERVER, Author, State, check, shared_room
from tests.services.syncing import listening, new_sync


@dataclass
class Follower:
    """A client that takes the state of a room from what /sync tells."""

    sync: Sync
    user: Requester
    room_id: RoomId
    random: Random
    token: str | None = None
    state: dict[StateKey, EventId] = field(default_factory=dict)

    async def follow(self) -> None:
        limit = {"room": {"timeline": {"limit": self.random.choice((1, 3, 20))}}}
        request = SyncRequest(since=self.token, filter=parse_filter(limit))
        answer = json.loads(await self.sync.sync(self.user, request))
        self.token = answer["next_batch"]
        room = answer["rooms"].get("join", {}).get(self.room_id)
        if room is not None:
            for event in [*room["state"]["events"], *room["timeline"]["events"]]:
                if "state_key" in event:
                    self.state[event["type"], event["state_key"]] = event["event_id"]

    def check(self, current: State) -> None:
        assert {key: self.state.get(key) for key in current} == current


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False), version=st.sampled_from(OF_EACH_FORM))
@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_whatever_comes_in_whatever_order_the_state_is_what_the_specification_says(
    database: Database, database_url: str, random: Random, version: str
) -> None:
    async with open_incoming(database_url) as store:
        model, ref = await shared_room(store, version)
        users = [UserId(f"@{name}:{OTHER_SERVER}") for name in ("bob", "carol", "dave", "erin")]
        author = Author(random, model, users)
        for user in users[: random.randint(2, 4)]:
            parents = sorted(model.extremities)
            draft = EventDraft("m.room.member", {"membership": "join"}, user)
            pdu = author.event(draft, user, parents, model.state_before(parents))
            model.arrive(pdu)
            await store.incoming.receive(OTHER_SERVER, ref, [pdu], wait=False)
        levels = {"users": {users[0]: 100, users[1]: 50}, "events": {"m.room.power_levels": 50}}
        if version != "12":
            levels["users"][model.events[model.current["m.room.create", ""]].sender] = 100  # type: ignore[index]
        parents = sorted(model.extremities)
        creator = model.events[model.current["m.room.create", ""]].sender
        draft = EventDraft("m.room.power_levels", levels, "")
        pdu = author.event(draft, creator, parents, model.state_before(parents))
        model.arrive(pdu)
        await store.incoming.receive(OTHER_SERVER, ref, [pdu], wait=False)
        follower = Follower(new_sync(store.store), store.alice, ref.room_id, random)
        listening(store.store, follower.sync)
        for _ in range(random.randint(3, 12)):
            if random.random() < 0.5:
                await follower.follow()
                follower.check(model.current)
            batch = []
            for _ in range(random.randint(1, 4)):
                pdu = author.random_event()
                if pdu.event_id not in model.events:
                    model.arrive(pdu)
                    batch.append(pdu)
            await store.incoming.receive(OTHER_SERVER, ref, batch, wait=False)
        await check(store, ref, model)
        await follower.follow()
        follower.check(model.current)


async def test_two_processes_that_get_the_same_events_store_them_once(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as one, open_incoming(database_url) as other:
        model, ref = await shared_room(one, "12")
        bob = UserId(f"@bob:{OTHER_SERVER}")
        author = Author(Random(1), model, [bob])
        pdus = []
        for number in range(12):
            parents = sorted(model.extremities)
            content = {"membership": "join", "displayname": str(number)}
            draft = EventDraft("m.room.member", content, bob)
            pdus.append(author.event(draft, bob, parents, model.state_before(parents)))
            model.arrive(pdus[-1])

        async def take(store: IncomingStore) -> None:
            for start in range(0, len(pdus), 3):
                await store.incoming.receive(OTHER_SERVER, ref, pdus[start : start + 3], wait=False)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(take(one))
            tasks.create_task(take(other))
        await check(one, ref, model)
