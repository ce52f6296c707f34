"""What a user may read of a room: every history visibility against every way in and out."""

from __future__ import annotations

from itertools import permutations
from typing import Any, Final

import pytest

from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.client_api.test_room_history import all_events
from tests.clients import Client
from tests.servers import RunningServer, unique_name

STEPS: Final = ("stranger", "invited", "joined", "left", "joined again", "kicked", "banned")
"""What the reader is, one after the other; a message is sent at each step."""

VISIBLE: Final = {
    "world_readable": set(STEPS),
    "shared": set(STEPS) - {"kicked", "banned"},
    "invited": {"invited", "joined", "joined again"},
    "joined": {"joined", "joined again"},
}
"""At the end of the story: the messages of which steps the reader may see."""


async def go(step: str, alice: Client, reader: Client, room_id: str) -> None:
    match step:
        case "invited":
            await alice.in_room("POST", room_id, "invite", {"user_id": reader.user_id})
        case "joined" | "joined again":
            await join(reader, room_id)
        case "left":
            await reader.in_room("POST", room_id, "leave")
        case "kicked":
            await alice.in_room("POST", room_id, "kick", {"user_id": reader.user_id})
        case "banned":
            await alice.in_room("POST", room_id, "ban", {"user_id": reader.user_id})


def visibility_state(value: str) -> list[dict[str, Any]]:
    return [{"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": value}}]


async def readable_messages(reader: Client, room_id: str, sent: dict[str, str]) -> set[str]:
    """The steps whose message the reader can read; every endpoint has to say the same."""
    by_event = {
        step
        for step, event_id in sent.items()
        if (await reader.get(room_path(room_id, "event", event_id))).status == 200
    }
    by_context = {
        step
        for step, event_id in sent.items()
        if (await reader.get(room_path(room_id, "context", event_id))).status == 200
    }
    backwards = forwards = frozenset[str]()
    if (await reader.get(room_path(room_id, "messages"), {"dir": "b"})).status == 200:
        backwards = frozenset(await all_events(reader, room_id, "b", 2))
        forwards = frozenset(await all_events(reader, room_id, "f", 3))
    beside = set()
    for event_id in sent.values():
        around = await reader.get(room_path(room_id, "context", event_id), {"limit": "100"})
        if around.status == 200:
            beside |= {e["event_id"] for e in (*around.body["events_before"], *around.body["events_after"])}
    by_page = {step for step, event_id in sent.items() if event_id in backwards}
    assert by_event == by_context == by_page
    assert backwards == forwards
    assert beside <= backwards
    return by_event


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", VISIBLE)
async def test_sec_vis_1_what_a_reader_sees_of_each_step(alice: Client, bob: Client, visibility: str) -> None:
    room_id = await new_room(alice, initial_state=visibility_state(visibility))
    sent: dict[str, str] = {}
    for step in STEPS:
        await go(step, alice, bob, room_id)
        sent[step] = await alice.say(room_id, step)
        so_far = await readable_messages(bob, room_id, sent)
        if visibility == "shared":  # all before a join is visible once it has happened
            joins = [name for name in sent if name.startswith("joined")]
            allowed = set(list(sent)[: list(sent).index(joins[-1]) + 1]) if joins else set()
            assert so_far == allowed
        else:
            assert so_far == VISIBLE[visibility] & set(sent)
    assert await readable_messages(bob, room_id, sent) == VISIBLE[visibility]


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize(("before", "after"), [*permutations(VISIBLE, 2)])
async def test_sec_vis_1_a_change_of_the_visibility_holds_from_there_on(
    alice: Client, bob: Client, before: str, after: str
) -> None:
    room_id = await new_room(alice, initial_state=visibility_state(before))
    sent = {"before": await alice.say(room_id, "before")}
    changed = {"history_visibility": after}
    sent["change"] = await set_state(alice, room_id, "m.room.history_visibility", changed)
    sent["after"] = await alice.say(room_id, "after")
    world = {
        "before": before == "world_readable",
        "after": after == "world_readable",
        "change": "world_readable" in (before, after),
    }
    assert await readable_messages(bob, room_id, sent) == {step for step in sent if world[step]}

    await join(bob, room_id)
    open_before = {"world_readable", "shared"}
    member = {
        "before": before in open_before,
        "after": after in open_before,
        "change": before in open_before or after in open_before,
    }
    assert await readable_messages(bob, room_id, sent) == {step for step in sent if member[step]}


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", VISIBLE)
async def test_sec_vis_1_one_always_sees_the_own_coming_and_going(
    alice: Client, bob: Client, visibility: str
) -> None:
    room_id = await new_room(alice, initial_state=visibility_state(visibility))
    await join(bob, room_id)
    await alice.in_room("POST", room_id, "ban", {"user_id": bob.user_id})
    await alice.say(room_id, "gone")

    answer = await bob.get(room_path(room_id, "messages"), {"dir": "b", "limit": "100"})

    own = [event for event in answer.body["chunk"] if event.get("state_key") == bob.user_id]
    assert [event["content"]["membership"] for event in own] == ["ban", "join"]
    assert [event["unsigned"]["membership"] for event in own] == ["ban", "join"]
    if visibility != "world_readable":
        assert answer.body["chunk"][0] == own[0]


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("value", ["everyone", 7, None, ["joined"], {}])
async def test_sec_vis_1_a_visibility_that_is_not_understood_is_shared(
    alice: Client, bob: Client, value: object
) -> None:
    room_id = await new_room(alice)
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": value})
    sent = {"message": await alice.say(room_id, "hello")}
    assert await readable_messages(bob, room_id, sent) == set()
    await join(bob, room_id)
    assert await readable_messages(bob, room_id, sent) == {"message"}


