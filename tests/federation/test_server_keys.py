"""The keys that we publish, our own and those of others, and what else everybody may ask a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from yarl import URL

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.signing import VerifyKey, decode_verify_key, verify_signed_json
from storage.database import Database
from tests.federation.peers import KEY_LIST, KEY_QUERY, Authority, Peer, json_answer, running_peer
from tests.servers import RunningServer, running_server

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def server(database: Database, database_url: str, authority: Authority) -> AsyncIterator[RunningServer]:
    federation = {
        "trusted_ca_files": [str(authority.file)],
        "allowed_ip_ranges": ["127.0.0.0/8", "::1/128"],
        "deny_servers": ["denied.test"],
        "well_known_server": "fed.test:443",
    }
    async with running_server(database_url, federation=federation) as server:
        yield server


@pytest.fixture(name="peer")
async def peer_of_the_server(authority: Authority, server: RunningServer) -> AsyncIterator[Peer]:
    async with running_peer(authority, server.clock) as peer:
        yield peer


def check_signature(response: dict[str, Any], server: RunningServer) -> None:
    """That our server signed a list of keys."""
    verify_signed_json(response, "test", server.services.server_keys.own.verify_keys, valid_at=server.clock())


@pytest.mark.parametrize("path", [KEY_LIST, f"{KEY_LIST}/ed25519:any"])
async def test_our_keys_are_published_in_canonical_json(server: RunningServer, path: str) -> None:
    async with server.http.get(server.url + path) as answer:
        content = await answer.read()
    response = orjson.loads(content)
    [(key_id, key)] = response["verify_keys"].items()
    keys = {key_id: VerifyKey(decode_verify_key(key["key"]), response["valid_until_ts"])}

    assert content == canonical_json(response)
    assert response["server_name"] == "test"
    assert response["valid_until_ts"] == server.clock() + DAY_MS
    assert set(response["signatures"]) == {"test"}
    verify_signed_json(response, "test", keys, valid_at=server.clock())
    assert answer.content_type == "application/json"
    assert "=" not in key["key"]


async def test_keys_need_no_signature_but_the_right_path_and_method(server: RunningServer) -> None:
    assert (await server.nobody.post(KEY_LIST)).error == (405, "M_UNRECOGNIZED")
    assert (await server.nobody.get("/_matrix/key/v2/unknown")).error == (404, "M_UNRECOGNIZED")
    assert (await server.nobody.get("/_matrix/key/v1")).error == (404, "M_UNRECOGNIZED")


async def test_version_and_delegation_are_told(server: RunningServer) -> None:
    version = await server.nobody.get("/_matrix/federation/v1/version")
    well_known = await server.nobody.get("/.well-known/matrix/server")

    assert version.status == 200
    assert version.body["server"]["name"] == "Lair Chat"
    assert version.body["server"]["version"]
    assert (well_known.status, well_known.body) == (200, {"m.server": "fed.test:443"})


async def test_without_delegation_there_is_no_well_known_file(database_url: str) -> None:
    async with running_server(database_url) as server:
        assert (await server.nobody.get("/.well-known/matrix/server")).error == (404, "M_NOT_FOUND")


async def test_a_notary_signs_what_a_server_says(server: RunningServer, peer: Peer) -> None:
    by_path = await server.nobody.get(f"{KEY_QUERY}/{peer.name}")
    by_key = await server.nobody.get(f"{KEY_QUERY}/{peer.name}/{peer.keys[0].key_id}")
    by_body = await server.nobody.post(KEY_QUERY, {"server_keys": {peer.name: {}}})
    [response] = by_path.body["server_keys"]

    assert by_path.body == by_key.body == by_body.body
    assert set(response["signatures"]) == {peer.name, "test"}
    check_signature(response, server)
    del response["signatures"]["test"]
    assert response == peer.response()
    assert peer.asked(KEY_LIST) == 1


async def test_a_notary_knows_its_own_keys(server: RunningServer) -> None:
    answer = await server.nobody.post(KEY_QUERY, {"server_keys": {"test": {"ed25519:x": {}}}})
    [response] = answer.body["server_keys"]

    assert (response["server_name"], set(response["signatures"])) == ("test", {"test"})
    check_signature(response, server)


@pytest.mark.parametrize("queried", [{}, []])
async def test_a_notary_that_is_asked_for_nothing_gives_nothing(server: RunningServer, queried: Any) -> None:
    answer = await server.nobody.post(KEY_QUERY, {"server_keys": queried})

    assert (answer.status, answer.body) == (200, {"server_keys": []})


async def test_a_notary_leaves_out_what_it_cannot_know(server: RunningServer, peer: Peer) -> None:
    unknown = ("127.0.0.1:1", "10.0.0.1", "no name", "denied.test", "")
    wanted = {name: dict[str, Any]() for name in (*unknown, peer.name)}
    answer = await server.nobody.post(KEY_QUERY, {"server_keys": wanted})
    by_path = await server.nobody.get(f"{KEY_QUERY}/127.0.0.1:1")

    assert [response["server_name"] for response in answer.body["server_keys"]] == [peer.name]
    assert (by_path.status, by_path.body) == (200, {"server_keys": []})


async def test_a_notary_asks_again_after_half_of_the_lifetime(server: RunningServer, peer: Peer) -> None:
    path = f"{KEY_QUERY}/{peer.name}"
    await server.nobody.get(path)
    server.clock.advance(1799_000)
    await server.nobody.get(path)
    within_half = peer.asked(KEY_LIST)
    server.clock.advance(1000)
    renewed = await server.nobody.get(path)

    assert (within_half, peer.asked(KEY_LIST)) == (1, 2)
    assert renewed.body["server_keys"][0]["valid_until_ts"] == server.clock() + 3600_000


async def test_a_notary_asks_again_for_a_longer_validity_but_not_all_the_time(
    server: RunningServer, peer: Peer
) -> None:
    await server.nobody.get(f"{KEY_QUERY}/{peer.name}")
    server.clock.advance(60_000)
    wanted = server.clock() + 3600_000
    path = f"{KEY_QUERY}/{peer.name}?minimum_valid_until_ts={wanted}"
    longer = await server.nobody.get(path)
    beyond = [
        await server.nobody.get(f"{KEY_QUERY}/{peer.name}?minimum_valid_until_ts={'9' * 17}")
        for _ in range(5)
    ]

    assert longer.body["server_keys"][0]["valid_until_ts"] >= wanted
    assert peer.asked(KEY_LIST) == 2
    assert all(answer.body == longer.body for answer in beyond)


async def test_a_notary_serves_the_last_good_answer_when_there_is_none_better(
    server: RunningServer, peer: Peer
) -> None:
    query = {"server_keys": {peer.name: {peer.keys[0].key_id: {"minimum_valid_until_ts": 5}}}}
    first = await server.nobody.post(KEY_QUERY, query)
    server.clock.advance(10 * DAY_MS)
    peer.answers[KEY_LIST] = lambda: json_answer({**peer.response(), "server_name": "evil.test"})
    spurious = await server.nobody.post(KEY_QUERY, query)
    server.clock.advance(DAY_MS)
    peer.answers[KEY_LIST] = lambda: json_answer({}, 503)
    offline = await server.nobody.post(KEY_QUERY, query)

    assert first.body["server_keys"]
    assert first.body == spurious.body == offline.body
    assert peer.asked(KEY_LIST) == 3


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"server_keys": 5}, "M_BAD_JSON"),
        ({"server_keys": {"tea.test": []}}, "M_BAD_JSON"),
        ({"server_keys": {"tea.test": {"ed25519:1": {"minimum_valid_until_ts": "5"}}}}, "M_BAD_JSON"),
        ({"server_keys": {f"tea{number}.test": {} for number in range(201)}}, "M_INVALID_PARAM"),
        (
            {"server_keys": {"tea.test": {f"ed25519:{number}": {} for number in range(2001)}}},
            "M_INVALID_PARAM",
        ),
        ([], "M_BAD_JSON"),
        (b"tea", "M_NOT_JSON"),
    ],
)
async def test_other_queries_are_refused(server: RunningServer, body: Any, errcode: str) -> None:
    assert (await server.nobody.post(KEY_QUERY, body)).error == (400, errcode)


@pytest.mark.parametrize(
    "path", ["no%20name", "tea.test?minimum_valid_until_ts=x", "tea.test?minimum_valid_until_ts=-1"]
)
async def test_other_paths_are_refused(server: RunningServer, path: str) -> None:
    url = URL(f"{server.url}{KEY_QUERY}/{path}", encoded=True)
    async with server.http.get(url) as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (400, "M_INVALID_PARAM")
