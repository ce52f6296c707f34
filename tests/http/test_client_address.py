from __future__ import annotations

from ipaddress import ip_network

import pytest

from homeserver.config import Listener
from tests.http.conftest import Ask
from tests.http.tea_house import TeaHouse, open_tea_house

WHOAMI = "/_matrix/client/v3/whoami"


def proxied(*ranges: str) -> Listener:
    return Listener(port=0, apis=("client",), trusted_proxies=tuple(map(ip_network, ranges)))


@pytest.mark.invariant("SEC-HTTP-1")
async def test_sec_http_1_without_trusted_proxies_the_connection_counts(ask: Ask) -> None:
    answer = await ask("GET", WHOAMI, headers={"X-Forwarded-For": "192.0.2.1", "User-Agent": "tea"})

    assert answer.body["address"] == "127.0.0.1"
    assert answer.body["user_agent"] == "tea"


@pytest.mark.invariant("SEC-HTTP-1")
@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("10.1.2.3", "10.1.2.3"),
        ("192.0.2.1:5000", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:5000", "2001:db8::1"),
        ("192.0.2.1, ::ffff:10.1.2.3", "192.0.2.1"),
        ("192.0.2.1, unknown", "127.0.0.1"),
        ("192.0.2.1, unknown, 10.1.2.3", "10.1.2.3"),
        ("192.0.2.1,", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_sec_http_1_the_rightmost_address_that_is_no_trusted_proxy_counts(
    ask: Ask, forwarded: str, address: str
) -> None:
    async with open_tea_house(proxied("127.0.0.1/32", "10.0.0.0/8")) as house:
        answer = await ask("GET", WHOAMI, headers={"X-Forwarded-For": forwarded}, of=house)

    assert answer.body["address"] == address


@pytest.mark.invariant("SEC-HTTP-1")
async def test_sec_http_1_a_peer_that_is_no_trusted_proxy_is_not_believed(ask: Ask) -> None:
    async with open_tea_house(proxied("10.0.0.0/8")) as house:
        answer = await ask("GET", WHOAMI, headers={"X-Forwarded-For": "192.0.2.1"}, of=house)

    assert answer.body["address"] == "127.0.0.1"


async def limited_address(ask: Ask, house: TeaHouse, address: str) -> int:
    headers = {"X-Forwarded-For": address}
    return (await ask("POST", "/_matrix/client/v3/register", headers=headers, of=house)).status


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_addresses_behind_a_proxy_are_counted_apart(ask: Ask) -> None:
    async with open_tea_house(proxied("127.0.0.0/8")) as house:
        first = [await limited_address(ask, house, "192.0.2.1") for _ in range(4)]
        other = await limited_address(ask, house, "192.0.2.2")
        network = [await limited_address(ask, house, f"2001:db8::{number}") for number in range(1, 5)]

    assert first == [200, 200, 200, 429]
    assert other == 200
    assert network == [200, 200, 200, 429]
