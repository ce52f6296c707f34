"""Client-Server API, "Filtering"."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver.services.filters import MAX_FILTERS
from tests.clients import Client
from tests.servers import RunningServer

FILTER = {"room": {"timeline": {"limit": 10, "types": ["m.room.message"]}}, "org.example.tea": 1.5}


def filters(user_id: str, *filter_id: str) -> str:
    return "/".join([f"/_matrix/client/v3/user/{quote(user_id)}/filter", *filter_id])


async def save(client: Client, content: dict[str, Any]) -> str:
    answer = await client.post(filters(client.user_id), content)
    assert answer.status == 200, answer.body
    filter_id: str = answer.body["filter_id"]
    return filter_id


async def test_a_saved_filter_can_be_read_again(alice: Client) -> None:
    answer = await alice.get(filters(alice.user_id, await save(alice, FILTER)))

    assert (answer.status, answer.body) == (200, FILTER)


async def test_the_same_filter_has_the_same_id(alice: Client, bob: Client) -> None:
    first = await save(alice, FILTER)

    assert await save(alice, dict(reversed(FILTER.items()))) == first
    assert await save(alice, {}) != first
    assert not first.startswith("{")
    assert (await bob.get(filters(bob.user_id, first))).error == (404, "M_NOT_FOUND")


async def test_an_unknown_filter_is_not_found(alice: Client) -> None:
    assert (await alice.get(filters(alice.user_id, "0"))).error == (404, "M_NOT_FOUND")


async def test_filters_are_their_users_own(server: RunningServer, alice: Client, bob: Client) -> None:
    filter_id = await save(alice, FILTER)

    assert (await bob.post(filters(alice.user_id), FILTER)).error == (403, "M_FORBIDDEN")
    assert (await bob.get(filters(alice.user_id, filter_id))).error == (403, "M_FORBIDDEN")
    assert (await server.nobody.post(filters(alice.user_id), FILTER)).error == (401, "M_MISSING_TOKEN")


@pytest.mark.parametrize(
    "content",
    [
        {"room": "tea"},
        {"room": {"timeline": {"types": "m.room.message"}}},
        {"room": {"timeline": {"types": [1]}}},
        {"room": {"rooms": ["tea"]}},
        {"room": {"state": {"senders": ["alice"]}}},
        {"event_fields": {}},
        {"event_format": "tea"},
        {"presence": {"limit": True}},
        [],
    ],
)
async def test_what_is_no_filter_is_refused(alice: Client, content: Any) -> None:
    assert (await alice.post(filters(alice.user_id), content)).error == (400, "M_BAD_JSON")


async def test_a_filter_has_a_size_limit(alice: Client) -> None:
    answer = await alice.post(filters(alice.user_id), {"org.example.tea": "x" * 65536})

    assert answer.error == (413, "M_TOO_LARGE")


async def test_the_oldest_filter_makes_room_for_a_new_one(server: RunningServer, alice: Client) -> None:
    ids = []
    for number in range(MAX_FILTERS):
        server.clock.advance(1)
        ids.append(await save(alice, {"org.example.number": number}))
    server.clock.advance(1)
    assert await save(alice, {"org.example.number": 0}) == ids[0]

    newest = await save(alice, FILTER)

    for filter_id in (ids[0], ids[2], newest):
        assert (await alice.get(filters(alice.user_id, filter_id))).status == 200
    assert (await alice.get(filters(alice.user_id, ids[1]))).error == (404, "M_NOT_FOUND")


async def test_a_saved_filter_is_found_for_use(server: RunningServer, alice: Client) -> None:
    assert alice.access_token is not None
    requester = await server.services.access_tokens.authenticate(alice.access_token)
    filter_id = await save(alice, FILTER)

    found = await server.services.filters.find(requester, filter_id)

    assert found is not None
    assert found.room.timeline.limit == 10
    assert await server.services.filters.find(requester, filter_id) is found
    assert await server.services.filters.find(requester, "0") is None
