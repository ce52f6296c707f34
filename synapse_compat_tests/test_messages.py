"""What is said in rooms that a Lair and a Synapse share, and what is taken back."""

from __future__ import annotations

import asyncio
from urllib.parse import quote
from uuid import uuid4

from synapse_compat_tests.room_views import (
    attempt,
    content_of,
    messages_of,
    redact,
    texts_of,
    until,
)
from synapse_compat_tests.sides import Sides, neighbour_of
from tests.clients import Client
from tests.room_versions import all_versions
from tests.shared_rooms import until_agreed, until_heard

BURST = 20
ODD_CONTENT = {
    "msgtype": "m.text",
    "body": 'Tee — τσάι — 茶 — 🫖\u0000\u2028"\\/ é e\u0301',
    "numbers": [0, -1, 2**53 - 1, -(2**53) + 1],
    "nothing": {"null": None, "": "", "list": [[], {}], "false": False},
    "ключ": {"b": 1, "a": 2, "ﬀ": 3, "🫖": 4},
}


async def test_what_is_said_by_turns_is_read_in_that_order(sides: Sides) -> None:
    room_id = await sides.shared_room()
    said = []
    for number in range(4):
        for speaker, listener in ((sides.host, sides.guest), (sides.guest, sides.host)):
            said.append(f"{number} {speaker.user_id}")
            await until_heard(listener, room_id, await speaker.say(room_id, said[-1]))

    assert await texts_of(sides.host, room_id) == said
    assert await texts_of(sides.guest, room_id) == said


async def test_when_both_talk_at_once_each_is_read_in_order(sides: Sides) -> None:
    room_id = await sides.shared_room()

    async def talk(speaker: Client) -> str:
        for number in range(BURST):
            last = await speaker.say(room_id, f"{number} {speaker.user_id}")
        return last

    async with asyncio.TaskGroup() as tasks:
        host_said = tasks.create_task(talk(sides.host))
        guest_said = tasks.create_task(talk(sides.guest))
    for last in (host_said.result(), guest_said.result()):
        await until_heard(sides.host, room_id, last)
        await until_heard(sides.guest, room_id, last)
    for listener in (sides.host, sides.guest):
        texts = await texts_of(listener, room_id)
        assert len(texts) == 2 * BURST
        for speaker in (sides.host, sides.guest):
            own = [text for text in texts if text.endswith(speaker.user_id)]
            assert own == [f"{number} {speaker.user_id}" for number in range(BURST)]


async def test_odd_content_is_read_as_it_was_written(sides: Sides) -> None:
    room_id = await sides.shared_room()
    long = {"msgtype": "m.text", "body": "tea " * 15_000}
    for speaker, listener in ((sides.host, sides.guest), (sides.guest, sides.host)):
        for content in (ODD_CONTENT, long):
            path = f"send/m.room.message/{uuid4().hex}"
            event_id = (await speaker.in_room("PUT", room_id, path, content))["event_id"]
            await until_heard(listener, room_id, event_id)
            heard = await listener.in_room("GET", room_id, f"event/{quote(event_id, safe='')}")
            assert heard["content"] == content
            assert heard["sender"] == speaker.user_id
    state_key = "🫖 #1/2?"
    await sides.host.set_state(room_id, "org.example.кружка", {"full": True}, state_key)
    await until_heard(sides.guest, room_id, await sides.host.say(room_id, "full"))
    assert await content_of(sides.guest, room_id, "org.example.кружка", state_key) == {"full": True}
    await until_agreed([sides.host, sides.guest], room_id)


@all_versions
async def test_a_message_is_taken_back_on_both_sides(sides: Sides) -> None:
    room_id = await sides.shared_room()
    everyone = [sides.host, sides.guest]
    for speaker in everyone:
        message = await speaker.say(room_id, "something rude")
        for listener in everyone:
            await until_heard(listener, room_id, message)
        redaction = await redact(speaker, room_id, message)
        for listener in everyone:
            await until_pruned(listener, room_id, message, redaction)


async def test_who_moderates_takes_back_what_others_said(sides: Sides) -> None:
    room_id = await sides.shared_room()
    kept = await sides.host.say(room_id, "a rule of this house")
    await until_heard(sides.guest, room_id, kept)
    rude = await sides.guest.say(room_id, "something rude")
    await until_heard(sides.host, room_id, rude)

    path = f"redact/{quote(kept, safe='')}/{uuid4().hex}"
    assert (await attempt(sides.guest, "PUT", room_id, path, {})).error == (403, "M_FORBIDDEN")
    redaction = await redact(sides.host, room_id, rude)
    for user in (sides.host, sides.guest):
        await until_pruned(user, room_id, rude, redaction)
        [first, second] = await messages_of(user, room_id)
        assert (first["content"]["body"], second["content"]) == ("a rule of this house", {})


async def test_state_that_was_taken_back_is_empty_on_both_sides(sides: Sides) -> None:
    room_id = await sides.shared_room()
    topic = await sides.host.set_state(room_id, "m.room.topic", {"topic": "something rude"})
    await until_heard(sides.guest, room_id, topic)
    redaction = await redact(sides.host, room_id, topic)

    for user in (sides.host, sides.guest):
        await until_pruned(user, room_id, topic, redaction)
        assert await content_of(user, room_id, "m.room.topic") == {}
    await until_agreed([sides.host, sides.guest], room_id)


async def test_who_comes_later_reads_what_was_taken_back_as_empty(sides: Sides) -> None:
    room_id = await sides.shared_room()
    rude = await sides.host.say(room_id, "something rude")
    await until_heard(sides.guest, room_id, await redact(sides.host, room_id, rude))
    for user in (sides.host, sides.guest):
        late = await neighbour_of(user, "late")
        await late.join(room_id)
        event = await late.in_room("GET", room_id, f"event/{quote(rude, safe='')}")
        assert event["content"] == {}


async def until_pruned(user: Client, room_id: str, event_id: str, redaction: str) -> None:
    """Wait until a user reads an event without its content, and is told by which redaction."""
    await until_heard(user, room_id, redaction)

    async def is_pruned() -> bool:
        event = await user.in_room("GET", room_id, f"event/{quote(event_id, safe='')}")
        because = event["unsigned"].get("redacted_because", {})
        return (event["content"], because.get("event_id")) == ({}, redaction)

    await until(is_pruned)
