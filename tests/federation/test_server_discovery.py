"""From a server name to where its requests go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random
from typing import Any

import pytest
from aiohttp import web

from federation.outbound.server_discovery import (
    DEFAULT_LIFETIME_MS,
    LONGEST_LIFETIME_MS,
    LONGEST_RETRY_MS,
    SHORTEST_LIFETIME_MS,
    ServerAddress,
    ServerDiscovery,
)
from federation.outbound.srv_records import STALE_S, SrvRecord, SrvRecords, in_order
from homeserver.http_client import HttpClient
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName
from tests.federation.name_server import NameServer, name_server
from tests.federation.peers import (
    LOOPBACK,
    Answer,
    Authority,
    HttpsServer,
    https_server,
    json_answer,
    resolver,
)
from tests.servers import MovableClock

HOUR_MS = 3600 * 1000


@dataclass
class Host:
    """The web server of tea.test, whose well-known file a test chooses; None for no such file."""

    server: HttpsServer
    discovery: ServerDiscovery
    names: NameServer
    clock: MovableClock
    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    async def find(self, name: str = "tea.test") -> ServerAddress:
        return await self.discovery.find(ServerName(name))

    @property
    def asked(self) -> int:
        return len(self.server.received)


@pytest.fixture(name="host")
async def running_host(authority: Authority, clock: MovableClock) -> AsyncIterator[Host]:
    async def handler(request: web.BaseRequest) -> Answer:
        if host.content is None:
            return web.Response(status=404)
        if isinstance(host.content, bytes):
            return web.Response(body=host.content, status=host.status, headers=host.headers)
        if request.path == "/.well-known/matrix/server" and host.headers.get("Location"):
            return web.Response(status=302, headers=host.headers)
        return json_answer(host.content, host.status, **host.headers)

    addresses = resolver({"tea.test": ["127.0.0.1"], "inside.test": ["10.0.0.1"]})
    context = authority.server_context("tea.test")
    async with (
        https_server(context, handler) as server,
        name_server() as names,
        HttpClient(allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=addresses) as client,
    ):
        discovery = ServerDiscovery(
            client, SrvRecords(clock, names.resolver()), clock, well_known_port=server.port
        )
        host = Host(server, discovery, names, clock)
        yield host


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("127.0.0.1", ("127.0.0.1", 8448)),
        ("127.0.0.1:5", ("127.0.0.1", 5)),
        ("[::1]", ("::1", 8448)),
        ("[::1]:5", ("::1", 5)),
        ("tea.test:5", ("tea.test", 5)),
        ("TEA.test:8448", ("TEA.test", 8448)),
    ],
)
async def test_an_address_or_a_port_is_taken_at_its_word(
    host: Host, name: str, place: tuple[str, int]
) -> None:
    host.content = {"m.server": "elsewhere.test"}
    host.names.records = {"_matrix-fed._tcp.tea.test": ["10 5 9000 srv.test."]}

    assert await host.find(name) == ServerAddress(name, [place])
    assert (host.asked, host.names.asked) == (0, [])


@pytest.mark.parametrize(
    ("delegated", "place"),
    [
        ("127.0.0.1", ("127.0.0.1", 8448)),
        ("[::1]:5", ("::1", 5)),
        ("fed.test:443", ("fed.test", 443)),
        ("fed.test", ("fed.test", 8448)),
    ],
)
async def test_a_well_known_file_delegates(host: Host, delegated: str, place: tuple[str, int]) -> None:
    host.content = {"m.server": delegated}

    assert await host.find() == ServerAddress(delegated, [place])
    assert host.server.received[0].target == "/.well-known/matrix/server"
    assert host.server.received[0].headers["Host"] == "tea.test"
    assert host.asked == 1


async def test_delegation_is_one_level_deep(host: Host) -> None:
    host.content = {"m.server": "tea.test"}

    assert await host.find() == ServerAddress("tea.test", [("tea.test", 8448)])
    assert host.asked == 1


@pytest.mark.parametrize("of", ["tea.test", "fed.test"])
async def test_srv_records_name_places_but_neither_host_nor_certificate(host: Host, of: str) -> None:
    host.content = None if of == "tea.test" else {"m.server": of}
    host.names.records = {
        f"_matrix-fed._tcp.{of}": ["20 5 9000 last.test.", "10 5 9001 first.test."],
        f"_matrix._tcp.{of}": ["10 5 9002 old.test."],
    }

    assert await host.find() == ServerAddress(of, [("first.test", 9001), ("last.test", 9000)])


async def test_the_old_srv_record_comes_second_and_8448_last(host: Host) -> None:
    host.names.records = {"_matrix._tcp.tea.test": ["10 5 9002 old.test."], "_matrix-fed._tcp.tea.test": []}
    old = await host.find()
    host.names.records = {}
    host.clock.advance(HOUR_MS)
    none = await host.find()

    assert old == ServerAddress("tea.test", [("old.test", 9002)])
    assert none == ServerAddress("tea.test", [("tea.test", 8448)])
    assert host.names.asked == ["_matrix-fed._tcp.tea.test", "_matrix._tcp.tea.test"] * 2


async def test_a_name_may_say_that_it_has_no_such_service(host: Host) -> None:
    host.names.records = {"_matrix-fed._tcp.tea.test": ["0 0 0 ."]}

    assert await host.find() == ServerAddress("tea.test", [])


async def test_srv_records_are_remembered_for_their_time_and_while_name_servers_fail(host: Host) -> None:
    host.names.records = {"_matrix-fed._tcp.tea.test": ["10 5 9000 srv.test."]}
    found = await host.find()
    host.clock.advance(3599 * 1000)
    remembered = await host.find()
    asked = len(host.names.asked)
    host.names.fails = True
    host.clock.advance(2000)
    stale = await host.find()
    host.clock.advance(STALE_S * 1000)
    given_up = await host.find()

    assert found == remembered == stale
    assert asked == 1
    assert given_up == ServerAddress("tea.test", [("tea.test", 8448)])


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 200),
        (b"tea", 200),
        (b"[]", 200),
        (b"{}", 200),
        (b'{"m.server":5}', 200),
        (b'{"m.server":""}', 200),
        (b'{"m.server":"https://fed.test"}', 200),
        (b'{"m.server":"fed.test:0"}', 200),
        (b'{"m.server":"fed.test:65536"}', 200),
        (b'{"m.server":"fed.test"}', 201),
        (b'{"m.server":"fed.test"}', 500),
        (b'{"m.server":"fed.test"}' + b" " * 60000, 200),
    ],
)
async def test_a_well_known_file_that_is_none_is_passed_over(host: Host, content: bytes, status: int) -> None:
    host.content, host.status = content, status

    assert await host.find() == ServerAddress("tea.test", [("tea.test", 8448)])


async def test_the_type_of_a_well_known_file_does_not_count_and_redirects_are_followed(host: Host) -> None:
    host.content = {"m.server": "fed.test:1"}
    host.headers = {
        "Content-Type": "text/html",
        "Location": f"https://tea.test:{host.server.port}/elsewhere",
    }
    found = await host.find()

    assert found == ServerAddress("fed.test:1", [("fed.test", 1)])
    assert [received.target for received in host.server.received][1:] == ["/elsewhere"]


@pytest.mark.invariant("SEC-SSRF-1")
async def test_sec_ssrf_1_well_known_files_are_fetched_from_public_addresses_only(host: Host) -> None:
    host.content, host.headers = {"m.server": "fed.test"}, {"Location": "https://inside.test/"}

    assert await host.find("inside.test") == ServerAddress("inside.test", [("inside.test", 8448)])
    assert await host.find() == ServerAddress("tea.test", [("tea.test", 8448)])


@pytest.mark.parametrize(
    ("headers", "lifetime_ms"),
    [
        ({}, DEFAULT_LIFETIME_MS),
        ({"Cache-Control": "public, Max-Age=7200"}, 2 * HOUR_MS),
        ({"Cache-Control": "max-age=999999999"}, LONGEST_LIFETIME_MS),
        ({"Cache-Control": "max-age=0"}, SHORTEST_LIFETIME_MS),
        ({"Cache-Control": "no-store"}, SHORTEST_LIFETIME_MS),
        ({"Cache-Control": "max-age=3600", "Expires": formatdate(0)}, HOUR_MS),
        ({"Expires": formatdate(1_700_000_000 + 7200)}, 2 * HOUR_MS),
        ({"Expires": "0"}, SHORTEST_LIFETIME_MS),
    ],
)
async def test_a_well_known_file_is_remembered_as_its_headers_say(
    host: Host, headers: dict[str, str], lifetime_ms: int
) -> None:
    host.content, host.headers = {"m.server": "fed.test:1"}, headers
    await host.find()
    host.clock.advance(int(lifetime_ms * 0.7))
    await host.find()
    before = host.asked
    host.clock.advance(int(lifetime_ms * 0.3))
    await host.find()

    assert (before, host.asked) == (1, 2)


async def test_that_there_is_no_well_known_file_is_remembered_for_an_hour(host: Host) -> None:
    await host.find()
    host.clock.advance(LONGEST_RETRY_MS - 1)
    await host.find()
    before = host.asked
    host.clock.advance(1)
    host.content = {"m.server": "fed.test:1"}

    assert (await host.find()).authority == "fed.test:1"
    assert (before, host.asked) == (1, 2)


async def test_failures_that_may_pass_are_asked_about_ever_more_rarely(host: Host) -> None:
    host.content, host.status = {}, 503
    waits = []
    for _ in range(9):
        await host.find()
        asked, minutes = host.asked, 0
        while host.asked == asked:
            host.clock.advance(60 * 1000)
            minutes += 1
            await host.find()
        waits.append(minutes)

    assert waits[0] == 1
    assert waits == sorted(waits)
    assert waits[-1] == 60


async def test_what_was_found_serves_on_for_a_while_when_the_next_look_fails(host: Host) -> None:
    host.content = {"m.server": "fed.test:1"}
    await host.find()
    host.status = 502
    host.clock.advance(DEFAULT_LIFETIME_MS)
    served_on = await host.find()
    host.clock.advance(DEFAULT_LIFETIME_MS)
    given_up = await host.find()

    assert served_on.authority == "fed.test:1"
    assert given_up.authority == "tea.test"


async def test_the_same_file_is_not_asked_for_twice_at_once(host: Host) -> None:
    host.content = {"m.server": "fed.test:1"}
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(host.find()) for _ in range(5)]

    assert {task.result().authority for task in found} == {"fed.test:1"}
    assert host.asked == 1


@pytest.mark.parametrize("name", ["", "tea test", "tea.test:", "tea.test:0", "tea.test:99999", "[tea]"])
async def test_what_is_no_server_name_is_refused(host: Host, name: str) -> None:
    with pytest.raises(InvalidIdentifier):
        await host.find(name)


async def test_without_name_servers_there_are_no_records(clock: MovableClock) -> None:
    assert await SrvRecords(clock, None).find("_matrix-fed._tcp.tea.test") is None


def test_records_are_tried_by_priority_and_chosen_by_weight() -> None:
    random = Random(1)
    heavy, light, late = SrvRecord(1, 90, 1, "h"), SrvRecord(1, 10, 1, "l"), SrvRecord(2, 99, 1, "s")
    orders = [in_order([late, light, heavy], random.random) for _ in range(1000)]
    first = Counter(order[0].target for order in orders)

    assert all(order[2] is late and len(set(order)) == 3 for order in orders)
    assert 850 < first["h"] < 950


def test_records_without_weight_are_chosen_evenly() -> None:
    random = Random(1)
    records = [SrvRecord(0, 0, port, "t") for port in range(4)]
    first = Counter(in_order(records, random.random)[0].port for _ in range(1000))

    assert min(first.values()) > 200
