"""Rooms that a Lair and a Synapse share, and that one of them upgrades."""

from __future__ import annotations

from typing import Any

import pytest

from synapse_compat_tests.room_views import attempt, content_of, try_join, try_say, until, until_member
from synapse_compat_tests.sides import Sides, neighbour_of, server_of
from tests.shared_rooms import until_agreed, until_heard


async def upgrade(sides: Sides, room_id: str, version: str) -> str:
    """Upgrade a room of the host's, and wait until the guest knows; returns the ID of the new one."""
    answer = await sides.host.in_room("POST", room_id, "upgrade", {"new_version": version})
    new_room_id: str = answer["replacement_room"]

    async def is_told() -> bool:
        tombstone = await content_of(sides.guest, room_id, "m.room.tombstone")
        return bool(tombstone.get("replacement_room") == new_room_id)

    await until(is_told)
    return new_room_id


@pytest.mark.parametrize("to", ["11", "12"])
async def test_the_guest_follows_into_the_room_that_replaces_theirs(sides: Sides, to: str) -> None:
    room_id = await sides.shared_room(name="Tea", topic="Leaves")
    rude = await neighbour_of(sides.guest, "rude")
    await sides.host.in_room("POST", room_id, "ban", {"user_id": rude.user_id})

    new_room_id = await upgrade(sides, room_id, to)

    assert (await try_join(sides.guest, new_room_id, server_of(sides.host))).status == 200
    await until_agreed([sides.host, sides.guest], new_room_id)
    await until_agreed([sides.host, sides.guest], room_id)
    create: dict[str, Any] = await content_of(sides.guest, new_room_id, "m.room.create")
    assert (create["room_version"], create["predecessor"]["room_id"]) == (to, room_id)
    assert await content_of(sides.guest, new_room_id, "m.room.name") == {"name": "Tea"}
    await until_member([sides.host, sides.guest], new_room_id, rude, "ban")
    assert (await try_join(rude, new_room_id, server_of(sides.host))).status == 403
    await until_heard(sides.host, new_room_id, await sides.guest.say(new_room_id, "here I am"))
    await until_heard(sides.guest, new_room_id, await sides.host.say(new_room_id, "welcome"))
    assert (await try_say(sides.guest, room_id)).error == (403, "M_FORBIDDEN")
    assert (await attempt(sides.guest, "POST", new_room_id, "upgrade", {"new_version": to})).status == 403


async def test_a_moderator_upgrades_a_room_and_stays_one(sides: Sides) -> None:
    levels = {"events": {"m.room.tombstone": 50, "m.room.power_levels": 100}}
    room_id = await sides.shared_room(power_level_content_override=levels)
    before = await content_of(sides.host, room_id, "m.room.power_levels")
    users = {**before["users"], sides.guest.user_id: 50}
    await sides.host.set_state(room_id, "m.room.power_levels", {**before, "users": users})
    await until_agreed([sides.host, sides.guest], room_id)

    moderators = Sides(sides.guest, sides.host, sides.version)
    new_room_id = await upgrade(moderators, room_id, "11")

    assert (await try_join(sides.host, new_room_id, server_of(sides.guest))).status == 200
    await until_agreed([sides.host, sides.guest], new_room_id)
    after = await content_of(sides.host, new_room_id, "m.room.power_levels")
    assert after["users"][sides.guest.user_id] == 50
    assert (
        await attempt(sides.guest, "PUT", new_room_id, "state/m.room.power_levels/", before)
    ).status == 403
    await until_heard(sides.host, new_room_id, await sides.guest.say(new_room_id, "as before"))
