from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from homeserver.config import Listener, Tls
from homeserver.errors import LairError
from homeserver.http.application import HttpApplication
from homeserver.http.endpoints import Endpoints
from homeserver.http.rate_limit import RateLimiter
from homeserver.metrics import Metrics
from tests.http.conftest import Ask, talk
from tests.http.tea_house import TeaHouse, TeaServices, by_token, join, open_tea_house

SYNC = b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: test\r\n\r\n"
CREATE = b"POST /_matrix/client/v3/createRoom HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def own_house() -> AsyncIterator[TeaHouse]:
    """A tea house that a test may close."""
    async with open_tea_house() as house:
        yield house


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1, its key, that key under a passphrase, and another key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, other = (trustme.CA().issue_cert("127.0.0.1") for _ in range(2))
    certificate.private_key_pem.write_to_path(folder / "localhost.key")
    other.private_key_pem.write_to_path(folder / "other.key")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(folder / "localhost.crt", append=True)
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    (folder / "encrypted.key").write_bytes(encrypted)
    return folder


async def test_a_listener_serves_its_own_apis_and_health(ask: Ask) -> None:
    apis = [("client",), ("federation",), ("web",), ("metrics",)]
    paths = ["/_matrix/client/versions", "/_matrix/federation/v1/version", "/static/a", "/metrics"]
    listeners = [Listener.model_validate({"port": 0, "apis": one}) for one in apis]
    async with open_tea_house(*listeners) as house, aiohttp.ClientSession() as session:
        for number, url in enumerate(house.urls):
            answers = [await session.get(url + path) for path in paths]
            assert [answer.status == 200 for answer in answers] == [n == number for n in range(4)]
            for health in ("/health/live", "/health/ready"):
                assert (await session.get(url + health)).status == 200


async def test_port_0_is_any_free_port_and_is_told(own_house: TeaHouse) -> None:
    [address] = own_house.application.addresses

    assert address.port > 0
    assert address.url == f"http://127.0.0.1:{address.port}"


async def test_a_listener_with_a_certificate_speaks_tls(tls_files: Path) -> None:
    certificate = tls_files / "localhost.crt"
    tls = Tls(certificate=certificate, private_key=tls_files / "localhost.key")
    listener = Listener(port=0, apis=("client",), tls=tls)
    trust = ssl.create_default_context(cafile=certificate)
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    async with open_tea_house(listener) as house, aiohttp.ClientSession() as session:
        assert house.url.startswith("https://")
        answer = await session.get(house.url + "/_matrix/client/versions", ssl=trust)
        assert answer.status == 200


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        ("none.crt", "localhost.key", "none.crt"),
        ("localhost.crt", "none.key", "none.key"),
        ("localhost.crt", "other.key", "is not the key of"),
        ("localhost.key", "localhost.key", "in PEM"),
        ("localhost.crt", __file__, "in PEM"),
        ("localhost.crt", "encrypted.key", "passphrase"),
        ("localhost.crt", "", "Is a directory"),
    ],
)
async def test_a_certificate_that_cannot_be_used_is_named(
    tls_files: Path, certificate: str, key: str, problem: str
) -> None:
    tls = Tls(certificate=tls_files / certificate, private_key=tls_files / key)
    listener = Listener(port=0, tls=tls)

    with pytest.raises(LairError, match=problem):
        async with open_tea_house(listener):
            pass


async def test_an_address_that_is_taken_is_named_and_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()

        with pytest.raises(LairError, match=f"127.0.0.1 port {port}: Address already in use"):
            async with open_tea_house(Listener(port=other), Listener(port=port)):
                pass
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", other)


async def test_health_names_each_component(ask: Ask) -> None:
    problem: str | None = None

    async def database() -> str | None:
        return problem

    async with open_tea_house(readiness={"database": database}) as house:
        well = await ask("GET", "/health/ready", of=house)
        problem = "migrations are missing"
        ill = await ask("GET", "/health/ready", of=house)
        live = await ask("GET", "/health/live", of=house)

    assert (well.status, well.body) == (
        200,
        {"status": "ok", "components": {"database": "ok", "listeners": "ok"}},
    )
    assert (ill.status, ill.body) == (
        503,
        {
            "status": "unavailable",
            "components": {"database": "migrations are missing", "listeners": "ok"},
        },
    )
    assert (live.status, live.body["status"]) == (200, "ok")


async def test_a_component_that_fails_is_not_ready(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    async def database() -> str | None:
        raise ConnectionRefusedError("postgresql://user:hidden@host")

    async with open_tea_house(readiness={"database": database}) as house:
        answer = await ask("GET", "/health/ready", of=house)

    assert answer.status == 503
    assert answer.body["components"]["database"] == "failed"
    assert b"hidden" not in answer.content


async def test_a_running_request_finishes_when_the_server_stops(own_house: TeaHouse) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(talk(own_house.port, CREATE))
        await own_house.services.waiting.wait()
        stop = tasks.create_task(own_house.application.stop(grace_seconds=10))
        await refused(own_house.port)
        own_house.services.go_on.set()
        await stop

    assert answer.result().startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer.result()
    assert own_house.services.calls == ["finished"]


async def test_a_request_that_only_waits_is_sent_away_when_the_server_stops(own_house: TeaHouse) -> None:
    started = time.monotonic()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(talk(own_house.port, SYNC))
        await own_house.services.waiting.wait()
        await own_house.application.stop(grace_seconds=8)

    assert answer.result().startswith(b"HTTP/1.1 503 ")
    assert own_house.services.cancelled.is_set()
    assert time.monotonic() - started < 4


async def test_a_request_that_takes_too_long_is_cancelled_when_the_server_stops(own_house: TeaHouse) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(talk(own_house.port, CREATE))
        await own_house.services.waiting.wait()
        await own_house.application.stop(grace_seconds=0)

    assert answer.result() == b""
    assert own_house.services.cancelled.is_set()


async def test_a_request_that_only_waits_ends_with_its_client(
    own_house: TeaHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", own_house.port)
        writer.write(SYNC)
        await own_house.services.waiting.wait()
        writer.close()
        await own_house.services.cancelled.wait()

    assert not [record for record in caplog.records if record.levelname in {"ERROR", "WARNING"}]


async def test_another_request_finishes_without_its_client(
    own_house: TeaHouse, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", own_house.port)
        writer.write(CREATE)
        await own_house.services.waiting.wait()
        writer.close()
        await writer.wait_closed()
        await ask("GET", "/health/live", of=own_house)
        own_house.services.go_on.set()
        while not own_house.services.calls:
            await ask("GET", "/health/live", of=own_house)

    assert not own_house.services.cancelled.is_set()
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "WARNING"}]


async def test_an_endpoint_with_an_unknown_limit_is_refused() -> None:
    endpoints = Endpoints(TeaServices, by_token)
    endpoints.post("/join", rate_limit="jion")(join)

    with pytest.raises(ValueError, match="jion"):
        HttpApplication(
            [Listener(port=0)],
            [endpoints],
            TeaServices(),
            metrics=Metrics(),
            rate_limiter=RateLimiter({}),
        )


async def refused(port: int) -> None:
    """Wait until nobody listens at a port."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            return
        writer.close()
        await writer.wait_closed()
