"""/event, /messages and /context."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from homeserver.services import timeline_reading
from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client
from tests.servers import RunningServer, unique_name


async def say(client: Client, room_id: str, *texts: str) -> list[str]:
    return [await client.say(room_id, text) for text in texts]


async def messages(client: Client, room_id: str, direction: str = "b", **query: Any) -> Any:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
    answer = await client.get(room_path(room_id, "messages"), {"dir": direction, **texts})
    assert answer.status == 200, answer.body
    return answer.body


async def pages(
    client: Client, room_id: str, direction: str, limit: int, start: str | None = None, **query: Any
) -> AsyncIterator[list[str]]:
    """The event IDs of each page until there is no next one; each page must make progress."""
    token, seen = start, set()
    while True:
        more = {} if token is None else {"from": token}
        page = await messages(client, room_id, direction, limit=limit, **more, **query)
        yield [event["event_id"] for event in page["chunk"]]
        if (token := page.get("end")) is None:
            return
        assert token not in seen
        seen.add(token)


async def all_events(client: Client, room_id: str, direction: str, limit: int, **query: Any) -> list[str]:
    found = pages(client, room_id, direction, limit, **query)
    return [event_id async for page in found for event_id in page]


async def context(client: Client, room_id: str, event_id: str, **query: Any) -> Any:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
    answer = await client.get(room_path(room_id, "context", event_id), texts)
    assert answer.status == 200, answer.body
    return answer.body


async def event(client: Client, room_id: str, event_id: str) -> Any:
    answer = await client.get(room_path(room_id, "event", event_id))
    assert answer.status == 200, answer.body
    return answer.body


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events]


async def test_one_event_is_shown_with_its_room_and_what_it_replaced(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, name="Tea")
    renamed = await set_state(alice, room_id, "m.room.name", {"name": "Coffee"})
    await join(bob, room_id)

    shown = await event(bob, room_id, renamed)

    assert (shown["room_id"], shown["event_id"], shown["content"]) == (room_id, renamed, {"name": "Coffee"})
    assert shown["unsigned"]["prev_content"] == {"name": "Tea"}
    assert shown["unsigned"]["replaces_state"].startswith("$")
    assert shown["unsigned"]["membership"] == "leave"


async def test_what_an_event_replaced_is_named_but_not_shown_to_who_may_not_see_it(
    alice: Client, bob: Client
) -> None:
    joined = [
        {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    ]
    room_id = await new_room(alice, name="Tea", initial_state=joined)
    await join(bob, room_id)
    renamed = await set_state(alice, room_id, "m.room.name", {"name": "Coffee"})

    unsigned = (await event(bob, room_id, renamed))["unsigned"]

    assert "prev_content" not in unsigned
    assert unsigned["replaces_state"].startswith("$")
    assert unsigned["membership"] == "join"


async def test_a_room_of_version_12_shows_its_create_event_with_the_room_id(alice: Client) -> None:
    room_id = await new_room(alice, room_version="12")
    [create] = (await messages(alice, room_id, "f", limit=1))["chunk"]
    assert (create["type"], create["room_id"]) == ("m.room.create", room_id)


async def test_an_event_that_is_not_there_or_of_another_room_is_not_found(alice: Client, bob: Client) -> None:
    tea, coffee = await new_room(alice), await new_room(alice)
    [in_coffee] = await say(alice, coffee, "hello")
    for client, room_id, event_id in (
        (alice, tea, in_coffee),
        (alice, tea, "$" + "A" * 43),
        (alice, tea, "$not a hash"),
        (alice, "!unknown:test", in_coffee),
        (bob, coffee, in_coffee),
    ):
        for what in ("event", "context"):
            answer = await client.get(room_path(room_id, what, event_id))
            assert answer.error == (404, "M_NOT_FOUND"), (room_id, event_id)


async def test_only_the_sending_device_sees_the_transaction_id(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    event_id = await alice.say(room_id, "hello", "my-own-id")
    other_device = await alice.log_in(alice)

    for client, expected in ((alice, "my-own-id"), (other_device, None), (bob, None)):
        assert (await event(client, room_id, event_id))["unsigned"].get("transaction_id") == expected
        [newest] = (await messages(client, room_id, limit=1))["chunk"]
        assert newest["unsigned"].get("transaction_id") == expected
        around = await context(client, room_id, event_id, limit=0)
        assert around["event"]["unsigned"].get("transaction_id") == expected


async def test_the_age_grows_with_the_clock(alice: Client, server: RunningServer) -> None:
    room_id = await new_room(alice)
    [event_id] = await say(alice, room_id, "hello")
    before = (await event(alice, room_id, event_id))["unsigned"]["age"]
    server.clock.advance(1234)
    assert (await event(alice, room_id, event_id))["unsigned"]["age"] == before + 1234


async def test_a_redacted_event_is_pruned_everywhere_and_says_why(alice: Client) -> None:
    room_id = await new_room(alice)
    [secret, last] = await say(alice, room_id, "secret", "last")
    redaction = await alice.in_room("PUT", room_id, f"redact/{secret}/1", {"reason": "oops"})

    page = await messages(alice, room_id, limit=10)
    around = await context(alice, room_id, last, limit=4)

    in_page = next(shown for shown in page["chunk"] if shown["event_id"] == secret)
    in_context = next(shown for shown in around["events_before"] if shown["event_id"] == secret)
    for shown in (await event(alice, room_id, secret), in_page, in_context):
        assert shown["content"] == {}
        because = shown["unsigned"]["redacted_because"]
        assert (because["event_id"], because["content"]["reason"]) == (redaction["event_id"], "oops")


async def test_who_left_before_a_redaction_sees_the_event_pruned_but_not_the_redaction(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    [secret] = await say(alice, room_id, "secret")
    await bob.in_room("POST", room_id, "leave")
    await alice.in_room("PUT", room_id, f"redact/{secret}/1", {"reason": "not for bob"})

    shown = await event(bob, room_id, secret)

    assert shown["content"] == {}
    assert "redacted_because" not in shown["unsigned"]


async def test_pages_backwards_and_forwards_give_every_event_once(alice: Client) -> None:
    room_id = await new_room(alice)
    sent = await say(alice, room_id, *(str(number) for number in range(23)))
    for limit in (1, 5, 23, 1000):
        forwards = await all_events(alice, room_id, "f", limit)
        backwards = await all_events(alice, room_id, "b", limit)
        assert forwards == backwards[::-1]
        assert forwards[-23:] == sent
        assert len(set(forwards)) == len(forwards)


async def test_the_limit_is_ten_by_default_and_has_an_upper_bound(alice: Client) -> None:
    room_id = await new_room(alice)
    await say(alice, room_id, *(str(number) for number in range(12)))
    assert len((await messages(alice, room_id))["chunk"]) == 10
    assert len((await messages(alice, room_id, limit=0))["chunk"]) == 1
    whole = await messages(alice, room_id, limit=10**15)
    assert len(whole["chunk"]) > 12
    assert "end" not in whole


async def test_a_page_has_no_end_exactly_when_nothing_is_left(alice: Client) -> None:
    room_id = await new_room(alice)
    total = len(await all_events(alice, room_id, "f", 1000))
    for direction in ("b", "f"):
        assert "end" not in await messages(alice, room_id, direction, limit=total)
        almost = await messages(alice, room_id, direction, limit=total - 1)
        rest = await messages(alice, room_id, direction, limit=10, **{"from": almost["end"]})
        assert len(rest["chunk"]) == 1
        assert "end" not in rest


async def test_pages_go_on_from_tokens_of_sync_and_stop_at_to(alice: Client) -> None:
    room_id = await new_room(alice)
    early = await say(alice, room_id, "1", "2", "3")
    limit = {"room": {"timeline": {"limit": 2}}}
    synced = await alice.sync(filter=limit)
    timeline = synced["rooms"]["join"][room_id]["timeline"]
    since = synced["next_batch"]
    late = await say(alice, room_id, "4", "5")

    before = await messages(alice, room_id, "b", limit=1, **{"from": timeline["prev_batch"]})
    after_batch = await messages(alice, room_id, "f", **{"from": since})
    upto_batch = await messages(alice, room_id, "b", limit=3, **{"from": since})
    between = await messages(alice, room_id, "b", limit=100, to=since)
    stopped = await messages(alice, room_id, "f", to=since, **{"from": timeline["prev_batch"]})

    assert ids(timeline["events"]) == early[1:]
    assert ids(before["chunk"]) == early[:1]
    assert ids(after_batch["chunk"]) == late
    assert ids(upto_batch["chunk"]) == early[::-1]
    assert ids(between["chunk"]) == late[::-1]
    assert ids(stopped["chunk"]) == early[1:]
    assert stopped["start"] == timeline["prev_batch"]


@pytest.mark.parametrize("parameter", ["from", "to"])
@pytest.mark.parametrize(
    "token",
    ["", "x", "t", "t1", "t1_", "t-1_0", "t1_0 ", "t9999999999999999999_0", "s1_2_otherdatabase", "٣"],
)
async def test_what_is_no_token_is_refused(alice: Client, parameter: str, token: str) -> None:
    room_id = await new_room(alice)
    answer = await alice.get(room_path(room_id, "messages"), {"dir": "b", parameter: token})
    assert answer.error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("token", ["t0_0", "t1_-999999999", "t999999999999999999_0", "t5_1", "t3_-7"])
async def test_any_well_formed_token_is_a_place_in_the_timeline(alice: Client, token: str) -> None:
    room_id = await new_room(alice)
    every = await all_events(alice, room_id, "f", 1000)
    after = await all_events(alice, room_id, "f", 1000, start=token)
    before = await all_events(alice, room_id, "b", 1000, start=token)
    assert before[::-1] + after == every


async def test_a_room_that_one_has_nothing_to_do_with_is_refused_even_without_a_direction(
    alice: Client, bob: Client
) -> None:
    room_id = await new_room(alice)
    for path in (room_path(room_id, "messages"), room_path("!unknown:test", "messages")):
        for query in ({}, {"dir": "b"}):
            assert (await bob.get(path, query)).error == (403, "M_FORBIDDEN")
    assert (await alice.get(room_path(room_id, "messages"))).error == (400, "M_MISSING_PARAM")
    assert (await alice.get(room_path(room_id, "messages"), {"dir": "x"})).error == (400, "M_INVALID_PARAM")


async def test_a_forgotten_room_is_refused_until_one_joins_again(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    [event_id] = await say(alice, room_id, "hello")
    await bob.in_room("POST", room_id, "leave")
    assert event_id in await all_events(bob, room_id, "b", 10)

    await bob.in_room("POST", room_id, "forget")
    assert (await bob.get(room_path(room_id, "messages"), {"dir": "b"})).error == (403, "M_FORBIDDEN")
    assert (await bob.get(room_path(room_id, "event", event_id))).error == (404, "M_NOT_FOUND")
    assert (await bob.get(room_path(room_id, "state"))).error == (403, "M_FORBIDDEN")

    await join(bob, room_id)
    assert event_id in await all_events(bob, room_id, "b", 10)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"types": ["m.room.message"]}, ["text", "link"]),
        ({"types": ["m.room.mess*", "m.reaction"]}, ["text", "link", "reaction"]),
        ({"types": ["m.*"], "not_types": ["m.room.*"]}, ["reaction"]),
        ({"types": []}, []),
        ({"contains_url": True}, ["link"]),
        ({"contains_url": False, "types": ["m.r*"], "not_types": ["m.room.[a-z]*"]}, None),
        ({"senders": ["@nobody:test"]}, []),
        ({"org.matrix.msc3874.rel_types": ["m.annotation"]}, ["reaction"]),
    ],
)
async def test_a_filter_chooses_events(
    alice: Client, wanted: dict[str, Any], expected: list[str] | None
) -> None:
    room_id = await new_room(alice)
    by_name = {}
    for name, event_type, content in (
        ("text", "m.room.message", {"body": "x"}),
        ("link", "m.room.message", {"body": "x", "url": "mxc://test/x"}),
        ("reaction", "m.reaction", {"m.relates_to": {"rel_type": "m.annotation"}}),
    ):
        sent = await alice.in_room("PUT", room_id, f"send/{event_type}/{name}", content)
        by_name[name] = sent["event_id"]

    for limit in (1, 100):
        found = await all_events(alice, room_id, "f", limit, filter=wanted)
        if expected is None:
            assert by_name["link"] not in found
            assert by_name["text"] in found
        else:
            assert found == [by_name[name] for name in expected]


async def test_a_filter_chooses_senders(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    [from_alice], [from_bob] = await say(alice, room_id, "hello"), await say(bob, room_id, "hi")
    only_bob = await messages(alice, room_id, limit=1, filter={"senders": [bob.user_id]})
    without_bob = await messages(alice, room_id, limit=1, filter={"not_senders": [bob.user_id]})
    assert ids(only_bob["chunk"]) == [from_bob]
    assert ids(without_bob["chunk"]) == [from_alice]


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"types": 1}', '{"senders": ["bob"]}', '{"limit": -1}'])
async def test_what_is_no_filter_is_refused(alice: Client, text: str) -> None:
    room_id = await new_room(alice)
    [event_id] = await say(alice, room_id, "hello")
    for path, query in (
        (room_path(room_id, "messages"), {"dir": "b", "filter": text}),
        (room_path(room_id, "context", event_id), {"filter": text}),
    ):
        assert (await alice.get(path, query)).error == (400, "M_INVALID_PARAM")


async def test_lazy_loading_gives_the_members_who_sent_what_is_shown(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    [by_alice, by_bob] = [*await say(alice, room_id, "hello"), *await say(bob, room_id, "hi")]
    lazy = {"lazy_load_members": True}

    page = await messages(alice, room_id, limit=1, filter=lazy)
    both = await messages(alice, room_id, limit=2, filter=lazy)
    nothing = await messages(alice, room_id, limit=2, filter={**lazy, "types": ["x"]})
    around = await context(alice, room_id, by_bob, limit=0, filter=lazy)

    assert ids(page["chunk"]) == [by_bob]
    assert [member["state_key"] for member in page["state"]] == [bob.user_id]
    assert {member["state_key"] for member in both["state"]} == {alice.user_id, bob.user_id}
    assert ids(both["chunk"]) == [by_bob, by_alice]
    assert not nothing.get("state")
    assert "state" not in await messages(alice, room_id)
    members = [state["state_key"] for state in around["state"] if state["type"] == "m.room.member"]
    assert members == [bob.user_id]
    assert {state["type"] for state in around["state"]} >= {"m.room.create", "m.room.join_rules"}
    assert all(state["room_id"] == room_id for state in around["state"])


@pytest.mark.invariant("SEC-PAGE-1")
async def test_sec_page_1_pages_of_a_filter_that_lets_nothing_through_end_after_bounded_steps(
    alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_reading, "MAX_ROWS", 40)
    room_id = await new_room(alice)
    await set_state(alice, room_id, "m.room.topic", {"topic": "rare"})
    await say(alice, room_id, *(str(number) for number in range(150)))
    every = await all_events(alice, room_id, "f", 1000)
    for direction in ("b", "f"):
        empty = [page async for page in pages(alice, room_id, direction, 10, filter={"types": ["none"]})]
        assert not any(empty)
        assert 1 < len(empty) <= len(every) // 40 + 2
        rare = [page async for page in pages(alice, room_id, direction, 10, filter={"types": ["*.topic"]})]
        assert sum(len(page) for page in rare) == 1
        assert [e async for page in pages(alice, room_id, direction, 7) for e in page] in (every, every[::-1])


@pytest.mark.invariant("SEC-PAGE-1")
async def test_sec_page_1_a_page_that_would_be_too_large_is_cut_and_goes_on(
    alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_reading, "MAX_BYTES", 1)
    monkeypatch.setattr(timeline_reading, "ROWS_AT_ONCE", 4)
    room_id = await new_room(alice)
    sent = await say(alice, room_id, *(str(number) for number in range(10)))
    for direction in ("b", "f"):
        found = [page async for page in pages(alice, room_id, direction, 100)]
        assert all(len(page) == 4 for page in found[:-1])
        in_order = [event_id for page in found for event_id in page]
        assert (in_order if direction == "f" else in_order[::-1])[-10:] == sent


@pytest.mark.invariant("SEC-PAGE-1")
async def test_sec_page_1_the_end_comes_at_the_wall_that_visibility_sets(alice: Client, bob: Client) -> None:
    joined = {"history_visibility": "joined"}
    hidden = [{"type": "m.room.history_visibility", "state_key": "", "content": joined}]
    room_id = await new_room(alice, initial_state=hidden)
    await say(alice, room_id, *(str(number) for number in range(30)))
    await join(bob, room_id)
    [hello] = await say(bob, room_id, "hello")
    await bob.in_room("POST", room_id, "leave")
    await say(alice, room_id, *(str(number) for number in range(30)))
    every = await all_events(alice, room_id, "f", 1000)
    stay = every.index(hello)
    for limit in (2, 3, 1000):
        backwards = [page async for page in pages(bob, room_id, "b", limit)]
        forwards = [page async for page in pages(bob, room_id, "f", limit)]
        shown = [event_id for page in forwards for event_id in page]
        assert shown == [event_id for page in backwards for event_id in page][::-1]
        assert shown[-3:] == every[stay - 1 : stay + 2]
        assert not set(shown) & set(every[stay - 31 : stay - 1])
        assert len(backwards) == len(forwards) == -(-len(shown) // limit)


async def test_context_brackets_exactly_so_that_paging_neither_skips_nor_repeats(alice: Client) -> None:
    room_id = await new_room(alice)
    sent = await say(alice, room_id, *(str(number) for number in range(9)))
    every = await all_events(alice, room_id, "f", 1000)
    for middle in (every[0], sent[4], sent[-1]):
        for limit in (0, 1, 2, 5, 100):
            around = await context(alice, room_id, middle, limit=limit)
            shown = [*ids(around["events_before"])[::-1], middle, *ids(around["events_after"])]
            before = await all_events(alice, room_id, "b", 4, start=around["start"])
            after = await all_events(alice, room_id, "f", 4, start=around["end"])
            assert around["event"]["event_id"] == middle
            assert len(shown) <= limit + 1
            assert before[::-1] + shown + after == every


async def test_context_has_ten_events_around_by_default_and_the_state_after_the_last(alice: Client) -> None:
    room_id = await new_room(alice)
    await set_state(alice, room_id, "m.room.topic", {"topic": "before"})
    sent = await say(alice, room_id, *(str(number) for number in range(6)))
    during = await set_state(alice, room_id, "m.room.topic", {"topic": "during"})
    later = await say(alice, room_id, *(str(number) for number in range(6)))
    await set_state(alice, room_id, "m.room.topic", {"topic": "after"})

    async def topic(event_id: str, limit: int) -> str:
        around = await context(alice, room_id, event_id, limit=limit)
        [found] = [state for state in around["state"] if state["type"] == "m.room.topic"]
        text: str = found["content"]["topic"]
        return text

    default = await context(alice, room_id, sent[5])

    assert (len(default["events_before"]), len(default["events_after"])) == (5, 5)
    assert await topic(sent[5], 0) == "before"
    assert await topic(sent[5], 1) == await topic(during, 0) == await topic(later[0], 1) == "during"
    assert await topic(later[-1], 2) == "after"


async def test_the_filter_of_a_context_leaves_the_event_itself_alone(alice: Client) -> None:
    room_id = await new_room(alice)
    topic = await set_state(alice, room_id, "m.room.topic", {"topic": "tea"})
    [event_id] = await say(alice, room_id, "hello")
    around = await context(alice, room_id, event_id, limit=10, filter={"types": ["m.room.topic"]})
    assert around["event"]["event_id"] == event_id
    assert (ids(around["events_before"]), around["events_after"]) == ([topic], [])
    assert ids(around["state"]) == [topic]


async def test_someone_invited_reads_from_the_invite_on_where_the_room_allows_it(
    alice: Client, bob: Client, server: RunningServer
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    invited = {"history_visibility": "invited"}
    open_to_invited = [{"type": "m.room.history_visibility", "state_key": "", "content": invited}]
    room_id = await new_room(alice, initial_state=open_to_invited)
    await say(alice, room_id, "before")
    await alice.in_room("POST", room_id, "invite", {"user_id": bob.user_id})
    [after] = await say(alice, room_id, "after")

    assert (await messages(bob, room_id))["chunk"][0]["event_id"] == after
    assert len(await all_events(bob, room_id, "b", 10)) == 2
    assert (await carol.get(room_path(room_id, "messages"), {"dir": "b"})).error == (403, "M_FORBIDDEN")
