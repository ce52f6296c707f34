from __future__ import annotations

from typing import Any

import pytest

from homeserver.http.application import routes
from homeserver.http.endpoints import Endpoints
from homeserver.http.models import Path, Reply
from tests.http.conftest import Ask
from tests.http.tea_house import Guest, TeaHouse, TeaServices, by_token, endpoints

ALICE = {"Authorization": "Bearer alice"}
SEND = "/_matrix/client/v3/rooms/!tea:test/send/m.room.message"
ORDER = "/_matrix/client/v3/order"
MESSAGES = "/_matrix/client/v3/messages"


async def test_a_handler_gets_what_its_annotations_ask_for(ask: Ask) -> None:
    answer = await ask("PUT", f"{SEND}/1", {"body": "tea?"}, headers=ALICE)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body == {"event_id": "@alice:test !tea:test m.room.message 1 {'body': 'tea?'}"}


async def test_an_argument_of_another_type_comes_from_its_provider(ask: Ask) -> None:
    assert (await ask("GET", "/_matrix/client/versions")).body["weather"] == "rain"


async def test_a_requester_who_may_be_none_is_known_when_there_is_a_token(ask: Ask) -> None:
    path = "/_matrix/client/versions"

    assert (await ask("GET", path)).body["user_id"] is None
    assert (await ask("GET", path, headers=ALICE)).body["user_id"] == "@alice:test"
    assert (await ask("GET", path, headers={"Authorization": "Bearer stale"})).error == (
        401,
        "M_UNKNOWN_TOKEN",
    )


async def test_without_a_token_nothing_else_is_looked_at(ask: Ask, house: TeaHouse) -> None:
    calls = len(house.services.calls)

    assert (await ask("PUT", f"{SEND}/1", b"no json")).error == (401, "M_MISSING_TOKEN")
    assert (await ask("PUT", "/_matrix/client/v3/rooms/tea/send/m.x/1", {})).error == (401, "M_MISSING_TOKEN")
    assert len(house.services.calls) == calls


async def test_old_prefixes_serve_the_same(ask: Ask) -> None:
    old = await ask("PUT", f"{SEND.replace('v3', 'r0')}/1", {}, headers=ALICE)

    assert old.status == 200


async def test_a_reply_leaves_out_what_is_none(ask: Ask) -> None:
    assert list((await ask("PUT", f"{SEND}/1", {}, headers=ALICE)).body) == ["event_id"]
    assert (await ask("POST", "/_matrix/client/v3/logout", headers=ALICE)).content == b"{}"


