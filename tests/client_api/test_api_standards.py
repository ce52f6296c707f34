"""Client-Server API, section "API Standards"."""

from __future__ import annotations

import pytest

from tests.clients import Client

V3 = "/_matrix/client/v3"


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix",
        "/_matrix/unknown",
        "/_matrix/client/unknown",
        "/_matrix/client/v1/unknown",
        "/_matrix/media/v3/unknown",
        "/_matrix/key/unknown",
        f"{V3}/",
        f"{V3}/rooms",
        f"{V3}/rooms/!a:test/unknown",
        f"{V3}/rooms//state",
        f"{V3}/rooms/!a:test/state//key",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_an_endpoint_that_does_not_exist_is_404(alice: Client, method: str, path: str) -> None:
    assert (await alice.send(method, path, {})).error == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"{V3}/login"),
        ("PATCH", f"{V3}/register"),
        ("GET", f"{V3}/createRoom"),
        ("DELETE", f"{V3}/logout"),
        ("POST", f"{V3}/rooms/!a:test/state/m.room.name"),
        ("POST", f"{V3}/rooms/!a:test/send/m.room.message/1"),
        ("GET", f"{V3}/rooms/!a:test/join"),
    ],
)
async def test_an_endpoint_has_its_methods_only(alice: Client, method: str, path: str) -> None:
    answer = await alice.send(method, path, {})

    assert answer.error == (405, "M_UNRECOGNIZED")
    assert answer.headers["Allow"]


async def test_a_browser_may_read_every_answer(alice: Client) -> None:
    answers = [
        await alice.get(f"{V3}/account/whoami"),
        await alice.with_token(None).get(f"{V3}/account/whoami"),
        await alice.get(f"{V3}/unknown"),
        await alice.get(f"{V3}/logout"),
        await alice.with_token(None).send("OPTIONS", f"{V3}/unknown"),
    ]

    assert [answer.status for answer in answers] == [200, 401, 404, 405, 204]
    assert {answer.headers["Access-Control-Allow-Origin"] for answer in answers} == {"*"}
