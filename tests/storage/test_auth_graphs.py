"""Auth graphs that are read from the database, against a plain model."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.event_hashes import decode_event_id
from storage.auth_graphs import AuthGraphs
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from tests.storage.stores import open_store

NO_DATABASE = cast(Transaction, None)
"""In the place of a connection: whoever asks it for something fails."""


@dataclass
class Room:
    """Events of a room without bodies; auth events by number, also of events that are not stored."""

    power_levels: tuple[int, int]
    nid: int = field(default_factory=lambda: secrets.randbits(60))
    auth: dict[int, list[int]] = field(default_factory=dict)
    power: set[int] = field(default_factory=set)

    @classmethod
    async def new(cls, database: Database) -> Room:
        dictionaries = Dictionaries(database)
        type_nid = await dictionaries.event_types.nid("m.room.power_levels")
        return cls((type_nid, await dictionaries.atoms.nid("")))

    async def add(
        self,
        tx: Transaction,
        auth: Iterable[int],
        nid: int | None = None,
        *,
        is_power_levels: bool = False,
    ) -> int:
        nid = secrets.randbits(60) if nid is None else nid
        self.auth[nid] = list(auth)
        if is_power_levels:
            self.power.add(nid)
        type_nid, skey_nid = self.power_levels if is_power_levels else (self.power_levels[0], 0)
        await self._insert(tx, nid, type_nid, skey_nid, self.auth[nid], {})
        return nid

    async def add_message(self, tx: Transaction, auth: Iterable[int]) -> int:
        """A message, which names its auth events by their IDs only; some that are not stored too."""
        nid, named = secrets.randbits(60), list(auth)
        self.auth[nid] = named
        rows = await tx.fetch(
            """
            SELECT event_id FROM unnest($1::bigint[]) WITH ORDINALITY AS named(nid, n)
            JOIN events USING (nid) ORDER BY n
            """,
            named,
        )
        event_ids = [decode_event_id(row["event_id"]) for row in rows]
        unknown = decode_event_id(secrets.token_bytes(32))
        await self._insert(tx, nid, 9, None, None, {"auth_events": [*event_ids, unknown]})
        return nid

    async def _insert(
        self,
        tx: Transaction,
        nid: int,
        type_nid: int,
        skey_nid: int | None,
        auth: list[int] | None,
        event: dict[str, Any],
    ) -> None:
        await tx.execute(
            """
            INSERT INTO events (nid, room_nid, sub, depth, ts, recv_ts, type_nid, sender_nid, skey_nid,
                                flags, auth, event_id, json)
            VALUES ($1, $2, 0, 1, 1, 1, $3, 1, $4, 0, $5, $6, $7)
            """,
            nid,
            self.nid,
            type_nid,
            skey_nid,
            auth,
            secrets.token_bytes(32),
            canonical_json(event),
        )

    def chain(self, nids: Collection[int]) -> set[int]:
        """The auth chains of events, as far as events are stored."""
        chain: set[int] = set()
        to_do = list(nids)
        while to_do:
            named = [nid for nid in self.auth.get(to_do.pop(), ()) if nid not in chain]
            chain.update(named)
            to_do += named
        return chain

    async def check(self, tx: Transaction, graphs: AuthGraphs, nids: Collection[int]) -> None:
        async with graphs.using(self.nid):
            graph = await graphs.graph(tx, self.nid, nids)
            assert graph.auth_chain(nids) == self.chain(nids)
            for nid in {*nids, *self.chain(nids)} & self.auth.keys():
                assert graph.auth_events(nid) == tuple(self.auth[nid])
                power = [one for one in self.auth[nid] if one in self.power]
                assert graph.power_levels_of(nid) == (power[0] if power else None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False), max_events=st.sampled_from([3, 20, 1000]))
async def test_whatever_is_asked_for_in_whatever_order_the_whole_chains_are_there(
    database: Database, random: Random, max_events: int
) -> None:
    graphs = AuthGraphs(database, max_events)
    async with database.connection() as tx:
        rooms = [await Room.new(database) for _ in range(2)]
        for _ in range(random.randint(1, 8)):
            room = random.choice(rooms)
            for _ in range(random.randint(0, 8)):
                stored = [*room.auth]
                absent = [secrets.randbits(60)] if random.random() < 0.1 else []
                named = [*random.sample(stored, min(len(stored), random.randint(0, 4))), *absent]
                await room.add(tx, named, is_power_levels=random.random() < 0.3)
            asked = random.sample([*room.auth], random.randint(0, len(room.auth)))
            if random.random() < 0.2:
                asked.append(secrets.randbits(60))
            await room.check(tx, graphs, asked)
            assert graphs.held <= max_events


async def test_a_room_is_read_once_and_later_events_when_they_are_asked_for(database: Database) -> None:
    graphs, room = AuthGraphs(database), await Room.new(database)
    async with database.connection() as tx:
        create = await room.add(tx, [])
        levels = await room.add(tx, [create], is_power_levels=True)
        await room.check(tx, graphs, [])
        await room.check(NO_DATABASE, graphs, [create, levels])

        later = await room.add(tx, [create, levels])
        latest = await room.add(tx, [later, levels])
        await room.check(NO_DATABASE, graphs, [create, levels])
        await room.check(tx, graphs, [latest])
        await room.check(NO_DATABASE, graphs, [create, levels, later, latest])
    assert graphs.held == 4


async def test_an_event_that_is_not_stored_is_none_until_it_is(database: Database) -> None:
    graphs, room = AuthGraphs(database), await Room.new(database)
    async with database.connection() as tx:
        create = await room.add(tx, [])
        unknown = secrets.randbits(60)
        naming = await room.add(tx, [create, unknown])

        async with graphs.using(room.nid):
            graph = await graphs.graph(tx, room.nid, [naming, unknown])
            assert unknown not in graph
            assert graph.auth_chain([naming]) == {create, unknown}

        await room.add(tx, [create], unknown)
        await room.check(tx, graphs, [naming, unknown])


async def test_a_message_names_its_auth_events_by_their_ids(database: Database) -> None:
    graphs, room = AuthGraphs(database), await Room.new(database)
    async with database.connection() as tx:
        create = await room.add(tx, [])
        join = await room.add(tx, [create])
        message = await room.add_message(tx, [create, join])
        await room.check(tx, graphs, [message])
        await room.check(NO_DATABASE, graphs, [message])


@pytest.mark.invariant("SEC-RES-2")
async def test_sec_res_2_what_all_graphs_hold_is_bounded(database: Database) -> None:
    graphs = AuthGraphs(database, max_events=10)
    async with database.connection() as tx:
        rooms = [await Room.new(database) for _ in range(3)]
        for room in rooms:
            for _ in range(4):
                await room.add(tx, list(room.auth)[-2:])
        for room in (*rooms, rooms[1]):
            await room.check(tx, graphs, [*room.auth])
        assert graphs.held == 8
        await rooms[2].check(NO_DATABASE, graphs, [*rooms[2].auth])
        with pytest.raises(AttributeError):
            await rooms[0].check(NO_DATABASE, graphs, [])

        large = await Room.new(database)
        for _ in range(12):
            await large.add(tx, list(large.auth)[-1:])
        some = [*large.auth][3]
        async with graphs.using(large.nid):
            assert len(await graphs.graph(tx, large.nid, [some])) == 4
        await large.check(tx, graphs, [*large.auth])
        assert graphs.held == 0


async def test_a_cycle_ends(database: Database) -> None:
    room = await Room.new(database)
    async with database.connection() as tx:
        one, other = secrets.randbits(60), secrets.randbits(60)
        await room.add(tx, [other], one)
        await room.add(tx, [one], other)
        for max_events in (1, 10):
            await room.check(tx, AuthGraphs(database, max_events), [one])


async def test_one_user_of_a_graph_waits_for_the_other(database: Database) -> None:
    graphs, room = AuthGraphs(database), await Room.new(database)
    order: list[str] = []

    async def use(name: str, entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with graphs.using(room.nid):
            order.append(f"{name} in")
            entered.set()
            await leave.wait()
            order.append(f"{name} out")

    entered, leave = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(use("first", entered, leave))
        await entered.wait()
        tasks.create_task(use("second", asyncio.Event(), leave))
        async with graphs.using(room.nid + 1):
            order.append("another room")
        leave.set()
    assert order == ["first in", "another room", "first out", "second in", "second out"]


async def test_the_chains_of_a_real_room_are_those_its_events_name(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        await store.room_membership.join(bob, room_id, {})
        await store.send(bob, room_id, "tea?")
        events = {event.stored.nid: event.stored.pdu for event in store.told}
        room_nid = store.told[0].room.nid
    by_id = {pdu.event_id: nid for nid, pdu in events.items()}
    model = Room((0, 0), room_nid)
    model.auth = {nid: [by_id[event_id] for event_id in pdu.auth_events] for nid, pdu in events.items()}
    graphs = AuthGraphs(database)
    async with database.connection() as tx, graphs.using(room_nid):
        graph = await graphs.graph(tx, room_nid, [*events])
        for nid in events:
            assert graph.auth_chain([nid]) == model.chain([nid])
            assert set(graph.auth_events(nid)) == set(model.auth[nid])
