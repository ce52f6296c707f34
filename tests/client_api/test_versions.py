"""Client-Server API, "API Versions", "Server Discovery"."""

from __future__ import annotations

import re

from tests.servers import RunningServer, StartServer

VERSIONS = "/_matrix/client/versions"
WELL_KNOWN = "/.well-known/matrix/client"


async def test_versions_are_listed_for_everyone(server: RunningServer) -> None:
    answer = await server.nobody.get(VERSIONS)
    with_bad_token = await server.nobody.with_token("tea").get(VERSIONS)

    assert answer.status == with_bad_token.status == 200
    assert answer.body["versions"] == [f"v1.{minor}" for minor in range(1, 20)]
    assert all(re.fullmatch(r"v\d+\.\d+|r\d+\.\d+\.\d+", version) for version in answer.body["versions"])
    assert all(type(value) is bool for value in answer.body["unstable_features"].values())


async def test_the_well_known_file_says_where_the_server_is(start_server: StartServer) -> None:
    server = await start_server(public_base_url="https://chat.example.org")
    answer = await server.nobody.get(WELL_KNOWN)

    assert (answer.status, answer.body) == (
        200,
        {"m.homeserver": {"base_url": "https://chat.example.org"}},
    )
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_without_a_public_url_there_is_no_well_known_file(server: RunningServer) -> None:
    assert (await server.nobody.get(WELL_KNOWN)).error == (404, "M_NOT_FOUND")
