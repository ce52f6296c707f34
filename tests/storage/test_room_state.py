"""A room's state at any version: the trunk, snapshots of it, and deltas over it, against a plain model."""

from __future__ import annotations

import secrets
from random import Random
from typing import Final

import pytest

from homeserver.services.state_snapshots import StateSnapshots
from storage import room_state, state_deltas, state_snapshots
from storage.database import Database, Transaction
from storage.packed_state import PackedState, StateEntries
from storage.room_state import StateAt
from tests.storage.stores import open_store, store_delta

MEMBER: Final = 1


def fresh_nid() -> int:
    return secrets.randbits(60)


def live(entries: StateEntries) -> StateEntries:
    return {key: event_nid for key, event_nid in entries.items() if event_nid}


class Trunk:
    """The state of a room at each version, as a list of whole maps; removed keys are there with 0."""

    def __init__(self, random: Random, versions: int) -> None:
        self.room_nid = fresh_nid()
        self.states: list[StateEntries] = []
        self.log: list[tuple[int, int, int, int]] = []
        state: StateEntries = {}
        for ver in range(versions):
            changed = {
                (random.choice((1, 1, 2, 3)), random.randrange(1, 8))
                for _ in range(20 if ver == 0 else random.choice((0, 0, 1, 1, 4)))
            }
            for key in changed:
                event_nid = 0 if key in state and random.random() < 0.2 else random.randrange(1, 10**6)
                state = {**state, key: event_nid}
                self.log.append((ver, *key, event_nid))
            self.states.append(state)

    async def insert(self, tx: Transaction) -> None:
        rows = [(self.room_nid, *row) for row in self.log]
        await tx.executemany("INSERT INTO room_state_log VALUES ($1, $2, $3, $4, $5)", rows)

    async def check(self, tx: Transaction, at: StateAt, expected: StateEntries) -> None:
        """All ways of reading a state agree with the model."""
        expected = live(expected)
        others = {key: event_nid for key, event_nid in expected.items() if key[0] != MEMBER}
        keys = [(type_nid, skey_nid) for type_nid in (1, 2, 3) for skey_nid in range(1, 9)]
        assert await room_state.whole(tx, at) == expected
        assert await room_state.of_keys(tx, at, keys) == expected
        assert await room_state.of_keys(tx, at, []) == {}
        assert await room_state.members(tx, at) == {k: e for k, e in expected.items() if k not in others}
        assert await room_state.except_members(tx, at) == {
            k: e for k, e in expected.items() if k[0] != MEMBER
        }


@pytest.mark.parametrize("seed", range(4))
async def test_the_trunk_is_read_at_any_version_with_and_without_snapshots(
    database: Database, seed: int
) -> None:
    random = Random(seed)
    trunk = Trunk(random, 30)
    async with database.connection() as tx:
        await trunk.insert(tx)
        for with_snapshots in (False, True):
            if with_snapshots:
                for ver in (0, 11, 25):
                    snapshot = PackedState.of(live(trunk.states[ver]))
                    await state_snapshots.insert(tx, trunk.room_nid, ver, snapshot)
            for ver in range(30):
                await trunk.check(tx, StateAt(trunk.room_nid, ver), trunk.states[ver])
        await trunk.check(tx, StateAt(trunk.room_nid, 10**9), trunk.states[-1])
        await trunk.check(tx, StateAt(trunk.room_nid + 1, 10**9), {})


async def test_what_changed_between_two_versions_is_as_it_is_at_the_later_one(database: Database) -> None:
    random = Random(1)
    trunk = Trunk(random, 30)
    async with database.connection() as tx:
        await trunk.insert(tx)
        for _ in range(30):
            after, upto = sorted((random.randrange(-1, 30), random.randrange(0, 30)))
            touched = {(t, k) for ver, t, k, _ in trunk.log if after < ver <= upto}
            expected = {key: trunk.states[upto][key] for key in touched}
            assert await room_state.changed(tx, trunk.room_nid, after, upto) == expected