async def everything_readable(reader: Client, room_id: str, event_ids: list[str]) -> str:
    """All that the endpoints say to a reader about a room, as one text."""
    texts = []
    for path, query in (
        *((room_path(room_id, "messages"), {"dir": d, "limit": "1000"}) for d in ("b", "f")),
        (room_path(room_id, "messages"), {"dir": "f", "from": "t6_0", "limit": "1000"}),
        (room_path(room_id, "state"), {}),
        (room_path(room_id, "members"), {}),
        (room_path(room_id, "members"), {"at": "t999999_0"}),
        (room_path(room_id, "joined_members"), {}),
        (room_path(room_id, "state", "m.room.topic", ""), {}),
        *((room_path(room_id, "event", event_id), {}) for event_id in event_ids),
        *((room_path(room_id, "context", event_id), {"limit": "1000"}) for event_id in event_ids),
    ):
        texts.append(str((await reader.get(path, query)).body))
    return "\n".join(texts)


@pytest.mark.invariant("SEC-VIS-2")
@pytest.mark.parametrize("visibility", ["shared", "invited", "joined"])
@pytest.mark.parametrize("way_out", ["left", "kicked", "banned"])
async def test_sec_vis_2_who_is_out_reads_nothing_that_came_later(
    alice: Client, bob: Client, server: RunningServer, visibility: str, way_out: str
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(alice, initial_state=visibility_state(visibility))
    await set_state(alice, room_id, "m.room.topic", {"topic": "early"})
    await join(bob, room_id)
    early = await alice.say(room_id, "early words")
    await go(way_out, alice, bob, room_id)
    later = [
        await alice.say(room_id, "SECRET words"),
        await set_state(alice, room_id, "m.room.topic", {"topic": "SECRET topic"}),
        (await alice.in_room("PUT", room_id, f"redact/{early}/1", {"reason": "SECRET"}))["event_id"],
    ]
    await join(carol, room_id)

    said = await everything_readable(bob, room_id, [early, *later])

    assert "SECRET" not in said
    assert carol.user_id not in said
    assert not any(event_id in said for event_id in later)
    assert early in said


@pytest.mark.invariant("SEC-VIS-2")
async def test_sec_vis_2_one_who_joins_again_reads_the_earlier_stay_but_not_the_gap(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice, initial_state=visibility_state("joined"))
    await join(bob, room_id)
    sent = {"first stay": await alice.say(room_id, "1")}
    await bob.in_room("POST", room_id, "leave")
    sent["gap"] = await alice.say(room_id, "2")
    assert await readable_messages(bob, room_id, sent) == {"first stay"}
    await join(bob, room_id)
    sent["second stay"] = await alice.say(room_id, "3")
    assert await readable_messages(bob, room_id, sent) == {"first stay", "second stay"}
