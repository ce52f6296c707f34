"""Requests to other servers: how they are signed, what comes of them, and who is left alone for a while."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from aiohttp import web

from federation.outbound import requests
from federation.outbound.signed_client import (
    BackingOff,
    DestinationDenied,
    FederationError,
    InvalidResponse,
    RequestRefused,
    Unreachable,
    uri_of,
)
from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import credentials_of, exact_content, signed_request
from homeserver.protocol.signing import VerifyKey, verify_signed_json
from homeserver.services.destinations import FORGOTTEN_AFTER_MS, LONGEST_WAIT_MS, MAX_FAILING
from storage import destinations as stored_destinations
from storage.database import Database
from tests.federation.peers import KEY_LIST, Authority, OurSide, Peer, json_answer, our_side
from tests.servers import MovableClock

TEA = "/_matrix/federation/v1/tea"


def answer(peer: Peer, content: Any, status: int = 200, **headers: str) -> None:
    """Let a peer answer requests for tea."""
    peer.answers[TEA] = lambda: json_answer(content, status, **headers)


@pytest.mark.parametrize("content", [None, {}, {"b": ["é", 1, None], "a": {"€": True}}])
async def test_a_request_carries_a_signature_over_all_of_it(
    ours: OurSide, peer: Peer, content: dict[str, Any] | None
) -> None:
    uri = f"{TEA}/%2F%c3%A9?x=%20+"
    peer.answers[f"{TEA}//é"] = lambda: json_answer({"tea": "green"})
    result = await ours.client.send("PUT", peer.name, uri, content)
    [received] = peer.server.received
    credentials = credentials_of([received.headers["Authorization"]])
    signed = signed_request(credentials, peer.name, received.method, received.target)
    if received.body:
        signed["content"] = exact_content(received.body)
    keys = {ours.key.key_id: VerifyKey(ours.key.public_key, MAX_INTEGER)}

    assert result == {"tea": "green"}
    assert (received.method, received.target) == ("PUT", uri)
    assert received.headers["Host"] == peer.name
    assert received.body == (b"" if content is None else canonical_json(content))
    assert received.headers.get("Content-Type") == (None if content is None else "application/json")
    assert (credentials[0].origin, credentials[0].destination) == (ours.name, peer.name)
    verify_signed_json(signed, ours.name, keys, valid_at=0)


def test_path_segments_and_query_are_percent_encoded() -> None:
    assert uri_of("/_matrix/x", "$a/+b:c", "é ?#", query={"v": ["1", "2&"], "w": "a b"}) == (
        "/_matrix/x/%24a%2F%2Bb%3Ac/%C3%A9%20%3F%23?v=1&v=2%26&w=a%20b"
    )
    assert uri_of("/_matrix/x") == "/_matrix/x"


async def test_an_error_of_the_server_is_told_with_its_code(ours: OurSide, peer: Peer) -> None:
    answer(peer, {"errcode": "M_FORBIDDEN", "error": "no\ntea" + "!" * 1000}, 403)
    with pytest.raises(RequestRefused) as caught:
        await ours.client.send("GET", peer.name, TEA)
    peer.answers[TEA] = lambda: web.Response(status=404, text="<h1>no tea</h1>")
    with pytest.raises(RequestRefused) as without_code:
        await ours.client.send("GET", peer.name, TEA)

    assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")
    assert caught.value.error.startswith("no?tea!")
    assert len(caught.value.error) == 300
    assert (without_code.value.status, without_code.value.errcode) == (404, "")
    assert ours.destinations.retry_ts(peer.name) is None


@pytest.mark.parametrize("body", [b"", b"tea", b"[]", b'{"a":1,"a":1}', b'{"a":"\\ud800"}', b"[" * 100])
async def test_a_response_that_is_no_json_object_is_none(ours: OurSide, peer: Peer, body: bytes) -> None:
    peer.answers[TEA] = lambda: web.Response(body=body)
    with pytest.raises(InvalidResponse):
        await ours.client.send("GET", peer.name, TEA)
    assert ours.destinations.retry_ts(peer.name) is not None


async def test_a_large_response_is_read_up_to_the_limit(ours: OurSide, peer: Peer) -> None:
    content = {"tea": ["x" * 1000] * 700}
    answer(peer, content)

    assert await ours.client.send("GET", peer.name, TEA) == content
    with pytest.raises(Unreachable):
        await ours.client.send("GET", peer.name, TEA, max_response_bytes=500_000)


async def test_redirects_are_not_followed(ours: OurSide, peer: Peer) -> None:
    answer(peer, {}, 302, Location=f"https://{peer.name}{KEY_LIST}")
    with pytest.raises(RequestRefused):
        await ours.client.send("GET", peer.name, TEA)
    assert peer.asked(KEY_LIST) == 0


async def test_a_response_has_to_come_in_time(ours: OurSide, peer: Peer) -> None:
    peer.answers[TEA] = lambda: asyncio.Event().wait()  # type: ignore[assignment,return-value]
    with pytest.raises(Unreachable):
        await ours.client.send("GET", peer.name, TEA, timeout_s=0.1)


@pytest.mark.parametrize("name", ["127.0.0.1:1", "127.0.0.1:0", "no name", "10.0.0.1", "unknown.test:8448"])
async def test_a_server_that_is_not_there_is_unreachable(ours: OurSide, name: str) -> None:
    with pytest.raises(Unreachable):
        await ours.client.send("GET", ServerName(name), TEA, ignore_back_off=True)


async def test_we_do_not_talk_to_denied_servers_nor_to_ourselves(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer
) -> None:
    host = peer.name.partition(":")[0]
    async with our_side(database, authority, clock, denied=[host]) as ours:
        for name in (peer.name, ours.name):
            with pytest.raises(DestinationDenied):
                await ours.client.send("GET", name, TEA)
            with pytest.raises(DestinationDenied):
                await ours.client.send_unsigned("GET", name, TEA)
    assert peer.server.received == []


async def test_a_server_that_fails_is_left_alone_ever_longer(ours: OurSide, peer: Peer) -> None:
    answer(peer, {}, 502)
    waits_s = []
    for failures in range(1, 15):
        with pytest.raises(RequestRefused):
            await ours.client.send("GET", peer.name, TEA)
        with pytest.raises(BackingOff) as caught:
            await ours.client.send("GET", peer.name, TEA)
        waits_s.append((caught.value.retry_ts - ours.clock()) / 1000)
        assert peer.asked(TEA) == failures
        ours.clock.now = caught.value.retry_ts

    assert all(2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits_s[:11]))
    assert waits_s[-2:] == [LONGEST_WAIT_MS / 1000] * 2


async def test_requests_that_fail_at_once_count_once(ours: OurSide, peer: Peer) -> None:
    answer(peer, {}, 500)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(_failing(ours, peer))
    retry_ts = ours.destinations.retry_ts(peer.name)

    assert retry_ts is not None
    assert retry_ts - ours.clock() <= 1250


async def _failing(ours: OurSide, peer: Peer) -> None:
    with pytest.raises(FederationError):
        await ours.client.send("GET", peer.name, TEA)


@pytest.mark.parametrize(
    ("status", "fails"), [(401, True), (429, True), (500, True), (400, False), (403, False)]
)
async def test_some_errors_are_failures_of_the_server(
    ours: OurSide, peer: Peer, status: int, fails: bool
) -> None:
    answer(peer, {}, status)
    with pytest.raises(RequestRefused):
        await ours.client.send("GET", peer.name, TEA)

    assert (ours.destinations.retry_ts(peer.name) is not None) == fails


@pytest.mark.parametrize(
    ("retry_after", "wait_ms"),
    [
        ("100", 100_000),
        (formatdate(1_700_000_100, usegmt=True), 100_000),
        ("999999999999", LONGEST_WAIT_MS),
        ("-5", 1000),
        ("tea", 1000),
        ("", 1000),
    ],
)
async def test_a_server_says_how_long_to_leave_it_alone(
    ours: OurSide, peer: Peer, retry_after: str, wait_ms: int
) -> None:
    answer(peer, {}, 429, **{"Retry-After": retry_after})
    with pytest.raises(RequestRefused):
        await ours.client.send("GET", peer.name, TEA)
    retry_ts = ours.destinations.retry_ts(peer.name)

    assert retry_ts is not None
    assert wait_ms <= retry_ts - ours.clock() <= max(wait_ms, 1250)


async def test_an_answer_ends_the_wait(ours: OurSide, peer: Peer) -> None:
    await ours.destinations.failed(peer.name, 0)
    answer(peer, {"tea": "green"})
    result = await ours.client.send("GET", peer.name, TEA, ignore_back_off=True)

    assert result == {"tea": "green"}
    assert ours.destinations.retry_ts(peer.name) is None
    assert await ours.client.send("GET", peer.name, TEA) == result


async def test_failures_are_remembered_over_a_restart(
    ours: OurSide, database: Database, authority: Authority, peer: Peer
) -> None:
    await ours.destinations.failed(peer.name, 50_000)
    async with our_side(database, authority, ours.clock) as restarted:
        with pytest.raises(BackingOff):
            await restarted.client.send("GET", peer.name, TEA)
        await restarted.destinations.succeeded(peer.name)
    async with our_side(database, authority, ours.clock) as again:
        assert again.destinations.retry_ts(peer.name) is None


async def test_servers_that_nobody_asks_are_forgotten(ours: OurSide, database: Database, peer: Peer) -> None:
    await ours.destinations.failed(peer.name, 0)
    ours.clock.advance(FORGOTTEN_AFTER_MS + 1250)
    await ours.destinations.sweep()
    async with database.connection() as tx:
        stored = await stored_destinations.load(tx, MAX_FAILING)

    assert peer.name not in ours.destinations.failing()
    assert peer.name not in stored


async def test_keys_and_version_are_asked_for_without_a_signature(ours: OurSide, peer: Peer) -> None:
    await ours.destinations.failed(peer.name, 0)
    version = "/_matrix/federation/v1/version"
    peer.answers[version] = lambda: json_answer({"server": {"name": "Tea", "version": "1"}})
    keys = await requests.get_server_key(ours.client, peer.name)
    implementation = await requests.get_version(ours.client, peer.name)
    peer.answers[version] = lambda: json_answer({"server": "Tea"})

    assert orjson.loads(canonical_json(keys)) == peer.response()
    assert implementation == {"name": "Tea", "version": "1"}
    assert await requests.get_version(ours.client, peer.name) == {}
    assert all("Authorization" not in received.headers for received in peer.server.received)
    assert ours.destinations.retry_ts(peer.name) is not None