@pytest.mark.parametrize("seed", range(4))
async def test_deltas_over_deltas_give_the_state_before_events_on_forks(
    database: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_deltas, "MIN_CHILD", 4)
    random = Random(seed)
    trunk = Trunk(random, 12)
    async with database.connection() as tx:
        await trunk.insert(tx)
        for base_ver in (0, 5, 11):
            over, state = None, dict(trunk.states[base_ver])
            for _ in range(15):
                keys = {
                    (random.choice((1, 2, 3)), random.randrange(1, 9)) for _ in range(random.choice((1, 3)))
                }
                differences = {key: random.choice((0, random.randrange(1, 10**6))) for key in keys}
                state |= differences
                over = await store_delta(tx, trunk.room_nid, base_ver, differences, over)
                await trunk.check(tx, StateAt(trunk.room_nid, base_ver, over), state)
                delta = (await state_deltas.load(tx, [over]))[over]
                for key in [*keys, (9, 9)]:
                    assert delta.get(key) == delta.entries().get(key)
                if delta.parent_id is not None:
                    below = (await state_deltas.load(tx, [delta.parent_id]))[delta.parent_id]
                    assert below.parent_id is None  # reading takes two rows at most
                    assert len(delta.own) < 4


async def test_equal_deltas_are_stored_once(database: Database) -> None:
    room_nid = fresh_nid()
    differences = {(1, 2): 3, (2, 1): 0}
    async with database.connection() as tx:

        async def store(room: int, base_ver: int, entries: StateEntries, over: int | None = None) -> int:
            return await store_delta(tx, room, base_ver, entries, over)

        first = await store(room_nid, 5, differences)
        assert await store(room_nid, 5, dict(reversed(differences.items()))) == first
        others = [
            await store(room_nid, 6, differences),
            await store(room_nid + 1, 5, differences),
            await store(room_nid, 5, {(1, 2): 3}),
            await store(room_nid, 5, differences, over=first),
        ]
        assert len({first, *others}) == 5
        assert await state_deltas.load(tx, []) == {}


def test_packed_entries_are_found_one_by_one_and_all_together() -> None:
    random = Random(0)
    entries = {(random.randrange(1, 5), random.randrange(2**40)): random.randrange(2**60) for _ in range(200)}
    packed = PackedState.stored(PackedState.of(entries).compressed)
    assert packed.entries() == entries
    assert len(packed) == 200
    assert all(packed.get(key) == event_nid for key, event_nid in entries.items())
    assert packed.get((0, 0)) is packed.get((9, 9)) is packed.get((2, 2**41)) is None
    assert PackedState.of({}).get((1, 1)) is None


async def test_a_snapshot_is_due_when_more_has_changed_than_the_state_is_large(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_snapshots, "MIN_CHANGES", 10)
    room_nid = fresh_nid()
    snapshots = StateSnapshots(database)
    written = []
    async with database.connection() as tx:
        for ver in range(1, 101):
            # The state grows by 20 keys first, then one of them changes again and again.
            await tx.execute(
                "INSERT INTO room_state_log VALUES ($1, $2, 1, $3, $4)", room_nid, ver, min(ver, 20), ver
            )
            if await snapshots.write_if_due(room_nid):
                written.append(ver)
        rows = await tx.fetch("SELECT ver, n FROM state_snap WHERE room_nid = $1 ORDER BY ver", room_nid)
        whole = await room_state.whole(tx, StateAt(room_nid, 100))
    assert [row["ver"] for row in rows] == written == [11, 23, 44, 65, 86]
    assert [row["n"] for row in rows] == [11, 20, 20, 20, 20]
    assert whole == {(1, key): 100 if key == 20 else key for key in range(1, 21)}


async def test_rooms_whose_state_changes_often_get_their_snapshot_beside_the_sends(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_snapshots, "MIN_CHANGES", 5)
    async with open_store(database_url) as store:
        snapshots = StateSnapshots(store.database, check_every=3)
        store.stream.listen(snapshots.listen)
        alice = await store.user("alice")
        room_id = await store.room(alice, name="Tea")
        for number in range(3):
            await store.send(alice, room_id, f"no state: {number}")
        assert snapshots.waiting == 1
        async with store.database.connection() as tx:
            room_nid = await tx.fetchval("SELECT nid FROM rooms WHERE room_id = $1", room_id)
            assert await snapshots.write_if_due(room_nid)
            assert not await snapshots.write_if_due(room_nid)
            newest = await state_snapshots.newest(tx, room_nid, 10**9)
            assert newest is not None
            ver, packed = newest
            assert packed.entries() == await room_state.whole(tx, StateAt(room_nid, ver))
            assert await state_snapshots.newest(tx, room_nid, ver - 1) is None
