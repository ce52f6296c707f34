from __future__ import annotations

import pytest

from tests.http.conftest import Ask
from tests.http.tea_house import TeaHouse

PATHS = [
    "/_matrix/client/versions",
    "/_matrix/client/v3/order",
    "/_matrix/client/v3/rooms/!tea:test/send/m.room.message/1",
    "/_matrix/unknown",
    "/_matrix/client/v3/download",
    "/_matrix/client/v3/error/bug",
    "/_matrix/client/v3/error/limited",
    "/_matrix/client/v3/directory/room/%zz",
    "/health/ready",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
async def test_every_response_of_an_api_may_be_read_by_web_clients(ask: Ask, method: str, path: str) -> None:
    headers = (await ask(method, path)).headers

    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Access-Control-Allow-Methods"] == "GET, POST, PUT, DELETE, OPTIONS"
    assert headers["Access-Control-Allow-Headers"] == "X-Requested-With, Content-Type, Authorization"


async def test_options_answers_everywhere_and_runs_no_handler(ask: Ask, house: TeaHouse) -> None:
    calls = len(house.services.calls)
    answers = [await ask("OPTIONS", path) for path in PATHS]

    assert {answer.status for answer in answers} == {204}
    assert {answer.content for answer in answers} == {b""}
    assert len(house.services.calls) == calls


async def test_pages_are_for_their_own_site(ask: Ask) -> None:
    page = await ask("GET", "/")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Access-Control-Allow-Origin" not in page.headers


@pytest.mark.parametrize("path", ["/", "/_matrix/client/versions", "/_matrix/client/v3/download", "/unknown"])
async def test_the_software_does_not_introduce_itself(ask: Ask, path: str) -> None:
    answer = await ask("GET", path)

    assert "Server" not in answer.headers
    assert "Date" in answer.headers
