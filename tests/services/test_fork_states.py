"""What forks come to: what is remembered of it never makes another answer than that of a new process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.events import Pdu
from homeserver.services import fork_states
from homeserver.services.fork_states import ForkStates, key_numbers
from homeserver.services.outliers import Outliers
from storage import outliers, stored_places
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.nids import NidBlocks
from storage.outliers import Outlier
from storage.packed_state import REMOVED, StateEntries
from tests.services.forked_rooms import ForkedRoom, guest
from tests.services.incoming import IncomingStore, open_incoming
from tests.services.room_models import OTHER_SERVER
from tests.storage.stores import now_ms


class Forks:
    """A room in which a guest has set the topic, and another one another topic, on a fork."""

    def __init__(self, room: ForkedRoom, topic: Pdu, now: int) -> None:
        self.room = room
        self.topic = topic
        """That of the fork. What it names as auth events allows it; the state before it does not."""
        self.now = now
        self.states = new_states(room.store)

    @classmethod
    async def new(cls, store: IncomingStore) -> Forks:
        carol, dave = guest("carol"), guest("dave")
        room = await ForkedRoom.new(store, carol, dave, room_version="12")
        await room.make_admin(carol, dave)
        early = room.heads
        await room.event(carol, "m.room.topic", {"topic": "carol"}, "")
        before_ban = room.build(dave, "m.room.topic", {"topic": "dave"}, "", after=early)
        await room.event(store.alice.user_id, "m.room.member", {"membership": "ban"}, dave)
        head = await store.store.persister.newest_head(room.room_id)
        return cls(room, room.sealed_after(before_ban, room.heads), head.state_ver)

    async def come_to(self, nid: int, states: ForkStates | None = None, *, removed: bool = False) -> int:
        """Which event has the topic where one fork has this one, and another trunk's or (`removed`) none."""
        [key] = (await key_numbers(self.room.store.store.dictionaries, [("m.room.topic", "")])).values()
        forks: list[StateEntries] = [{key: nid}, {key: REMOVED} if removed else {}]
        merged = await (states or self.states).merge(self.room.ref, self.now, forks)
        return merged.get(key, REMOVED)

    async def as_new(self, nid: int) -> int:
        """What a process that has just started has them come to."""
        return await self.come_to(nid, new_states(self.room.store))


def new_states(store: IncomingStore) -> ForkStates:
    return ForkStates(store.database, store.store.dictionaries, AuthGraphs(store.database))


@pytest.mark.invariant("SEC-AUTH-3")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "by another process"])
async def test_sec_auth_3_an_outlier_that_is_rejected_later_is_in_nothing_that_is_remembered(
    database: Database, database_url: str, elsewhere: bool
) -> None:
    async with open_incoming(database_url) as store, open_incoming(database_url) as other:
        forks = await Forks.new(store)
        room, topic = forks.room, forks.topic
        stored = await Outliers(store.database, store.store.dictionaries, now_ms).store(room.ref, [topic])
        nid = stored[topic.event_id]
        assert await forks.come_to(nid) == await forks.as_new(nid) == nid
        receiving = other if elsewhere else store
        await receiving.incoming.receive(OTHER_SERVER, room.ref, [topic], wait=False)
        assert await forks.come_to(nid) == await forks.as_new(nid) == REMOVED
        assert await forks.come_to(nid, removed=True) != nid


async def test_what_comes_out_while_an_event_is_absent_is_not_remembered(
    database: Database, database_url: str
) -> None:
    async with open_incoming(database_url) as store:
        forks = await Forks.new(store)
        room, topic = forks.room, forks.topic
        nids = NidBlocks(store.database)
        await nids.reserve(1)
        nid = nids.take()
        assert await forks.come_to(nid) != nid
        async with store.database.connection() as tx:
            auth = await stored_places.load(tx, room.ref.nid, topic.auth_events)
        auth_nids = tuple(place.nid for place in auth.values())
        row = Outlier(nid, topic, canonical_json(topic.json), auth_nids)
        await outliers.insert(store.database, store.store.dictionaries, room.ref.nid, [row], now_ms())
        assert await forks.come_to(nid) == await forks.as_new(nid) == nid


@pytest.mark.parametrize(
    ("bound", "beside_the_loop"),
    [
        ("REPLAYED_HERE", {"resolve_conflicts"}),
        ("WALKED_HERE", {"find_overlay_conflicts", "resolve_conflicts"}),
        (None, set()),
    ],
)
async def test_what_may_take_long_is_computed_beside_the_event_loop(
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    bound: str | None,
    beside_the_loop: set[str],
) -> None:
    in_threads: set[str] = set()

    def noting(name: str) -> Callable[..., object]:
        compute = getattr(fork_states, name)

        def noted(*arguments: Any, **options: Any) -> object:
            if threading.current_thread() is not threading.main_thread():
                in_threads.add(name)
            return compute(*arguments, **options)

        return noted

    for name in ("find_overlay_conflicts", "resolve_conflicts"):
        monkeypatch.setattr(fork_states, name, noting(name))
    if bound is not None:
        monkeypatch.setattr(fork_states, bound, 0)
    async with open_incoming(database_url) as store:
        forks = await Forks.new(store)
        stored = await Outliers(store.database, store.store.dictionaries, now_ms).store(
            forks.room.ref, [forks.topic]
        )
        nid = stored[forks.topic.event_id]
        assert await forks.come_to(nid) == nid
        assert in_threads == beside_the_loop
