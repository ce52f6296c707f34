"""History that other servers have from before our users came, and from where we missed something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import orjson
import pytest
from aiohttp import web

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.services import timeline_reading
from storage import fetched_history
from storage.database import Database
from tests.client_api.rooms import join, room_path
from tests.clients import Client
from tests.federation.history_requests import backfill_uri, event_uri, get, ids_of, state_uri
from tests.federation.homeservers import federation_settings
from tests.federation.joined_rooms import is_shown, join_by, joined, state_of
from tests.federation.peers import (
    Answer,
    Asked,
    Authority,
    Peer,
    error_answer,
    json_answer,
    running_peer,
)
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.room_answers import ENDPOINTS
from tests.federation.waiting import until
from tests.room_versions import versions_of_each_form
from tests.servers import MovableClock, RunningServer, StartServer, running_server, unique_name


@pytest.fixture
def clock_of_here(here: RunningServer) -> Iterator[MovableClock]:
    """The clock of our server, which goes back to where it was after the test."""
    now = here.clock.now
    yield here.clock
    here.clock.now = now


async def page(client: Client, room: PlayedRoom, token: str | None = None, **query: Any) -> Any:
    asked = {"dir": "b", **({} if token is None else {"from": token}), **query}
    answer = await client.get(room_path(room.room_id, "messages"), {key: str(asked[key]) for key in asked})
    assert answer.status == 200, answer.body
    return answer.body


async def pages(client: Client, room: PlayedRoom, limit: int = 50, **query: Any) -> AsyncIterator[list[Any]]:
    """The pages back from now; each must make progress."""
    token, seen = None, set()
    while True:
        answer = await page(client, room, token, limit=limit, **query)
        yield answer["chunk"]
        if (token := answer.get("end")) is None:
            return
        assert token not in seen
        seen.add(token)


async def history(client: Client, room: PlayedRoom, limit: int = 50, **query: Any) -> list[Any]:
    """All events of a room that a client can page back to, the oldest first."""
    found = [event async for chunk in pages(client, room, limit, **query) for event in chunk]
    return found[::-1]


async def ids(client: Client, room: PlayedRoom, limit: int = 50) -> list[str]:
    return [event["event_id"] for event in await history(client, room, limit)]


async def texts(client: Client, room: PlayedRoom, limit: int = 50) -> list[str]:
    found = await history(client, room, limit)
    return [event["content"]["body"] for event in found if "body" in event["content"]]


def say(room: PlayedRoom, sender: str, *bodies: str, **fields: Any) -> list[Pdu]:
    return [room.event(sender, "m.room.message", {"body": body}, **fields) for body in bodies]


def numbered(word: str, count: int) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def is_in_order(room: PlayedRoom, event_ids: Iterable[str]) -> bool:
    """Whether each event comes after all that it builds on."""
    seen: set[str] = set()
    for event_id in event_ids:
        if not seen.issuperset(room.events[EventId(event_id)].prev_events):
            return False
        seen.add(event_id)
    return True


def grow(room: PlayedRoom, peers: list[Peer], count: int, seed: int, width: int = 3) -> None:
    """Let users say and change things, on forks that come together again."""
    random = Random(seed)
    tea = user_of(peers[0], "tea")
    users = [user_of(peer, name) for peer in peers for name in ("zoe", "yan", "xia")]
    for user in users:
        room.event(user, "m.room.member", {"membership": "join"}, user)
    for number in range(count):
        heads = room.heads
        parents = random.sample(heads, random.randint(1, len(heads)))
        if len(heads) < width and random.random() < 0.3:
            parents = [random.choice(room.events[heads[0]].prev_events)]
        state = room.state_after(*parents)
        user = random.choice([user for user in users if ("m.room.member", user) in state] or [tea])
        member = room.events[state["m.room.member", user]].membership
        match random.randint(0, 9):
            case 0:
                room.event(tea, "m.room.topic", {"topic": f"{number}"}, "", prev=parents)
            case 1:
                content = {"membership": "leave" if member == "join" else "join"}
                room.event(user, "m.room.member", content, user, prev=parents)
            case 2:
                content = {"membership": "join", "displayname": f"{number}"}
                room.event(user, "m.room.member", content, user, prev=parents)
            case _:
                say(room, user if member == "join" else tea, f"{number}", prev=parents)


# -- before our users came


@versions_of_each_form
@pytest.mark.parametrize("limit", [7, 50, 300])
async def test_a_long_history_is_paged_through(
    here: RunningServer, peer: Peer, alice: Client, version: str, limit: int
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")
    for number in range(350):
        if number % 10 == 3:
            room.event(tea, "m.room.topic", {"topic": f"topic {number}"}, "")
        else:
            say(room, tea, f"tea {number}")
    await joined(alice, room)

    assert await ids(alice, room, limit) == list(room.events)


@versions_of_each_form
@pytest.mark.parametrize("seed", range(4))
async def test_a_history_of_forks_is_paged_through_with_its_states(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str, seed: int
) -> None:
    room = PlayedRoom.new([peer, notary], version=version)
    grow(room, [peer, notary], 250, seed)
    await joined(alice, room)
    found = await ids(alice, room)

    assert sorted(found) == sorted(room.events)
    assert is_in_order(room, found)
    for event_id in found:
        told = await get(here, peer, state_uri(room.room_id, event_id, ids=True))
        assert set(told["pdu_ids"]) == set(room.before[EventId(event_id)].values())


async def test_what_came_later_does_not_change_what_the_room_is(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    room.event(tea, "m.room.topic", {"topic": "old"}, "")
    room.event(tea, "m.room.name", {"name": "old"}, "")
    say(room, tea, *numbered("tea", 30))
    room.event(tea, "m.room.topic", {"topic": "new"}, "")
    join = await joined(alice, room)
    since = (await alice.sync())["next_batch"]
    await history(alice, room)
    waited = await alice.sync(since)
    said = await alice.say(room.room_id, "now")

    assert room.room_id not in waited.get("rooms", {}).get("join", {})
    assert await state_of(alice, room, "m.room.topic") == {"topic": "new"}
    timeline = (await alice.sync())["rooms"]["join"][room.room_id]["timeline"]
    assert [event["event_id"] for event in timeline["events"]] == [join.event_id, said]
    [event] = await get_events(here, peer, [said])
    assert event["prev_events"] == [join.event_id]


async def get_events(here: RunningServer, peer: Peer, event_ids: Iterable[str]) -> list[Any]:
    answers = [await get(here, peer, event_uri(event_id)) for event_id in event_ids]
    return [answer["pdus"][0] for answer in answers]


@versions_of_each_form
async def test_a_new_event_may_build_on_it(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")
    [old] = say(room, tea, "old")
    room.event(tea, "m.room.topic", {"topic": "newer"}, "")
    say(room, tea, "newer")
    await joined(alice, room)
    before = await ids(alice, room)
    fork = room.event(tea, "m.room.name", {"name": "from the past"}, "", prev=[old])
    on_top = say(room, tea, "together again")
    await send(here, peer, [fork, *on_top])
    told = await get(here, peer, state_uri(room.room_id, on_top[0].event_id, ids=True))

    assert await ids(alice, room) == [*before, fork.event_id, on_top[0].event_id]
    assert set(told["pdu_ids"]) == set(room.before[on_top[0].event_id].values())
    assert await state_of(alice, room, "m.room.topic") == {"topic": "newer"}
    assert await state_of(alice, room, "m.room.name") == {"name": "from the past"}


async def test_an_event_of_the_past_is_shown_as_it_was_then(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea, zoe = user_of(peer, "tea"), user_of(peer, "zoe")
    room.event(zoe, "m.room.member", {"membership": "join", "displayname": "Zoë"}, zoe)
    [message] = say(room, zoe, "hello")
    room.event(zoe, "m.room.member", {"membership": "join", "displayname": "Zo"}, zoe)
    first = room.event(tea, "m.room.topic", {"topic": "first"}, "")
    second = room.event(tea, "m.room.topic", {"topic": "second"}, "")
    room.event(zoe, "m.room.member", {"membership": "leave"}, zoe)
    await joined(alice, room)
    found = {event["event_id"]: event for event in await history(alice, room)}
    around = await alice.get(room_path(room.room_id, "context", message.event_id), {"limit": "0"})
    context = around.body
    members = [event for event in context["state"] if event.get("state_key") == zoe]
    lazy = await page(alice, room, limit=50, filter='{"lazy_load_members":true}')

    assert found[message.event_id]["unsigned"]["membership"] == "leave"
    assert found[second.event_id]["unsigned"]["prev_content"] == {"topic": "first"}
    assert found[second.event_id]["unsigned"]["replaces_state"] == first.event_id
    assert "prev_content" not in found[first.event_id]["unsigned"]
    assert [event["content"].get("displayname") for event in members] == ["Zoë"]
    assert {event["state_key"] for event in lazy["state"]} == {tea, zoe, alice.user_id}


async def test_the_context_of_the_join_goes_back_too(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    said = say(room, user_of(peer, "tea"), *numbered("tea", 30))
    join = await joined(alice, room)
    answer = await alice.get(room_path(room.room_id, "context", join.event_id), {"limit": "10"})
    context = answer.body
    before = [event["event_id"] for event in context["events_before"]]
    rest = [event["event_id"] for event in (await page(alice, room, context["start"], limit=100))["chunk"]]

    assert before == [event.event_id for event in said[:-6:-1]]
    assert [*before, *rest] == [event_id for event_id in room.events if event_id != join.event_id][::-1]


async def test_a_filter_that_lets_nothing_through_leads_to_the_end(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    [first] = say(room, tea, "the first")
    for number in range(250):
        room.event(tea, "org.example.noise", {"number": number})
    await joined(alice, room)
    filtered = '{"types":["m.room.message"]}'
    found = await history(alice, room, 5, filter=filtered)

    assert [event["event_id"] for event in found] == [first.event_id]


async def test_it_is_served_to_other_servers_too(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, *numbered("tea", 130))
    topic = room.event(tea, "m.room.topic", {"topic": "tea"}, "")
    say(room, tea, *numbered("coffee", 20))
    join = await joined(alice, room)
    await history(alice, room)
    told = await get(here, peer, backfill_uri(room.room_id, [join.event_id]))
    given = await get_events(here, peer, [topic.event_id])

    assert ids_of(told["pdus"]) == list(room.events)[::-1][:100]
    assert given == [topic.json]


# -- who may see it


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", ["world_readable", "shared", "invited", "joined", "odd"])
async def test_sec_vis_1_history_is_shown_as_its_visibility_says(
    here: RunningServer, peer: Peer, alice: Client, visibility: str
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, "before")
    content = {"history_visibility": visibility}
    room.event(tea, "m.room.history_visibility", content, "")
    say(room, tea, "under it")
    assert (await room.invite(here, tea, alice.user_id)).status == 200
    say(room, tea, "after the invite")
    await joined(alice, room)
    say_later = say(room, tea, "after the join")
    await send(here, peer, say_later)

    seen = await texts(alice, room)
    late = await here.nobody.register(unique_name("late"))
    await join(late, room.room_id)
    seen_late = await texts(late, room)

    everything = ["before", "under it", "after the invite", "after the join"]
    expected = {
        "world_readable": everything,
        "shared": everything,
        "odd": everything,
        "invited": ["before", "after the invite", "after the join"],
        "joined": ["after the join"],
    }
    assert seen == expected[visibility]
    assert seen_late == (everything if visibility in ("world_readable", "shared", "odd") else [])


@pytest.mark.invariant("SEC-VIS-1")
async def test_sec_vis_1_nothing_is_fetched_that_nobody_here_may_see(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    room.event(tea, "m.room.history_visibility", {"history_visibility": "joined"}, "")
    say(room, tea, "hidden")
    await joined(alice, room)

    assert await texts(alice, room) == []
    assert not room.requests("backfill")


@pytest.mark.invariant("SEC-VIS-1")
async def test_sec_vis_1_changes_of_the_visibility_hold_from_where_they_stand(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, "shared")
    hidden = room.event(tea, "m.room.history_visibility", {"history_visibility": "joined"}, "")
    say(room, tea, "joined")
    open_again = room.event(tea, "m.room.history_visibility", {"history_visibility": "shared"}, "")
    say(room, tea, "shared again")
    await joined(alice, room)
    found = await history(alice, room)
    seen = {event["event_id"] for event in found}

    assert [event["content"]["body"] for event in found if "body" in event["content"]] == [
        "shared",
        "shared again",
    ]
    assert seen >= {hidden.event_id, open_again.event_id}


# -- whom we ask, and what they answer


BAD_ANSWERS: dict[str, Any] = {
    "nothing": json_answer({"origin": "x", "origin_server_ts": 1, "pdus": []}),
    "no list": json_answer({"pdus": {}}),
    "no events": json_answer({"pdus": [None, 5, "x", {}, {"type": 5}, []]}),
    "forbidden": error_answer(403, "M_FORBIDDEN"),
    "not found": error_answer(404, "M_NOT_FOUND"),
    "broken": error_answer(500, "M_UNKNOWN"),
}


@pytest.mark.parametrize("bad", BAD_ANSWERS)
async def test_another_server_is_asked_where_one_does_not_help(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, bad: str
) -> None:
    room = PlayedRoom.new([peer, notary])
    say(room, user_of(peer, "tea"), *numbered("tea", 130))
    zoe = user_of(peer, "zoe")
    room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    await joined(alice, room)
    answer = BAD_ANSWERS[bad]
    room.answers["backfill"] = lambda asked: copy_of(answer) if asked.peer is peer else None

    assert await ids(alice, room) == list(room.events)
    assert room.requests("backfill", peer) and len(room.requests("backfill", notary)) == 2


def copy_of(answer: Any) -> Answer:
    """An answer that can be given once more."""
    return json_answer(orjson.loads(answer.body), answer.status)


@pytest.mark.parametrize("endpoint", ["state_ids", "event_auth", "event"])
async def test_another_server_is_asked_where_one_does_not_tell_what_else_is_needed(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, endpoint: str
) -> None:
    room = PlayedRoom.new([peer, notary], version="11")
    tea, zoe = user_of(peer, "tea"), user_of(peer, "zoe")
    room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    for number in range(150):
        room.event(tea, "m.room.topic", {"topic": f"{number}"}, "")
    await joined(alice, room)
    room.answers[endpoint] = lambda asked: error_answer(404, "M_NOT_FOUND") if asked.peer is peer else None

    assert await ids(alice, room) == list(room.events)


async def test_where_nobody_helps_the_history_ends_for_a_while(
    clock_of_here: MovableClock, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    said = say(room, user_of(peer, "tea"), *numbered("tea", 30))
    join = await joined(alice, room)
    room.fail("backfill", 403, "M_FORBIDDEN")
    ends = [await page(alice, room, limit=10) for _ in range(3)]
    asked = len(room.requests("backfill"))
    del room.answers["backfill"]
    still_left_alone = await page(alice, room, limit=10)
    clock_of_here.advance(20_000)
    again = await page(alice, room, limit=10)

    for answer in [*ends, still_left_alone]:
        assert [event["event_id"] for event in answer["chunk"]] == [join.event_id]
        assert "end" not in answer
    assert asked == 1
    assert [event["event_id"] for event in again["chunk"]][1:] == [event.event_id for event in said[:-10:-1]]


@pytest.mark.invariant("SEC-PAGE-1")
async def test_sec_page_1_where_it_takes_long_the_client_is_told_to_come_again(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_reading, "PATIENCE_S", 0.05)
    room = PlayedRoom.new([peer])
    say(room, user_of(peer, "tea"), *numbered("tea", 30))
    join = await joined(alice, room)
    may_answer = asyncio.Event()

    async def slowly(asked: Asked) -> Answer:
        await may_answer.wait()
        answer = ENDPOINTS["backfill"][2](room, asked)
        assert answer is not None
        return answer

    room.answers["backfill"] = slowly
    first = await page(alice, room, limit=10)
    tokens = [first["end"]]
    for _ in range(3):
        empty_page = await page(alice, room, tokens[-1], limit=10)
        assert empty_page["chunk"] == []
        tokens.append(empty_page["end"])
    may_answer.set()
    monkeypatch.setattr(timeline_reading, "PATIENCE_S", 20)
    rest = await page(alice, room, tokens[-1], limit=100)

    assert [event["event_id"] for event in first["chunk"]] == [join.event_id]
    assert len(set(tokens)) == len(tokens)
    assert [event["event_id"] for event in rest["chunk"]] == list(room.events)[-2::-1]
    assert len(room.requests("backfill")) == 1


@pytest.mark.invariant("LESSON-13")
async def test_lesson_13_pages_do_not_wait_once_a_reader_is_on_the_way_back(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    """A page that ends near the end of what is here has more fetched beside it."""
    room = PlayedRoom.new([peer])
    say(room, user_of(peer, "tea"), *numbered("tea", 230))
    await joined(alice, room)
    first = await page(alice, room, limit=60)
    assert len(room.requests("backfill")) == 1  # 100 events came, 41 are left: the next page is prepared
    async with asyncio.timeout(10):
        while len(room.requests("backfill")) < 2:
            await asyncio.sleep(0.01)
    room.fail("backfill", 403, "M_FORBIDDEN")
    second = await page(alice, room, first["end"], limit=60)

    assert [len(answer["chunk"]) for answer in (first, second)] == [60, 60]


@pytest.mark.invariant("LESSON-13")
async def test_lesson_13_a_page_for_which_enough_is_here_asks_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, *numbered("before", 5))
    await joined(alice, room)
    for text in numbered("after", 45):
        await send(here, peer, say(room, tea, text))
    answer = await page(alice, room, limit=20)

    assert len(answer["chunk"]) == 20
    assert not room.requests("backfill")


async def test_readers_who_come_at_once_make_one_request(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    say(room, user_of(peer, "tea"), *numbered("tea", 60))
    carol = await here.nobody.register(unique_name("carol"))
    await joined(alice, room)
    until_the_join = list(room.events)
    await join(carol, room.room_id)
    found = await asyncio.gather(*(ids(client, room, 100) for client in (alice, carol, alice, carol)))

    assert [one[:-1] for one in found] == [until_the_join] * 4
    assert len(room.requests("backfill")) == 1


# -- what is no history of the room


@pytest.mark.invariant("SEC-SIGN-2")
@pytest.mark.parametrize("fault", ["signature", "hash", "id", "other room", "not named", "another beginning"])
async def test_sec_sign_2_only_events_to_which_the_history_leads_are_taken(
    here: RunningServer, peer: Peer, alice: Client, fault: str
) -> None:
    room, other = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, "good")
    await joined(alice, room)
    [newer] = say(room, tea, "not sent yet")
    fork = room.event(tea, "m.room.message", {"body": "fork"}, prev=[newer], apart=True)
    [elsewhere] = say(other, tea, "elsewhere")
    beginning = room.event(tea, "m.room.message", {"body": "beginning"}, prev=[], apart=True)
    bad: Any = {
        "signature": {**newer.json, "signatures": {}},
        "hash": {**newer.json, "content": {"body": "changed"}},
        "id": {**newer.json, "depth": 1},
        "other room": elsewhere.json,
        "not named": fork.json,
        "another beginning": beginning.json,
    }[fault]

    def answer(asked: Asked) -> Answer:
        good = ENDPOINTS["backfill"][2](room, asked)
        assert isinstance(good, web.Response) and isinstance(good.body, bytes)
        return json_answer({"pdus": [bad, *orjson.loads(good.body)["pdus"], bad]})

    room.answers["backfill"] = answer
    found = await ids(alice, room)

    assert found == [event_id for event_id in room.events if event_id != newer.event_id]
    await send(here, peer, [newer])
    assert (await texts(alice, room)) == ["good", "not sent yet"]


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_more_than_was_asked_for_is_not_taken(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    say(room, user_of(peer, "tea"), *numbered("tea", 450))
    await joined(alice, room)

    def all_of_it(asked: Asked) -> Answer:
        assert int(asked.query["limit"]) == 100
        before = [event.json for event in room.events.values()][::-1]
        start = next(
            index for index, json in enumerate(before) if room.parsed(json).event_id == asked.query["v"]
        )
        return json_answer({"pdus": before[start:]})

    room.answers["backfill"] = all_of_it

    assert await ids(alice, room) == list(room.events)
    assert len(room.requests("backfill")) == 5


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_an_event_that_names_very_many_others_does_not_hide_what_was_before(
    clock_of_here: MovableClock, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, *numbered("before", 5))
    real = room.heads
    nowhere = [f"${number:043d}" for number in range(0, 9000, 30)]
    state = room.state
    auth = room.auth_events(tea, "m.room.message", {}, None, state)
    hostile = room.event(
        tea, "m.room.message", {"body": "hostile"}, prev=[*nowhere, *real], auth=auth, depth=13, apart=True
    )
    room.events[hostile.event_id], room.before[hostile.event_id] = hostile, state
    room.heads = [hostile.event_id]
    say(room, tea, "after")
    await joined(alice, room)
    for _ in range(10):
        seen = await texts(alice, room)
        clock_of_here.advance(3600_000)

    assert seen == [*numbered("before", 5), "hostile", "after"]
    assert max(len(asked.query.getall("v")) for asked in room.requests("backfill")) <= 20


@pytest.mark.invariant("SEC-FED-4")
async def test_sec_fed_4_few_servers_are_asked_and_first_the_one_that_let_us_in(
    authority: Authority, here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    clock = peer.clock
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(running_peer(authority, clock)) for _ in range(5)]
        room = PlayedRoom.new([notary, peer, *others])
        for name in ("zoe", "yan"):
            user = user_of(notary, name)
            room.event(user, "m.room.member", {"membership": "join"}, user)
        say(room, user_of(peer, "tea"), *numbered("tea", 30))
        answer = await join_by(alice, room.room_id, peer.name)
        room.answers["backfill"] = lambda _asked: error_answer(404, "M_NOT_FOUND")
        seen = await texts(alice, room)
    asked = [request.peer for request in room.requests("backfill")]

    assert (answer.status, seen) == (200, [])
    assert asked[:2] == [peer, notary]
    assert len(asked) == len({peer.name for peer in asked}) == 4


async def test_an_event_that_the_state_of_its_time_refuses_is_not_shown(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea, zoe = user_of(peer, "tea"), user_of(peer, "zoe")
    join_of_zoe = room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    [said] = say(room, zoe, "while in the room")
    room.event(tea, "m.room.member", {"membership": "ban"}, zoe)
    say(room, tea, "banned")
    state = room.before[said.event_id]
    auth = [state[key] for key in [("m.room.power_levels", ""), ("m.room.member", zoe)]]
    assert auth[-1] == join_of_zoe.event_id
    [late] = say(room, zoe, "I am still here", auth=auth, rejected=True)
    name = room.event(zoe, "m.room.name", {"name": "mine"}, "", prev=[late], auth=auth, rejected=True)
    say(room, tea, "on top of it", prev=[name])
    await joined(alice, room)

    assert await texts(alice, room) == ["while in the room", "banned", "on top of it"]
    for refused in (late, name):
        answer = await alice.get(room_path(room.room_id, "event", refused.event_id))
        assert answer.error == (404, "M_NOT_FOUND")
    for event_id in [event_id for event_id in room.events if event_id not in room.rejected]:
        told = await get(here, peer, state_uri(room.room_id, event_id, ids=True))
        assert set(told["pdu_ids"]) == set(room.before[event_id].values())


@versions_of_each_form
async def test_an_event_that_cannot_be_verified_does_not_stand_in_the_way_for_ever(
    clock_of_here: MovableClock, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")
    say(room, tea, "before")
    [lost] = say(room, tea, "nobody can verify this")
    say(room, tea, "after")
    await joined(alice, room)
    room.garble(lost, signatures={peer.name: {peer.keys[0].key_id: "A" * 86}})
    seen = []
    for _ in range(4):
        seen.append(await texts(alice, room))
        clock_of_here.advance(60_000)

    assert seen[0] == ["after"]
    assert seen[-1] == ["before", "after"]
    assert await ids(alice, room) == [event_id for event_id in room.events if event_id != lost.event_id]


# -- redactions


async def synced_topic(client: Client, room: PlayedRoom) -> Any:
    state = (await client.sync())["rooms"]["join"][room.room_id]["state"]["events"]
    return next(event["content"] for event in state if event["type"] == "m.room.topic")


@versions_of_each_form
async def test_redactions_hold_whenever_they_and_their_targets_come(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer, notary], version=version)
    tea, mug = user_of(peer, "tea"), user_of(notary, "mug")
    room.event(mug, "m.room.member", {"membership": "join"}, mug)
    old, new, kept = say(room, tea, "redacted then", "redacted later", "this one may not redact")
    topic = room.event(tea, "m.room.topic", {"topic": "redacted"}, "")
    own = say(room, mug, "redacted by its sender")[0]
    room.event(tea, "m.room.redaction", {"redacts": old.event_id, "reason": "then"})
    room.event(tea, "m.room.redaction", {"redacts": topic.event_id})
    room.event(mug, "m.room.redaction", {"redacts": kept.event_id})
    room.event(mug, "m.room.redaction", {"redacts": own.event_id})
    await joined(alice, room)
    await send(here, peer, [room.event(tea, "m.room.redaction", {"redacts": new.event_id})])
    assert await synced_topic(alice, room) == {"topic": "redacted"}  # nobody has told us so far
    found = {event["event_id"]: event for event in await history(alice, room)}
    assert await synced_topic(alice, room) == {}

    for event in (old, new, topic, own):
        assert found[event.event_id]["content"] == {}
    assert found[old.event_id]["unsigned"]["redacted_because"]["content"]["reason"] == "then"
    assert found[kept.event_id]["content"] == kept.content
    assert await state_of(alice, room, "m.room.topic") == {}


# -- where something was missed


async def bridged(here: RunningServer, peer: Peer, client: Client, room: PlayedRoom) -> Pdu:
    """The last event after a gap that is too long to be closed when it comes."""
    [last] = say(room, user_of(peer, "tea"), "after the gap")
    await send(here, peer, [last])
    async with asyncio.timeout(20):
        while (await client.get(room_path(room.room_id, "event", last.event_id))).status != 200:
            await asyncio.sleep(0.02)
    return last


@versions_of_each_form
async def test_a_gap_in_the_middle_is_filled(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea, zoe = user_of(peer, "tea"), user_of(peer, "zoe")
    say(room, tea, *numbered("before the join", 30))
    await joined(alice, room)
    await send(here, peer, say(room, tea, *numbered("heard", 5)))
    for number in range(260):
        if number % 20 == 7:
            room.event(tea, "m.room.topic", {"topic": f"{number}"}, "")
        else:
            say(room, tea, f"missed {number}")
    room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    await bridged(here, peer, alice, room)
    found = await ids(alice, room, 40)

    assert found == list(room.events)
    for event_id in room.events:
        told = await get(here, peer, state_uri(room.room_id, event_id, ids=True))
        assert set(told["pdu_ids"]) == set(room.before[event_id].values()), room.events[event_id].json


async def test_gaps_that_are_filled_hide_none_that_is_not(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_history, "MAX_GAPS", 1)
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, "before the join")
    await joined(alice, room)
    say(room, tea, *numbered("missed", 110))
    await bridged(here, peer, alice, room)

    assert "before the join" in await texts(alice, room)


async def test_what_came_is_not_noted_as_missing_any_more_whoever_names_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    [missed] = say(room, tea, "before")
    await joined(alice, room)
    fork = room.event(tea, "m.room.message", {"body": "a fork"}, prev=[missed.event_id])
    await send(here, peer, [fork])
    await until(lambda: is_shown(alice, room, fork))
    noted = """
        SELECT count(*) FROM missing_prev JOIN rooms ON nid = room_nid WHERE room_id = $1 AND event_id = $2
    """
    counts = []
    for _ in range(2):
        async with here.services.room_history.database.connection() as tx:
            counts.append(await tx.fetchval(noted, room.room_id, encode_event_id(missed.event_id)))
        found = await texts(alice, room)

    assert set(found) == {"before", "a fork"}
    assert counts == [2, 0]


async def test_history_before_the_gap_is_reached_where_nobody_fills_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    say(room, tea, "before")
    await joined(alice, room)
    await send(here, peer, say(room, tea, "heard"))
    missed = say(room, tea, *numbered("missed", 200))
    await bridged(here, peer, alice, room)
    room.answers["backfill"] = lambda asked: (
        error_answer(403, "M_FORBIDDEN") if asked.query["v"] in {event.event_id for event in missed} else None
    )
    found = await texts(alice, room)

    assert [text for text in found if not text.startswith("missed")] == ["before", "heard", "after the gap"]


@versions_of_each_form
async def test_what_happened_while_nobody_of_ours_was_in_the_room_is_filled_in(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")
    say(room, tea, *numbered("before", 5))
    await joined(alice, room)
    await send(here, peer, say(room, tea, *numbered("first stay", 5)))
    left = (await alice.post(room_path(room.room_id, "leave"), {})).status
    async with asyncio.timeout(20):
        while not any(pdu.membership == "leave" for pdu in room.sent_to(peer)):
            await asyncio.sleep(0.02)
    for number in range(150):
        if number % 20 == 7:
            room.event(tea, "m.room.topic", {"topic": f"{number}"}, "")
        else:
            say(room, tea, f"meanwhile {number}")
    await joined(alice, room)
    found = await ids(alice, room, 40)

    assert left == 200
    assert found == list(room.events)


async def test_a_server_that_starts_again_goes_on(
    database: Database, database_url: str, authority: Authority, peer: Peer, notary: Peer
) -> None:
    room = PlayedRoom.new([peer, notary])
    say(room, user_of(peer, "tea"), *numbered("tea", 260))
    settings = federation_settings(authority)
    async with running_server(database_url, federation=settings) as server:
        alice = await server.nobody.register(unique_name("alice"))
        await joined(alice, room)
        first = await page(alice, room, limit=130)
    async with running_server(database_url, federation=settings) as server:
        second = await page(server.nobody.as_user(alice), room, first["end"], limit=1000)
    found = [event["event_id"] for answer in (first, second) for event in answer["chunk"]]

    assert found == list(room.events)[::-1]


async def test_pages_begin_at_any_token_of_sync(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    say(room, user_of(peer, "tea"), *numbered("tea", 30))
    await joined(alice, room)
    answer = await alice.sync()
    timeline = answer["rooms"]["join"][room.room_id]["timeline"]
    found = [
        [event["event_id"] for event in (await page(alice, room, token, limit=100))["chunk"]]
        for token in (timeline["prev_batch"], answer["next_batch"])
    ]

    assert timeline["limited"]
    assert found == [list(room.events)[-2::-1], list(room.events)[::-1]]


async def test_two_processes_that_fetch_the_same_at_once_store_it_once(
    start_server: StartServer, peer: Peer, notary: Peer
) -> None:
    room = PlayedRoom.new([peer, notary])
    grow(room, [peer, notary], 200, 7)
    servers = [await start_server(), await start_server()]
    alice = await servers[0].nobody.register(unique_name("alice"))
    await joined(alice, room)
    clients = [server.nobody.as_user(alice) for server in servers]
    first, second = await asyncio.gather(*(ids(client, room, 30) for client in clients))

    assert len(set(first)) == len(first) and len(set(second)) == len(second)
    for client in clients:
        assert sorted(await ids(client, room)) == sorted(room.events)
