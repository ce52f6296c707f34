from __future__ import annotations

import logging

import pytest

from tests.http.conftest import Ask
from tests.http.tea_house import TeaHouse

ERROR = "/_matrix/client/v3/error"


async def test_an_error_has_status_errcode_text_and_further_keys(ask: Ask) -> None:
    answer = await ask("GET", f"{ERROR}/forbidden")

    assert answer.status == 403
    assert answer.body == {"errcode": "M_FORBIDDEN", "error": "not in this house", "detail": 7}


async def test_a_limit_says_when_to_come_again_in_whole_seconds_rounded_up(ask: Ask) -> None:
    answer = await ask("GET", f"{ERROR}/limited")

    assert answer.error == (429, "M_LIMIT_EXCEEDED")
    assert answer.headers["Retry-After"] == "2"
    assert answer.body["retry_after_ms"] == 1001


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("no-json", (400, "M_NOT_JSON")),
        ("bad-json", (400, "M_BAD_JSON")),
        ("identifier", (400, "M_INVALID_PARAM")),
        ("version", (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ("large", (413, "M_TOO_LARGE")),
        ("event", (400, "M_BAD_JSON")),
        ("signature", (401, "M_UNAUTHORIZED")),
        ("content", (400, "M_BAD_JSON")),
        ("not-allowed", (403, "M_FORBIDDEN")),
        ("missing", (500, "M_UNKNOWN")),
        ("bug", (500, "M_UNKNOWN")),
    ],
)
async def test_what_escapes_a_handler_becomes_a_standard_error(
    ask: Ask, kind: str, error: tuple[int, str]
) -> None:
    assert (await ask("GET", f"{ERROR}/{kind}")).error == error


async def test_a_bug_is_logged_once_and_told_by_its_request_only(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask("GET", f"{ERROR}/bug?access_token=hidden")
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]

    assert answer.headers["X-Request-ID"] in answer.body["error"]
    assert b"secret recipe" not in answer.content
    assert len(logged) == 1
    assert logged[0].exc_info is not None
    assert str(logged[0].exc_info[1]) == "the secret recipe"
    assert "hidden" not in caplog.text


async def test_every_request_has_an_id_of_its_own(ask: Ask) -> None:
    answers = [await ask("GET", "/_matrix/client/v3/whoami") for _ in range(2)]
    ids = [answer.headers["X-Request-ID"] for answer in answers]

    assert [answer.body["request_id"] for answer in answers] == ids
    assert len(set(ids)) == 2


@pytest.mark.invariant("SEC-WEB-1")
async def test_sec_web_1_the_access_log_has_no_query(
    ask: Ask, house: TeaHouse, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await ask("GET", "/_matrix/client/v3/messages?access_token=hidden&limit=3")
        await ask("GET", "/nowhere?loginToken=hidden")
        await ask("GET", "/_matrix/client/v3/messages?limit=hidden")
    lines = [record.getMessage() for record in caplog.records if record.name == "homeserver.http.access"]

    assert lines[0].startswith("127.0.0.1 GET /_matrix/client/v3/messages 200 ")
    assert lines[1].startswith("127.0.0.1 GET /nowhere 404 ")
    assert "hidden" not in caplog.text
    assert b"hidden" not in house.metrics.text()


async def test_requests_are_counted_by_route_and_status(ask: Ask, house: TeaHouse) -> None:
    await ask("GET", "/_matrix/client/v3/rooms/!counted:test/event/$a")
    await ask("GET", "/_matrix/client/v3/rooms/counted/event/$a")
    await ask("PROPFIND", "/counted")
    metrics = (await ask("GET", "/metrics")).content.decode()

    route = 'route="/_matrix/client/v3/rooms/{roomId}/event/{eventId}"'
    assert f'lair_http_requests_total{{method="GET",{route},status="200"}}' in metrics
    assert f'lair_http_requests_total{{method="GET",{route},status="400"}}' in metrics
    assert 'lair_http_requests_total{method="other",route="(none)",status="404"}' in metrics
    assert f'lair_http_request_seconds_bucket{{le="+Inf",method="GET",{route}}}' in metrics
    assert "counted" not in metrics
