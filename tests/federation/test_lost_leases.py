"""An attempt to join a room that takes so long that another process begins one of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.identifiers import RoomId, UserId
from storage import outliers, room_imports
from storage.persister import Persister
from storage.room_imports import Lease, PendingJoin
from tests.clients import Client
from tests.federation.joined_rooms import join_by, joined, members, state_of
from tests.federation.peers import Peer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.test_coming_back import leave, until_known
from tests.federation.waiting import until
from tests.servers import RunningServer, unique_name

STEPS = [
    (outliers, "insert"),
    (room_imports, "write_state"),
    (room_imports, "write_members"),
    (Persister, "append"),
]


def concerns(arguments: Sequence[Any], *names: Any) -> bool:
    """Whether a step is about a room, of these names: other rooms of a server go their own ways meanwhile."""
    return any(
        argument in names if isinstance(argument, (str, int)) else getattr(argument, "room_nid", ()) in names
        for argument in arguments
    )


class Stall:
    """Lets an attempt take too long at a step, and another one begin before it goes on."""

    def __init__(self, server: RunningServer, room: PlayedRoom, user: Client, step: Any) -> None:
        self.database = server.services.room_directory.database
        self.room_id = RoomId(room.room_id)
        self.wanted = PendingJoin(UserId(user.user_id), self.room_id, {}, [])
        self.step = step
        self.lease: Lease | None = None

    def stalling(self) -> Callable[..., Awaitable[Any]]:
        """The step as it takes too long for the room of the attempt; others go on as ever."""

        async def step(*arguments: Any, **options: Any) -> Any:
            async with self.database.connection() as tx:
                room_nid = await tx.fetchval("SELECT nid FROM rooms WHERE room_id = $1", self.room_id)
                if not concerns(arguments, self.room_id, room_nid):
                    return await self.step(*arguments, **options)
                await tx.execute("UPDATE room_joins SET leased_until = 0 WHERE room_nid = $1", room_nid)
                self.lease = await room_imports.take_lease(tx, room_nid, self.wanted, 1, 2**60)
                await room_imports.clear(tx, room_nid)
            return await self.step(*arguments, **options)

        return step

    async def rows(self) -> int:
        """How many rows there are of what the room is."""
        async with self.database.connection() as tx:
            return int(
                await tx.fetchval(
                    """
                    SELECT count(room_seq) + (SELECT count(*) FROM room_state_log WHERE room_nid = rooms.nid)
                        + (SELECT count(*) FROM memberships WHERE room_nid = rooms.nid)
                    FROM rooms LEFT JOIN events ON events.room_nid = rooms.nid
                    WHERE room_id = $1 GROUP BY rooms.nid
                    """,
                    self.room_id,
                )
            )

    async def end(self) -> None:
        """The other attempt comes to nothing."""
        assert self.lease is not None
        async with self.database.connection() as tx:
            await room_imports.end_lease(tx, self.lease)


@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
async def test_who_has_lost_the_lease_of_a_room_stores_nothing_of_it(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    room = PlayedRoom.new([peer])
    stall = Stall(here, room, alice, getattr(owner, name))
    with monkeypatch.context() as stalled:
        stalled.setattr(owner, name, stall.stalling())
        late = await join_by(alice, room.room_id, peer.name)
    rows = await stall.rows()
    await stall.end()
    await joined(alice, room)

    assert late.error == (503, "M_UNKNOWN")
    assert rows == 0
    assert await state_of(alice, room, *CREATE) is not None
    assert await members(alice, room) == {user_of(peer, "tea"), alice.user_id}


@pytest.mark.parametrize(
    ("owner", "name"), [(outliers, "insert"), (Persister, "append")], ids=["insert", "append"]
)
async def test_who_has_lost_the_lease_does_not_bring_the_server_back_into_a_room(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    room = PlayedRoom.new([peer])
    await joined(alice, room)
    await leave(alice, room)
    await until_known(room, alice, "leave")
    stall = Stall(here, room, alice, getattr(owner, name))
    before = await stall.rows()
    with monkeypatch.context() as stalled:
        stalled.setattr(owner, name, stall.stalling())
        late = await join_by(alice, room.room_id, peer.name)
    after = await stall.rows()
    await stall.end()
    await joined(alice, room)

    assert late.error == (503, "M_UNKNOWN")
    assert after == before
    assert await members(alice, room) == {user_of(peer, "tea"), alice.user_id}


@pytest.mark.parametrize("is_known", [False, True], ids=["at first", "coming back"])
async def test_who_finds_the_server_in_the_room_when_all_is_done_leaves_the_room_as_it_is(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    room, tea = PlayedRoom.new([peer]), user_of(peer, "tea")
    carol = await here.nobody.register(unique_name("carol"))
    if is_known:
        await joined(alice, room)
        await leave(alice, room)
        await until_known(room, alice, "leave")
    append = Persister.append

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        if not concerns(arguments, room.room_id):
            return await append(*arguments, **options)
        stalled.undo()
        await let_the_lease_run_out(here, room)
        with monkeypatch.context() as elsewhere:  # as in another process
            elsewhere.setattr(here.services.remote_joins, "_running", {})
            assert (await join_by(carol, room.room_id, peer.name)).status == 200
        await send(here, peer, [room.event(tea, "m.room.topic", {"topic": "newer"}, "")])
        await until(lambda: state_of(carol, room, "m.room.topic"))
        return await append(*arguments, **options)

    with monkeypatch.context() as stalled:
        stalled.setattr(Persister, "append", overtaken)
        late = await join_by(alice, room.room_id, peer.name)

    assert late.status == 200
    assert await state_of(alice, room, "m.room.topic") == {"topic": "newer"}
    assert await members(alice, room) == {tea, carol.user_id, alice.user_id}


async def let_the_lease_run_out(server: RunningServer, room: PlayedRoom) -> None:
    async with server.services.room_directory.database.connection() as tx:
        query = "UPDATE room_joins SET leased_until = 0 FROM rooms WHERE nid = room_nid AND room_id = $1"
        await tx.execute(query, room.room_id)
