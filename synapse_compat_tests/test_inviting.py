"""Invites between users of a Lair and of a Synapse, each way."""

from __future__ import annotations

import pytest

from synapse_compat_tests.room_views import change_member, try_join, until, until_member, until_stands
from synapse_compat_tests.sides import Sides, neighbour_of, server_of
from tests.shared_rooms import until_agreed, until_heard


@pytest.fixture
async def room_id(sides: Sides) -> str:
    """A room of the host's that one has to be invited to."""
    return await sides.new_room(preset="private_chat", name="Tea")


async def test_an_invited_guest_joins_without_being_told_where(sides: Sides, room_id: str) -> None:
    await change_member(sides.host, room_id, "invite", sides.guest)
    invite = await until_stands(sides.guest, room_id, "invite")
    told = {event["type"]: event for event in invite["invite_state"]["events"]}
    assert told["m.room.name"]["content"] == {"name": "Tea"}
    assert told["m.room.member"]["sender"] == sides.host.user_id
    assert "m.room.create" in told

    await sides.guest.join(room_id)
    await until_agreed([sides.host, sides.guest], room_id)
    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "thanks for the invitation"))
    await until_heard(sides.guest, room_id, await sides.host.say(room_id, "welcome"))


async def test_an_invited_guest_declines(sides: Sides, room_id: str) -> None:
    await change_member(sides.host, room_id, "invite", sides.guest)
    await until_stands(sides.guest, room_id, "invite")
    await sides.guest.in_room("POST", room_id, "leave", {})

    await until_member([sides.host], room_id, sides.guest, "leave")
    assert room_id not in (await sides.guest.sync()).get("rooms", {}).get("invite", {})
    assert (await try_join(sides.guest, room_id, server_of(sides.host))).error == (403, "M_FORBIDDEN")

    await change_member(sides.host, room_id, "invite", sides.guest)
    await until_stands(sides.guest, room_id, "invite")
    await sides.guest.join(room_id)
    await until_member([sides.host], room_id, sides.guest, "join")
    await until_agreed([sides.host, sides.guest], room_id)


async def test_an_invite_is_withdrawn(sides: Sides, room_id: str) -> None:
    await change_member(sides.host, room_id, "invite", sides.guest)
    await until_stands(sides.guest, room_id, "invite")
    await change_member(sides.host, room_id, "kick", sides.guest)

    async def is_withdrawn() -> bool:
        return room_id not in (await sides.guest.sync()).get("rooms", {}).get("invite", {})

    await until(is_withdrawn)
    assert (await try_join(sides.guest, room_id, server_of(sides.host))).error == (403, "M_FORBIDDEN")


async def test_those_who_are_there_invite_others_of_either_server(sides: Sides, room_id: str) -> None:
    await change_member(sides.host, room_id, "invite", sides.guest)
    await until_stands(sides.guest, room_id, "invite")
    await sides.guest.join(room_id)
    neighbour = await neighbour_of(sides.host, "neighbour")
    second = await neighbour_of(sides.guest, "second")

    await change_member(sides.host, room_id, "invite", second)
    await until_stands(second, room_id, "invite")
    await second.join(room_id)
    await until_member([sides.host], room_id, second, "join")
    await sides.host.set_state(room_id, "m.room.power_levels", {"users": users_of(sides), "invite": 0})
    await until_agreed([sides.host, sides.guest], room_id)
    await change_member(sides.guest, room_id, "invite", neighbour)
    await until_stands(neighbour, room_id, "invite")
    await neighbour.in_room("POST", room_id, "leave", {})
    await until_member([sides.host, sides.guest], room_id, neighbour, "leave")
    await until_agreed([sides.host, sides.guest, second], room_id)


def users_of(sides: Sides) -> dict[str, int]:
    """The users of the power levels: in room version 12 the creator must not be there."""
    return {} if sides.version == "12" else {sides.host.user_id: 100}