async def test_a_raw_reply_has_the_bytes_status_and_headers_it_says(ask: Ask) -> None:
    answer = await ask("GET", "/_matrix/client/v3/raw")

    assert (answer.status, answer.content, answer.headers["ETag"]) == (201, b"[1]", '"1"')
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", (400, "M_NOT_JSON")),
        (b"{", (400, "M_NOT_JSON")),
        (b'{"user_id": "\xff"}', (400, "M_NOT_JSON")),
        (b'{"amount": NaN}', (400, "M_NOT_JSON")),
        (b"[]", (400, "M_BAD_JSON")),
        (b"null", (400, "M_BAD_JSON")),
        (b'{"amount": 1, "amount": 2}', (400, "M_BAD_JSON")),
        (b'{"user_id": "\\ud800", "amount": 1}', (400, "M_BAD_JSON")),
        ({"amount": 1}, (400, "M_MISSING_PARAM")),
        ({"user_id": "@a:b", "amount": True}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": "1"}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": 1.5}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": 1, "hot": 1}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": 1, "cups": {}}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": 1, "cups": [1]}, (400, "M_BAD_JSON")),
        ({"user_id": "@a:b", "amount": 1, "cups": [{}]}, (400, "M_MISSING_PARAM")),
        ({"user_id": 7, "amount": 1}, (400, "M_BAD_JSON")),
        ({"user_id": "alice", "amount": 1}, (400, "M_INVALID_PARAM")),
        ({"user_id": "@a:b", "amount": 1, "kind": "red"}, (400, "M_INVALID_PARAM")),
        ({"user_id": "@a:b", "amount": 1, "from": "a\0b"}, (400, "M_INVALID_PARAM")),
        ({"user_id": "@a:b", "amount": 1, "other": {"a": ["\0"]}}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_a_wrong_body_has_the_error_of_the_standard(
    ask: Ask, content: Any, error: tuple[int, str]
) -> None:
    assert (await ask("POST", ORDER, content)).error == error


async def test_a_body_needs_no_content_type_and_may_have_unknown_keys(ask: Ask) -> None:
    body = {"user_id": "@a:b", "amount": 1, "from": "\\u0000", "else": None}
    answer = await ask("POST", ORDER, body)

    assert answer.status == 200
    assert answer.body["from_"] == "\\u0000"


async def test_an_error_names_the_field_and_not_the_value(ask: Ask) -> None:
    wrong = {"user_id": "my password", "amount": 1}
    nested = {"user_id": "@a:b", "amount": 1, "cups": [{"colour": "red"}, {"colour": 1}]}

    assert (await ask("POST", ORDER, wrong)).body["error"] == "user_id: not a valid user ID"
    assert (await ask("POST", ORDER, nested)).body["error"].startswith("cups.1.colour: ")


async def test_an_empty_body_is_an_empty_object_where_all_is_optional(ask: Ask) -> None:
    assert (await ask("POST", "/_matrix/client/v3/leave")).body == {"reason": None}
    assert (await ask("POST", "/_matrix/client/v3/leave", {"reason": "late"})).body == {"reason": "late"}
    assert (await ask("POST", "/_matrix/client/v3/leave", b"x")).error == (400, "M_NOT_JSON")
    assert (await ask("POST", "/_matrix/client/v3/forget")).body == {"body": {}}


@pytest.mark.parametrize("value", ["-1", "1.5", "1.0", "ten", "", "true", "%2B1", "1_0", "%201"])
async def test_a_limit_is_a_number_that_is_not_negative(ask: Ask, value: str) -> None:
    assert (await ask("GET", f"{MESSAGES}?limit={value}")).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    "query", ["dir=up", "full_state=1", "full_state=yes", "from=%00", "from=%ff", "x=%ff"]
)
async def test_a_wrong_query_parameter_is_refused(ask: Ask, query: str) -> None:
    assert (await ask("GET", f"{MESSAGES}?{query}")).error == (400, "M_INVALID_PARAM")


async def test_query_parameters_become_what_the_fields_are(ask: Ask) -> None:
    query = "from=t%20a+b&limit=3&limit=4&dir=f&full_state=true&via=a&via=b&access_token=x"

    assert (await ask("GET", f"{MESSAGES}?{query}")).body == {
        "from_": "t a b",
        "limit": 3,
        "dir": "f",
        "full_state": True,
        "via": ["a", "b"],
    }


async def test_a_query_has_a_limited_number_of_parameters(ask: Ask) -> None:
    assert (await ask("GET", f"{MESSAGES}?{'via=a&' * 500}")).error == (400, "M_INVALID_PARAM")


def test_every_method_and_path_is_listed_with_its_handler() -> None:
    table = {(route.method, route.path): route.handler for route in routes([endpoints])}

    assert table["PUT", "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}"] == "send"
    assert table["PUT", "/_matrix/client/r0/rooms/{roomId}/send/{eventType}/{txnId}"] == "send"
    assert table["GET", "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/"] == "get_state"


class TeaPath(Path):
    room_id: str


async def needs_no_requester(services: TeaServices) -> Reply:
    return Reply()


async def needs_a_requester(requester: Guest) -> Reply:
    return Reply()


async def needs_a_path(requester: Guest, path: TeaPath) -> Reply:
    return Reply()


async def needs_the_impossible(requester: Guest, luck: int) -> Reply:
    return Reply()


@pytest.mark.parametrize(
    ("handler", "path", "public"),
    [
        (needs_no_requester, "/a", False),
        (needs_a_requester, "/a", True),
        (needs_a_path, "/a", False),
        (needs_a_path, "/{other}", False),
        (needs_a_requester, "/{roomId}", False),
        (needs_the_impossible, "/a", False),
    ],
)
def test_a_handler_that_no_request_can_call_is_refused(handler: Any, path: str, public: bool) -> None:
    with pytest.raises(TypeError):
        Endpoints(TeaServices, by_token).add("GET", path, handler, public=public)
