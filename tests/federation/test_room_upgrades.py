"""Upgrading a room that users of two servers are in."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.protocol.identifiers import server_name_of
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.clients import Client, Response
from tests.federation.homeservers import name_of
from tests.federation.waiting import until
from tests.servers import RunningServer, unique_name
from tests.shared_rooms import join_over, until_agreed, until_heard

ALL_VERSIONS = pytest.mark.parametrize("version", ROOM_VERSIONS)


async def ask(client: Client, room_id: str, version: str) -> Response:
    path = f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/upgrade"
    return await client.post(path, {"new_version": version})


async def upgrade(client: Client, room_id: str, version: str) -> str:
    answer = await ask(client, room_id, version)
    assert answer.status == 200, answer.body
    new_room_id: str = answer.body["replacement_room"]
    return new_room_id


async def tombstone_of(client: Client, room_id: str) -> Any:
    """The tombstone of a room, once there is one."""

    async def find() -> Any:
        state = await client.in_room("GET", room_id, "state")
        return next((event for event in state if event["type"] == "m.room.tombstone"), None)

    return await until(find)


async def follow(client: Client, room_id: str) -> str:
    """Go where a room's tombstone leads, as clients do it: through the server of its sender."""
    tombstone = await tombstone_of(client, room_id)
    new_room_id: str = tombstone["content"]["replacement_room"]
    await join_over(client, new_room_id, server_name_of(tombstone["sender"]))
    return new_room_id


async def shared_room(host: Client, guest: Client, server: RunningServer, **wanted: Any) -> str:
    """A room of one server's user that another server's user has joined; both may upgrade it."""
    version = wanted["room_version"]
    own = {} if ROOM_VERSIONS[version].privileged_creators else {host.user_id: 100}
    override = {"users": {**own, guest.user_id: 100}, "events": {"m.room.tombstone": 100}}
    room_id = await host.create_room(name="Tea", power_level_content_override=override, **wanted)
    await join_over(guest, room_id, name_of(server))
    await until_agreed([host, guest], room_id)
    return room_id


@ALL_VERSIONS
async def test_users_of_another_server_follow_the_tombstone(
    here: RunningServer, alice: Client, bob: Client, version: str
) -> None:
    room_id = await alice.create_room(room_version=version, name="Tea")
    await join_over(bob, room_id, name_of(here))
    spammer = f"@{unique_name('spam')}:{server_name_of(bob.user_id)}"
    await alice.in_room("POST", room_id, "ban", {"user_id": spammer})

    new_room_id = await upgrade(alice, room_id, version)

    assert await follow(bob, room_id) == new_room_id
    await until_agreed([alice, bob], room_id)
    await until_agreed([alice, bob], new_room_id)
    await until_heard(alice, new_room_id, await bob.say(new_room_id, "here I am"))
    state = {
        (event["type"], event["state_key"]): event["content"]
        for event in await bob.in_room("GET", new_room_id, "state")
    }
    assert state["m.room.create", ""]["predecessor"]["room_id"] == room_id
    assert state["m.room.name", ""] == {"name": "Tea"}
    assert state["m.room.member", spammer]["membership"] == "ban"
    said = f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/1"
    assert (await bob.put(said, {"body": "still here"})).error == (403, "M_FORBIDDEN")


@ALL_VERSIONS
async def test_a_room_is_upgraded_from_a_server_that_joined_it(
    here: RunningServer, alice: Client, bob: Client, version: str
) -> None:
    room_id = await shared_room(alice, bob, here, room_version=version)
    new_room_id = await upgrade(bob, room_id, version)

    assert await follow(alice, room_id) == new_room_id
    await until_agreed([alice, bob], room_id)
    await until_agreed([alice, bob], new_room_id)
    assert (await alice.in_room("GET", new_room_id, "state/m.room.name")) == {"name": "Tea"}


@ALL_VERSIONS
async def test_two_servers_that_upgrade_a_room_at_once_agree_on_one_successor(
    here: RunningServer, alice: Client, bob: Client, version: str
) -> None:
    room_id = await shared_room(alice, bob, here, room_version=version)
    answers = await asyncio.gather(ask(alice, room_id, version), ask(bob, room_id, version))
    await tombstone_of(alice, room_id)
    await until_agreed([alice, bob], room_id)

    successor = (await tombstone_of(alice, room_id))["content"]["replacement_room"]
    again = [await ask(client, room_id, version) for client in (alice, bob)]
    assert successor in [answer.body.get("replacement_room") for answer in answers]
    assert sorted(answer.status for answer in again) == [200, 400]
    assert all(successor in str(answer.body) for answer in again)
