"""Joins of rooms that a Lair and a Synapse share, each way."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from synapse_compat_tests.room_views import (
    attempt,
    content_of,
    texts_of,
    try_join,
    until_member,
    until_stands,
)
from synapse_compat_tests.sides import Sides, neighbour_of, server_of
from tests.room_versions import all_versions, versions_with_restricted_joins
from tests.servers import unique_name
from tests.shared_rooms import until_agreed, until_heard


@all_versions
async def test_a_guest_joins_and_both_talk(sides: Sides) -> None:
    room_id = await sides.new_room(name="Tea", topic="with milk")
    await sides.enter(room_id)

    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "hello from the other side"))
    await until_heard(sides.guest, room_id, await sides.host.say(room_id, "welcome"))
    await until_agreed([sides.host, sides.guest], room_id)
    for user in (sides.host, sides.guest):
        members = await user.in_room("GET", room_id, "joined_members")
        assert set(members["joined"]) == {sides.host.user_id, sides.guest.user_id}
        assert (await content_of(user, room_id, "m.room.topic"))["topic"] == "with milk"
    room = await until_stands(sides.guest, room_id, "join")
    said = [event["content"].get("body") for event in room["timeline"]["events"]]
    assert said[-2:] == ["hello from the other side", "welcome"]


async def test_a_room_is_joined_by_its_alias(sides: Sides) -> None:
    name = unique_name("tea")
    room_id = await sides.new_room(room_alias_name=name)
    alias = f"#{name}:{server_of(sides.host)}"

    found = await sides.guest.get(f"/_matrix/client/v3/directory/room/{quote(alias)}")
    assert found.body["room_id"] == room_id
    assert server_of(sides.host) in found.body["servers"]
    joined = await sides.guest.post(f"/_matrix/client/v3/join/{quote(alias)}", {})
    assert (joined.status, joined.body) == (200, {"room_id": room_id})
    await until_agreed([sides.host, sides.guest], room_id)
    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "found it"))


async def test_a_second_guest_joins_without_help(sides: Sides) -> None:
    room_id = await sides.shared_room()
    second = await neighbour_of(sides.guest, "second")
    await second.join(room_id)

    await until_member([sides.host], room_id, second, "join")
    await until_heard(sides.host, room_id, await second.say(room_id, "me too"))
    await until_agreed([sides.host, sides.guest, second], room_id)


async def test_a_guest_leaves_and_comes_back(sides: Sides) -> None:
    room_id = await sides.shared_room()
    await sides.guest.in_room("POST", room_id, "leave", {"reason": "tea is cold"})
    await until_member([sides.host], room_id, sides.guest, "leave")
    content = await content_of(sides.host, room_id, "m.room.member", sides.guest.user_id)
    assert content["reason"] == "tea is cold"
    await sides.host.say(room_id, "is anybody there?")
    await sides.host.set_state(room_id, "m.room.topic", {"topic": "hot tea"})

    await sides.enter(room_id)
    await until_agreed([sides.host, sides.guest], room_id)
    assert (await content_of(sides.guest, room_id, "m.room.topic"))["topic"] == "hot tea"
    await until_heard(sides.guest, room_id, await sides.host.say(room_id, "welcome back"))
    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "thanks"))
    assert (await texts_of(sides.host, room_id))[-2:] == ["welcome back", "thanks"]


async def test_a_room_that_is_not_public_is_not_joined(sides: Sides) -> None:
    room_id = await sides.new_room(preset="private_chat")
    refused = await try_join(sides.guest, room_id, server_of(sides.host))

    assert refused.error == (403, "M_FORBIDDEN")
    assert (await attempt(sides.guest, "GET", room_id, "state")).status == 403


@versions_with_restricted_joins
async def test_members_of_one_room_may_enter_another(sides: Sides) -> None:
    lobby, inner = await lobby_and_inner_room(sides)
    refused = await try_join(sides.guest, inner, server_of(sides.host))
    assert refused.error == (403, "M_FORBIDDEN")

    await sides.enter(lobby)
    await until_member([sides.host], lobby, sides.guest, "join")
    await sides.enter(inner)
    await until_agreed([sides.host, sides.guest], inner)
    content = await content_of(sides.host, inner, "m.room.member", sides.guest.user_id)
    assert content["join_authorised_via_users_server"] == sides.host.user_id
    await until_heard(sides.host, inner, await sides.guest.say(inner, "I am in"))


@versions_with_restricted_joins
async def test_a_guest_who_may_invite_lets_members_of_the_other_room_in(sides: Sides) -> None:
    lobby, inner = await lobby_and_inner_room(sides, power_level_content_override={"invite": 0})
    for room_id in (lobby, inner):
        await sides.enter(room_id)
        await until_agreed(
            [sides.host, sides.guest], room_id
        )  # before that, a Synapse asks others who may enter
    second = await neighbour_of(sides.guest, "second")
    assert (await try_join(second, inner)).error == (403, "M_FORBIDDEN")

    await second.join(lobby)
    await second.join(inner)
    await until_member([sides.host], inner, second, "join")
    content = await content_of(sides.host, inner, "m.room.member", second.user_id)
    assert content["join_authorised_via_users_server"] == sides.guest.user_id
    await until_heard(sides.host, inner, await second.say(inner, "me too"))
    await until_agreed([sides.host, sides.guest, second], inner)


async def lobby_and_inner_room(sides: Sides, **wanted: Any) -> tuple[str, str]:
    """A public room of the host's, and one that only its members may enter."""
    lobby = await sides.new_room()
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    rules = {"join_rule": "restricted", "allow": allow}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": rules}]
    return lobby, await sides.new_room(initial_state=state, **wanted)
