"""What was said in a room before a server came to it: its users read that as well, as far as they may."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from synapse_compat_tests.room_views import attempt, change_member, history_of, redact, texts_of, until_stands
from synapse_compat_tests.sides import Sides
from tests.shared_rooms import until_agreed

MESSAGES = 120


async def test_a_guest_reads_back_to_the_beginning(sides: Sides) -> None:
    room_id = await sides.new_room(name="Tea")
    said = []
    for number in range(MESSAGES):
        if number % 20 == 10:
            await sides.host.set_state(room_id, "m.room.topic", {"topic": f"topic {number}"})
        said.append(f"message {number}")
        await sides.host.say(room_id, said[-1])
    await sides.enter(room_id)
    await until_agreed([sides.host, sides.guest], room_id)

    history = await history_of(sides.guest, room_id)
    assert [event["content"]["body"] for event in history if event["type"] == "m.room.message"] == said
    assert history[0]["type"] == "m.room.create"
    read = [event["event_id"] for event in history]
    assert read == [event["event_id"] for event in await history_of(sides.host, room_id)]


async def test_a_guest_reads_what_was_taken_back_as_empty(sides: Sides) -> None:
    room_id = await sides.new_room()
    await sides.host.say(room_id, "hello")
    rude = await sides.host.say(room_id, "something rude")
    for number in range(40):
        await sides.host.say(room_id, f"{number}")
    await redact(sides.host, room_id, rude)
    await sides.enter(room_id)

    history = {event["event_id"]: event for event in await history_of(sides.guest, room_id)}
    assert history[rude]["content"] == {}


@pytest.mark.parametrize(("visibility", "seen"), [("invited", ["after"]), ("joined", [])])
async def test_a_guest_reads_no_more_than_he_may(sides: Sides, visibility: str, seen: list[str]) -> None:
    setting: dict[str, Any] = {"history_visibility": visibility}
    room_id = await sides.new_room(
        preset="private_chat",
        initial_state=[{"type": "m.room.history_visibility", "state_key": "", "content": setting}],
    )
    hidden = await sides.host.say(room_id, "before the invite")
    await change_member(sides.host, room_id, "invite", sides.guest)
    await sides.host.say(room_id, "after")
    await until_stands(sides.guest, room_id, "invite")
    await sides.guest.join(room_id)

    assert await texts_of(sides.guest, room_id) == seen
    assert (await attempt(sides.guest, "GET", room_id, f"event/{quote(hidden, safe='')}")).status == 404
