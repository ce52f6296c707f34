"""Visibility where events bring a state of their own, where nobody sees them, and where rooms come back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

import pytest

from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
from storage import room_timeline
from storage.database import Database, Transaction
from storage.event_flags import EventFlag
from storage.packed_state import StateEntries
from storage.room_timeline import AFTER, FIRST, TimelineRow
from tests.storage.stores import Store, open_store, store_delta

FORK: Final = -1
"""As room_seq: after all that is there."""


@dataclass
class Scene:
    """A room of alice, in which bob may be, and events put into it by hand."""

    store: Store
    tx: Transaction
    alice: Requester
    bob: Requester
    room_id: RoomId
    visibility: RoomVisibility

    @classmethod
    async def make(cls, store: Store, tx: Transaction, history_visibility: str) -> Scene:
        alice, bob = await store.user("alice"), await store.user("bob")
        room_id = await store.room(alice)
        scene = cls(store, tx, alice, bob, room_id, RoomVisibility())
        await scene.set_visibility(history_visibility)
        return scene

    async def set_visibility(self, value: str) -> None:
        draft = EventDraft("m.room.history_visibility", {"history_visibility": value}, "")
        await self.store.room_events.set_state(self.alice, self.room_id, draft)

    async def view(self, user: Requester | None = None) -> RoomView:
        user = user or self.bob
        view = await self.visibility.view(self.tx, self.room_id, user.user_id, user.user_nid)
        assert view is not None
        return view

    async def head(self) -> int:
        return (await self.view()).head_seq

    async def add(
        self,
        *,
        seq: int | None,
        state_ver: int | None = None,
        differences: StateEntries | None = None,
        sub: int = 0,
        flags: int = 0,
    ) -> int:
        """Put a message into the room that came over a fork, was fetched later or must stay hidden."""
        room_nid = (await self.view()).room.nid
        nid, delta = secrets.randbits(60), None
        if differences is not None:
            assert state_ver is not None
            delta = await store_delta(self.tx, room_nid, state_ver, differences)
        await self.store.send(self.alice, self.room_id, "a message to copy")
        copied = await self.tx.fetchval("SELECT max(room_seq) FROM events WHERE room_nid = $1", room_nid)
        await self.tx.execute(
            """
            INSERT INTO events (nid, room_nid, room_seq, sub, depth, ts, recv_ts, type_nid, sender_nid,
                                state_ver, state_delta, flags, event_id, json)
            SELECT $1, room_nid, $2, $3, depth, ts, recv_ts, type_nid, sender_nid,
                   $4, $5, flags | $6, $7, json
            FROM events WHERE room_nid = $8 AND room_seq = $9
            """,
            nid,
            (copied + 1 if seq == FORK else seq),
            sub,
            state_ver,
            delta,
            flags,
            secrets.token_bytes(32),
            room_nid,
            copied,
        )
        self.store.heads.forget(self.room_id)
        return nid

    async def key_of(self, event_type: str, state_key: str) -> tuple[int, int]:
        dictionaries = self.store.dictionaries
        return await dictionaries.event_types.nid(event_type), await dictionaries.atoms.nid(state_key)

    async def current(self, key: tuple[int, int], ver: int) -> int:
        room_nid = (await self.view()).room.nid
        found: int = await self.tx.fetchval(
            """
            SELECT event_nid FROM room_state_log WHERE room_nid = $1 AND type_nid = $2 AND skey_nid = $3
              AND ver <= $4 ORDER BY ver DESC LIMIT 1
            """,
            room_nid,
            *key,
            ver,
        )
        return found

    async def sees(self, nid: int, user: Requester | None = None) -> bool:
        view = await self.view(user)
        rows = await room_timeline.by_nids(self.tx, [nid])
        return bool(await self.visibility.visible(self.tx, view, list(rows.values())))


async def test_an_event_on_a_fork_is_judged_by_the_state_before_it(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "joined")
        before_join = await scene.head()
        await store.room_membership.join(scene.bob, scene.room_id, {})
        joined = await scene.head()
        member = await scene.key_of("m.room.member", scene.bob.user_id)
        visibility = await scene.key_of("m.room.history_visibility", "")
        his_join = await scene.current(member, joined)
        await scene.set_visibility("shared")
        shared = await scene.current(visibility, 10**9)

        unaware_of_bob = await scene.add(seq=FORK, state_ver=before_join)
        aware_by_delta = await scene.add(seq=FORK, state_ver=before_join, differences={member: his_join})
        unaware_by_delta = await scene.add(seq=FORK, state_ver=joined, differences={member: 0})
        opened_by_delta = await scene.add(seq=FORK, state_ver=before_join, differences={visibility: shared})
        no_visibility = await scene.add(seq=FORK, state_ver=joined, differences={visibility: 0, member: 0})

        assert not await scene.sees(unaware_of_bob)
        assert await scene.sees(aware_by_delta)
        assert not await scene.sees(unaware_by_delta)
        assert await scene.sees(opened_by_delta)
        assert await scene.sees(no_visibility)
        for nid in (unaware_of_bob, aware_by_delta, unaware_by_delta, opened_by_delta, no_visibility):
            assert await scene.sees(nid, scene.alice)


@pytest.mark.invariant("SEC-VIS-2")
@pytest.mark.parametrize("visibility", ["shared", "invited", "joined"])
async def test_sec_vis_2_a_fork_from_before_the_kick_brings_nothing_after_it(
    database: Database, database_url: str, visibility: str
) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, visibility)
        await store.room_membership.join(scene.bob, scene.room_id, {})
        joined = await scene.head()
        in_time = await scene.add(seq=FORK, state_ver=joined)
        await store.room_membership.kick(scene.alice, scene.room_id, scene.bob.user_id, {})
        too_late = await scene.add(seq=FORK, state_ver=joined)

        assert await scene.sees(in_time)
        assert not await scene.sees(too_late)

        # What came while the room was closed to him stays outside of all pages, and of what is shown.
        await store.room_membership.join(scene.bob, scene.room_id, {})
        assert await scene.sees(too_late) == (visibility == "shared")


async def test_history_that_was_fetched_later_is_judged_by_its_own_state(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "joined")
        await store.room_membership.join(scene.bob, scene.room_id, {})
        member = await scene.key_of("m.room.member", scene.bob.user_id)
        visibility = await scene.key_of("m.room.history_visibility", "")
        his_join = await scene.current(member, 10**9)
        is_joined = await scene.current(visibility, 10**9)
        hidden = await scene.add(seq=1, sub=-1, state_ver=0, differences={visibility: is_joined})
        shown = await scene.add(
            seq=1, sub=-2, state_ver=0, differences={visibility: is_joined, member: his_join}
        )
        assert not await scene.sees(hidden)
        assert await scene.sees(shown)

        view = await scene.view()
        forwards = await room_timeline.read_forwards(tx, view.room.nid, (0, FIRST), (1, AFTER), 10)
        backwards = await room_timeline.read_backwards(tx, view.room.nid, (0, FIRST), (1, AFTER), 10)
        assert [row.nid for row in forwards[:2]] == [shown, hidden]
        assert forwards == backwards[::-1]
        assert await room_timeline.read_forwards(tx, view.room.nid, (1, -1), (1, 0), 10) == [forwards[1]]


@pytest.mark.invariant("SEC-VIS-3")
@pytest.mark.parametrize(
    ("place", "flags"),
    [
        (None, 0),
        (None, EventFlag.REJECTED),
        (None, EventFlag.SOFT_FAILED),
        (FORK, EventFlag.HIDDEN),
        (FORK, EventFlag.REJECTED),
        (FORK, EventFlag.SOFT_FAILED),
    ],
)
async def test_sec_vis_3_outliers_and_what_was_refused_are_shown_to_nobody(
    database: Database, database_url: str, place: int | None, flags: int
) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "world_readable")
        nid = await scene.add(seq=place, flags=flags)
        row = (await room_timeline.by_nids(tx, [nid]))[nid]
        view = await scene.view(scene.alice)

        assert not await scene.sees(nid, scene.alice)
        assert await room_timeline.find(tx, view.room.nid, row.event_id) is None
        every = await room_timeline.read_forwards(tx, view.room.nid, (0, FIRST), (2**60, AFTER), 1000)
        assert nid not in [row.nid for row in every]


async def test_a_view_that_is_remembered_follows_every_change(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "joined")
        fresh = RoomVisibility()
        tiny = RoomVisibility(max_changes=1)
        for way in ("join", "profile", "leave", "join", "world_readable", "kick", "shared"):
            match way:
                case "join":
                    await store.room_membership.join(scene.bob, scene.room_id, {})
                case "profile":
                    await store.room_membership.join(scene.bob, scene.room_id, {"displayname": "Bobby"})
                case "leave":
                    await store.room_membership.leave(scene.bob, scene.room_id, {})
                case "kick":
                    await store.room_membership.kick(scene.alice, scene.room_id, scene.bob.user_id, {})
                case _:
                    await scene.set_visibility(way)
            remembered = await scene.view()
            for visibility in (RoomVisibility(), fresh, tiny):
                view = await visibility.view(tx, scene.room_id, scene.bob.user_id, scene.bob.user_nid)
                assert view is not None
                assert (view.ranges, view.removed_at, view.head_seq, view.state_version) == (
                    remembered.ranges,
                    remembered.removed_at,
                    remembered.head_seq,
                    remembered.state_version,
                )
                for ver in range(view.head_seq + 1):
                    assert view.history.shows(ver) == remembered.history.shows(ver)


async def test_the_ranges_hold_exactly_what_is_visible(database: Database, database_url: str) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "joined")
        await store.send(scene.alice, scene.room_id, "1")
        await store.room_membership.join(scene.bob, scene.room_id, {})
        await store.send(scene.alice, scene.room_id, "2")
        await store.room_membership.leave(scene.bob, scene.room_id, {})
        await store.send(scene.alice, scene.room_id, "3")
        await scene.set_visibility("world_readable")
        await store.send(scene.alice, scene.room_id, "4")
        await scene.set_visibility("invited")
        await store.send(scene.alice, scene.room_id, "5")
        await store.room_membership.invite(scene.alice, scene.room_id, scene.bob.user_id, {})
        await store.send(scene.alice, scene.room_id, "6")
        for user in (scene.bob, scene.alice, await store.user("carol")):
            view = await scene.view(user)
            rows = await room_timeline.read_forwards(tx, view.room.nid, (0, FIRST), (2**60, AFTER), 1000)
            visible = await scene.visibility.visible(tx, view, rows)
            assert visible == [row for row in rows if _in(view, row)]


def _in(view: RoomView, row: TimelineRow) -> bool:
    return any(first <= row.seq <= last for first, last in view.ranges)


async def test_a_room_that_was_purged_and_came_back_is_another_room(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store, database.connection() as tx:
        scene = await Scene.make(store, tx, "shared")
        await store.room_membership.join(scene.bob, scene.room_id, {})
        assert (await scene.view()).is_joined
        other = await store.room(scene.alice)
        async with tx.transaction():
            await tx.execute("DELETE FROM rooms WHERE room_id = $1", scene.room_id)
            await tx.execute("UPDATE rooms SET room_id = $1 WHERE room_id = $2", scene.room_id, other)
        assert (await scene.view()).membership is None
        assert (await scene.view()).ranges == ()
        view = await scene.visibility.view(tx, RoomId("!unknown:test"), scene.bob.user_id, scene.bob.user_nid)
        assert view is None
