"""The one client for calls to outside: which addresses it connects to, and what it takes from there."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from homeserver.addresses import SystemResolver, may_connect
from homeserver.config import Federation, Outbound
from homeserver.errors import LairError
from homeserver.http_client import (
    AddressRefused,
    BrokenResponse,
    ConnectFailed,
    HttpClient,
    HttpResponse,
    ResponseTooLarge,
    TimedOut,
)
from tests.federation.peers import (
    LOOPBACK,
    Answer,
    Authority,
    HttpsServer,
    https_server,
    json_answer,
    resolver,
)

NOWHERE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "100::1",
    "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1",
    "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
SOMEWHERE = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.0.1.1", "223.255.255.254", "::ffff:8.8.8.8",
    "64:ff9b::808:808", "2606:4700::1111", "2a00:1450:4001::1", "2001:4860::8888",
]  # fmt: skip


@pytest.mark.invariant("SEC-SSRF-1")
@pytest.mark.parametrize("address", NOWHERE)
def test_sec_ssrf_1_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not may_connect(ip_address(address), [])


@pytest.mark.parametrize("address", SOMEWHERE)
def test_public_addresses_are_allowed(address: str) -> None:
    assert may_connect(ip_address(address), [])


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b::7f00:1", "127.0.0.0/8"),
        ("::1", "::1/128"),
        ("fd12::1", "fd00::/8"),
    ],
)
def test_ranges_that_are_listed_are_allowed(address: str, allowed: str) -> None:
    assert may_connect(ip_address(address), [ip_network(allowed)])
    assert not may_connect(ip_address(address), [ip_network("10.0.0.0/8"), ip_network("fc00::/8")])


async def handler(request: web.BaseRequest) -> Answer:
    """A web server that behaves as its path says."""
    match request.path.split("/")[1:]:
        case ["go", status, *where]:
            return web.Response(status=int(status), headers={"Location": "/".join(where)})
        case ["to"]:
            return web.Response(status=302, headers={"Location": request.query["url"]})
        case ["large"]:
            return web.Response(body=bytes(5000))
        case ["endless"]:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(1000))
                await asyncio.sleep(0)  # nothing else would let the connection be closed
        case ["bomb"]:
            return web.Response(body=gzip.compress(bytes(10**6)), headers={"Content-Encoding": "gzip"})
        case ["zipped"]:
            return web.Response(body=gzip.compress(b"tea"), headers={"Content-Encoding": "gzip"})
        case ["slow"]:
            await asyncio.Event().wait()
        case ["stops"]:
            response = web.StreamResponse(headers={"Content-Length": "2000"})
            await response.prepare(request)
            await response.write(bytes(1000))
            assert request.transport is not None
            request.transport.abort()
        case ["garbage"]:
            assert request.transport is not None
            request.transport.write(b"tea, please\r\n\r\n")
            request.transport.close()
    return json_answer({"path": request.raw_path, "host": request.headers["Host"]})


@pytest.fixture(scope="module")
async def server(authority: Authority) -> AsyncIterator[HttpsServer]:
    context = authority.server_context("127.0.0.1", "tea.test", "localhost")
    async with https_server(context, handler) as server:
        yield server


@pytest.fixture(scope="module")
async def client(authority: Authority) -> AsyncIterator[HttpClient]:
    names = {
        "tea.test": ["127.0.0.1"],
        "other.test": ["127.0.0.1"],
        "dead.test": ["127.0.0.99", "127.0.0.1"],
        "mixed.test": ["10.0.0.1", "169.254.169.254", "127.0.0.1"],
        "inside.test": ["10.0.0.1", "fe80::1%1", "::ffff:10.0.0.1"],
        "nothing.test": [],
    }
    async with HttpClient(
        allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=resolver(names)
    ) as client:
        yield client


async def get(client: HttpClient, url: str, **options: Any) -> HttpResponse:
    settings = {"timeout_s": 10.0, "max_response_bytes": 4096, **options}
    return await client.request("GET", url, **settings)


async def test_host_certificate_and_path_are_those_of_the_url(
    client: HttpClient, server: HttpsServer
) -> None:
    target = "/a%2Fb/../%c3%A9//x?q=%20+&r"
    named = await get(client, f"https://tea.test:{server.port}{target}")
    sent = server.received[-1]
    addressed = await get(client, f"https://127.0.0.1:{server.port}/")
    elsewhere = await get(client, "https://tea.test/", places=[("127.0.0.1", server.port)])

    assert named.status == 200
    assert (sent.target, sent.headers["Host"]) == (target, f"tea.test:{server.port}")
    assert b'"host":"tea.test:' in named.body
    assert b'"host":"127.0.0.1:' in addressed.body
    assert b'"host":"tea.test"' in elsewhere.body


async def test_the_name_is_sent_for_a_certificate_unless_it_is_an_address(authority: Authority) -> None:
    context = authority.server_context("127.0.0.1", "tea.test")
    names = resolver({"tea.test": ["127.0.0.1"]})
    async with (
        https_server(context, handler) as server,
        HttpClient(allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=names) as client,
    ):
        await get(client, f"https://127.0.0.1:{server.port}/")
        await get(client, f"https://tea.test:{server.port}/")

    assert [received.tls_name for received in server.received] == [None, "tea.test"]


@pytest.mark.invariant("SEC-SSRF-1")
@pytest.mark.parametrize(
    "host",
    ["inside.test", "10.0.0.1", "169.254.169.254", "[fe80::1]", "[::ffff:10.0.0.1]", "0.0.0.0", "[::]"],
)
async def test_sec_ssrf_1_names_and_literals_that_lead_inside_are_refused(
    client: HttpClient, host: str
) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(AddressRefused):
            await get(client, f"{scheme}://{host}/")
    with pytest.raises(AddressRefused):
        await get(client, "https://tea.test/", places=[(host.strip("[]"), 443)])


@pytest.mark.invariant("SEC-SSRF-1")
async def test_sec_ssrf_1_only_the_allowed_addresses_of_a_name_are_connected_to(
    client: HttpClient, server: HttpsServer
) -> None:
    response = await get(client, "https://tea.test/", places=[("mixed.test", server.port)])

    assert response.status == 200


@pytest.mark.invariant("SEC-SSRF-1")
async def test_sec_ssrf_1_a_name_is_resolved_once_for_a_connection(
    authority: Authority, server: HttpsServer
) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def rebind(_host: str) -> Sequence[str]:
        return answers.pop(0)

    async with HttpClient(allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=rebind) as client:
        first = await get(client, f"https://tea.test:{server.port}/")
        with pytest.raises(AddressRefused):
            await get(client, f"https://tea.test:{server.port}/")

    assert (first.status, answers) == (200, [])


@pytest.mark.invariant("SEC-SSRF-1")
async def test_sec_ssrf_1_every_redirect_is_checked(client: HttpClient, server: HttpsServer) -> None:
    here = f"https://tea.test:{server.port}"
    for inside in (
        "https://10.0.0.1/",
        "https://inside.test/",
        "https://[::ffff:a00:1]/",
        "//169.254.169.254/x",
    ):
        with pytest.raises(AddressRefused):
            await get(client, f"{here}/to?url={inside}", max_redirects=3)
    for elsewhere in (
        "http://tea.test/",
        "file:///etc/passwd",
        "https://u:p@tea.test/",
        "https://a:b/",
    ):
        with pytest.raises(BrokenResponse):
            await get(client, f"{here}/to?url={elsewhere}", max_redirects=3)


async def test_redirects_are_followed_as_often_as_is_allowed(client: HttpClient, server: HttpsServer) -> None:
    here = f"https://tea.test:{server.port}"
    followed = await get(client, f"{here}/to?url=/to%3Furl=/tea%253Fx=%25252F", max_redirects=2)
    given_up = await get(client, f"{here}/to?url=/to?url=/to", max_redirects=1)
    not_followed = await get(client, f"{here}/go/302//tea")

    assert followed.status == 200
    assert followed.url == f"{here}/tea?x=%2F"
    assert given_up.status == not_followed.status == 302


async def test_credentials_are_not_taken_along_to_another_server(
    client: HttpClient, server: HttpsServer
) -> None:
    here = f"https://tea.test:{server.port}"
    headers = {"Authorization": "Bearer tea", "X-Tea": "green"}
    await get(client, f"{here}/go/302//tea", max_redirects=1, headers=headers)
    stayed = server.received[-1].headers
    await get(client, f"{here}/to?url=https://127.0.0.1:{server.port}/tea", max_redirects=1, headers=headers)
    moved = server.received[-1].headers

    assert stayed["Authorization"] == "Bearer tea"
    assert "Authorization" not in moved
    assert moved["X-Tea"] == "green"


@pytest.mark.invariant("SEC-SSRF-1")
@pytest.mark.parametrize("path", ["large", "endless", "bomb"])
async def test_sec_ssrf_1_a_response_is_cut_off_where_it_is_too_large(
    client: HttpClient, server: HttpsServer, path: str
) -> None:
    with pytest.raises(ResponseTooLarge):
        await get(client, f"https://tea.test:{server.port}/{path}")


@pytest.mark.invariant("SEC-SSRF-1")
@pytest.mark.parametrize("path", ["slow", "endless"])
async def test_sec_ssrf_1_a_response_has_to_come_in_time(
    client: HttpClient, server: HttpsServer, path: str
) -> None:
    with pytest.raises(TimedOut):
        await get(client, f"https://tea.test:{server.port}/{path}", timeout_s=0.2, max_response_bytes=10**12)


@pytest.mark.parametrize("path", ["stops", "garbage"])
async def test_a_broken_response_is_an_error(client: HttpClient, server: HttpsServer, path: str) -> None:
    with pytest.raises(BrokenResponse):
        await get(client, f"https://tea.test:{server.port}/{path}")


async def test_compressed_responses_are_decompressed(client: HttpClient, server: HttpsServer) -> None:
    assert (await get(client, f"https://tea.test:{server.port}/zipped")).body == b"tea"


async def test_the_next_address_or_place_is_tried_where_nobody_answers(
    client: HttpClient, server: HttpsServer
) -> None:
    by_address = await get(client, "https://tea.test/", places=[("dead.test", server.port)])
    by_place = await get(
        client,
        "https://tea.test/",
        places=[("nobody.test", 1), ("10.0.0.1", 1), ("127.0.0.1", 1), ("127.0.0.1", server.port)],
    )

    assert by_address.status == by_place.status == 200


@pytest.mark.parametrize("url", ["https://unknown.test/", "https://127.0.0.1:1/"])
async def test_without_a_connection_nothing_is_sent(client: HttpClient, url: str) -> None:
    with pytest.raises(ConnectFailed):
        await get(client, url)
    with pytest.raises(ConnectFailed):
        await get(client, "https://tea.test/", places=[])


async def test_the_certificate_must_be_for_the_name_and_trusted(
    client: HttpClient, server: HttpsServer, authority: Authority, tmp_path: Path
) -> None:
    seen = len(server.received)
    stranger = Authority.new(tmp_path)
    with pytest.raises(ConnectFailed):
        await get(client, f"https://other.test:{server.port}/")
    with pytest.raises(ConnectFailed):
        await get(client, "https://other.test/", places=[("tea.test", server.port)])
    async with HttpClient(allowed_ranges=LOOPBACK, ca_files=[stranger.file]) as distrustful:
        with pytest.raises(ConnectFailed):
            await get(distrustful, f"https://127.0.0.1:{server.port}/")
    assert len(server.received) == seen

    async with HttpClient(allowed_ranges=LOOPBACK, verify_certificates=False) as careless:
        assert (await get(careless, f"https://127.0.0.1:{server.port}/")).status == 200


@pytest.mark.parametrize(
    "url",
    [
        "ftp://tea.test/",
        "tea.test",
        "https:///x",
        "https://u:p@tea.test/",
        "https://tea.test/a b",
        "https://té.test/",
    ],
)
async def test_what_is_no_url_of_a_web_server_is_refused(client: HttpClient, url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        await get(client, url)


async def test_two_clients_are_made_from_the_settings(authority: Authority, server: HttpsServer) -> None:
    federation = Federation.model_construct(
        allowed_ip_ranges=tuple(LOOPBACK), verify_certificates=True, trusted_ca_files=(authority.file,)
    )
    outbound = Outbound.model_construct(allowed_ip_ranges=(), verify_certificates=False)
    url = f"https://localhost:{server.port}/"
    async with (
        HttpClient.of_federation(federation) as to_servers,
        HttpClient.of_outbound(outbound) as to_others,
    ):
        assert (await get(to_servers, url)).status == 200
        with pytest.raises(AddressRefused):
            await get(to_others, url)


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("tea")
    for file in (empty, tmp_path / "missing.pem"):
        with pytest.raises(LairError, match=f"trusted_ca_files: {file}"):
            HttpClient(ca_files=[file])


async def test_the_system_finds_names_and_they_are_remembered() -> None:
    resolve = SystemResolver()
    try:
        addresses = await resolve("localhost")
        assert set(addresses) <= {"127.0.0.1", "::1"}
        assert await resolve("localhost") is addresses
        with pytest.raises(socket.gaierror):
            await resolve("no-such-host.invalid")
    finally:
        resolve.close()
