"""Users of a Lair and of a Synapse who change a room at once: both servers come to the same state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from synapse_compat_tests.room_views import attempt, content_of, membership
from synapse_compat_tests.sides import Sides, neighbour_of
from tests.clients import Client, Response
from tests.room_versions import all_versions
from tests.shared_rooms import until_agreed, until_heard

ROUNDS = 8


@all_versions
@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_topics_that_are_set_at_once(sides: Sides) -> None:
    room_id = await sides.shared_room(power_level_content_override={"state_default": 0, "events": {}})
    for number in range(ROUNDS):
        await at_once(
            set_topic(sides.host, room_id, f"{number} of the host"),
            set_topic(sides.guest, room_id, f"{number} of the guest"),
            set_topic(sides.host, room_id, f"{number} of the host, once more"),
        )
    await until_settled(sides, room_id)


@all_versions
@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_power_levels_that_are_changed_at_once(sides: Sides) -> None:
    room_id = await new_room_with_power(sides, 100)
    for number in range(1, ROUNDS):
        levels = await content_of(sides.host, room_id, "m.room.power_levels")
        await at_once(
            set_levels(sides.host, room_id, levels, {"org.example.tea": number}),
            set_levels(sides.guest, room_id, levels, {"org.example.milk": number}),
            set_topic(sides.host, room_id, f"{number} of the host"),
            set_topic(sides.guest, room_id, f"{number} of the guest"),
        )
    await until_settled(sides, room_id)


@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_a_guest_loses_power_while_he_uses_it(sides: Sides) -> None:
    for _ in range(3):
        room_id = await new_room_with_power(sides, 50)
        levels = await content_of(sides.host, room_id, "m.room.power_levels")
        users = {user: level for user, level in levels["users"].items() if user != sides.guest.user_id}
        demoted = levels | {"users": users}
        await at_once(
            attempt(sides.host, "PUT", room_id, "state/m.room.power_levels", demoted),
            set_topic(sides.guest, room_id, "I am powerful"),
            attempt(sides.guest, "PUT", room_id, "state/m.room.join_rules", {"join_rule": "invite"}),
            set_topic(sides.guest, room_id, "am I?"),
        )
        await until_settled(sides, room_id)
        for user in (sides.host, sides.guest):
            assert await content_of(user, room_id, "m.room.power_levels") == demoted


@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_who_is_banned_while_joining_is_banned(sides: Sides) -> None:
    room_id = await sides.shared_room()
    crowd = [await neighbour_of(sides.guest) for _ in range(ROUNDS)]
    for one in crowd:
        await at_once(
            attempt(sides.host, "POST", room_id, "ban", {"user_id": one.user_id}),
            attempt(one, "POST", room_id, "join", {}),
        )
    await until_settled(sides, room_id)
    for one in crowd:
        for user in (sides.host, sides.guest):
            assert await membership(user, room_id, one) == "ban"


@pytest.mark.invariant("PROM-CONV")
async def test_prom_conv_members_come_and_go_at_once(sides: Sides) -> None:
    room_id = await new_room_with_power(sides, 100)
    crowd = [await neighbour_of(user) for _ in range(3) for user in (sides.host, sides.guest)]
    await at_once(*(attempt(one, "POST", room_id, "join", {}) for one in crowd))
    for number, one in enumerate(crowd):
        other = crowd[number - 1]
        await at_once(
            attempt(sides.host, "POST", room_id, "kick", {"user_id": one.user_id}),
            attempt(sides.guest, "POST", room_id, "ban", {"user_id": one.user_id}),
            attempt(one, "POST", room_id, "leave", {}),
            attempt(sides.host, "POST", room_id, "unban", {"user_id": other.user_id}),
            attempt(other, "POST", room_id, "join", {}),
            attempt(sides.guest, "PUT", room_id, "state/m.room.join_rules", join_rule(number)),
        )
    await until_settled(sides, room_id)


async def new_room_with_power(sides: Sides, level: int) -> str:
    """A room in which the guest has power too."""
    creator = {} if sides.version == "12" else {sides.host.user_id: 100}
    levels = {"users": creator | {sides.guest.user_id: level}}
    return await sides.shared_room(power_level_content_override=levels)


async def at_once(*actions: Awaitable[Response]) -> None:
    """Do several things at the same time, each of which may be refused."""

    async def do(action: Awaitable[Response]) -> Response:
        return await action

    async with asyncio.TaskGroup() as tasks:
        done = [tasks.create_task(do(action)) for action in actions]
    for task in done:
        assert task.result().status in (200, 403), task.result().body


def set_topic(user: Client, room_id: str, text: str) -> Awaitable[Response]:
    return attempt(user, "PUT", room_id, "state/m.room.topic", {"topic": text})


def set_levels(
    user: Client, room_id: str, levels: dict[str, Any], events: dict[str, int]
) -> Awaitable[Response]:
    """Change what some events need, on top of the power levels that everybody knew."""
    changed = levels | {"events": levels.get("events", {}) | events}
    return attempt(user, "PUT", room_id, "state/m.room.power_levels", changed)


def join_rule(number: int) -> dict[str, str]:
    return {"join_rule": "public" if number % 2 else "invite"}


async def until_settled(sides: Sides, room_id: str) -> None:
    """Wait until both servers have heard everything, and look whether they agree."""
    users: Sequence[Client] = (sides.host, sides.guest)
    for speaker in users:
        last = await speaker.say(room_id, "that was all")
        for listener in users:
            await until_heard(listener, room_id, last)
    await until_agreed(users, room_id)
