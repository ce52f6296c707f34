"""What becomes of rooms and profile when an account ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.services.account_services import build_account_services
from homeserver.services.deactivations import Deactivations
from homeserver.services.room_membership import RoomMembership
from homeserver.workers import deactivations as worker
from storage import memberships, unfinished_deactivations
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.memberships import Membership
from tests.clients import Client, password_auth
from tests.servers import RunningServer, StartServer, unique_name

DEACTIVATE = "/_matrix/client/v3/account/deactivate"
CREATE_ROOM = "/_matrix/client/v3/createRoom"
TIME_LIMIT_S = 10.0


async def new_room(server: RunningServer, creator: Client, **wanted: Any) -> str:
    server.clock.advance(1)  # a room's ID is made of who creates it and when
    answer = await creator.post(CREATE_ROOM, wanted)
    assert answer.status == 200, answer.body
    return str(answer.body["room_id"])


async def joined_room(server: RunningServer, creator: Client, guest: Client) -> str:
    """A public room that another user has joined."""
    room_id = await new_room(server, creator, preset="public_chat")
    answer = await guest.post(f"/_matrix/client/v3/rooms/{quote(room_id)}/join")
    assert answer.status == 200, answer.body
    return room_id


async def user_nid(database: Database, user: Client) -> int:
    nid = await Dictionaries(database).atoms.find_nid(user.user_id)
    assert nid is not None
    return nid


async def rooms_of(database: Database, user: Client) -> dict[str, Membership]:
    async with database.connection() as tx:
        rows = await memberships.of_user(tx, await user_nid(database, user))
    return {row.room_id: row.membership for row in rows}


async def until_left(database: Database, user: Client, *room_ids: str) -> None:
    """Wait until a user is out of rooms."""
    async with asyncio.timeout(TIME_LIMIT_S):
        while True:
            rooms = await rooms_of(database, user)
            if all(rooms[room_id] is Membership.LEAVE for room_id in room_ids):
                return


async def is_unfinished(database: Database, user: Client) -> bool:
    query = "SELECT true FROM unfinished_deactivations WHERE user_nid = $1"
    async with database.connection() as tx:
        return await tx.fetchval(query, await user_nid(database, user)) is not None


async def test_a_deactivated_user_leaves_rooms_and_rejects_invites_and_retracts_knocks(
    start_server: StartServer, database: Database
) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    joined = await joined_room(server, bob, alice)
    invited = await new_room(server, bob, invite=[alice.user_id])
    banned = await joined_room(server, bob, alice)
    await bob.post(f"/_matrix/client/v3/rooms/{quote(banned)}/ban", {"user_id": alice.user_id})
    knocked = await new_room(
        server,
        bob,
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}],
    )
    knock = f"/_matrix/client/v3/rooms/{quote(knocked)}/state/m.room.member/{quote(alice.user_id)}"
    assert (await alice.put(knock, {"membership": "knock"})).status == 200
    before = await rooms_of(database, alice)
    answer = await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    await until_left(database, alice, joined, invited, knocked)

    assert before == {
        joined: Membership.JOIN,
        invited: Membership.INVITE,
        banned: Membership.BAN,
        knocked: Membership.KNOCK,
    }
    assert answer.status == 200
    assert (await rooms_of(database, alice))[banned] is Membership.BAN


async def test_a_deactivated_user_has_no_profile(
    server: RunningServer, alice: Client, database: Database
) -> None:
    nid = await user_nid(database, alice)
    async with database.connection() as tx:
        await tx.execute(
            "INSERT INTO profiles (user_nid, field, value) VALUES ($1, 'displayname', '\x2222')", nid
        )
    await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    async with database.connection() as tx:
        fields = await tx.fetchval("SELECT count(*) FROM profiles WHERE user_nid = $1", nid)

    assert fields == 0


async def test_a_room_that_cannot_be_left_keeps_no_other_and_is_tried_again(
    start_server: StartServer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    rooms = sorted([await joined_room(server, bob, alice) for _ in range(3)])
    leave_as = RoomMembership.leave_as
    broken = {rooms[0]}

    async def leave_unless_broken(
        self: RoomMembership, user_id: UserId, room_id: RoomId, extra: Any
    ) -> EventId:
        if room_id in broken:
            raise LookupError("this room is broken")
        return await leave_as(self, user_id, room_id, extra)

    monkeypatch.setattr(RoomMembership, "leave_as", leave_unless_broken)
    await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    await until_left(database, alice, *rooms[1:])
    meanwhile = await rooms_of(database, alice)
    broken.clear()
    server.clock.advance(unfinished_deactivations.LONGEST_DELAY_MS)
    await Deactivations(database, server.services.room_membership, server.clock).finish_all()
    await until_left(database, alice, *rooms)

    assert meanwhile[rooms[0]] is Membership.JOIN
    assert [record.levelno for record in caplog.records if rooms[0] in record.getMessage()] == [logging.ERROR]


async def test_a_deactivation_is_looked_at_again_before_it_is_done(
    start_server: StartServer, database: Database
) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    services = server.services
    deactivations = Deactivations(database, services.room_membership, server.clock)
    assert alice.access_token is not None
    requester = await services.access_tokens.authenticate(alice.access_token)
    await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    await deactivations.finish_all()
    on_its_way = await new_room(server, bob, preset="public_chat")
    await services.room_membership.join(requester, RoomId(on_its_way), {})
    async with asyncio.timeout(TIME_LIMIT_S):
        while await is_unfinished(database, alice):
            server.clock.advance(unfinished_deactivations.LONGEST_DELAY_MS)
            await deactivations.finish_all()
    await until_left(database, alice, on_its_way)


async def test_what_is_deactivated_beside_the_server_is_finished_by_the_server(
    start_server: StartServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "INTERVAL_S", 0.05)
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    bob = await server.nobody.register(unique_name("bob"))
    room_id = await joined_room(server, bob, alice)
    beside = await build_account_services(server.services.config, database, Dictionaries(database).atoms)
    await beside.accounts.deactivate(UserId(alice.user_id))
    await until_left(database, alice, room_id)
