"""Clients that hold a connection without using it lose it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from homeserver.http.request import Patience
from tests.http.conftest import talk
from tests.http.tea_house import TeaHouse, open_tea_house

pytestmark = pytest.mark.invariant("SEC-HTTP-1")


@pytest.fixture
async def busy_house() -> AsyncIterator[TeaHouse]:
    """A tea house that waits for nobody."""
    async with open_tea_house(patience=Patience(head=0.02, body=0.02, reader=0.02)) as house:
        yield house


@pytest.mark.parametrize(
    "start", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: te", b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"]
)
async def test_sec_http_1_a_connection_without_a_whole_head_is_closed(
    busy_house: TeaHouse, start: bytes
) -> None:
    answer = await talk(busy_house.port, start)

    assert answer.startswith(b"HTTP/1.1 200 ") == start.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
async def test_sec_http_1_a_body_that_does_not_come_is_given_up(busy_house: TeaHouse, framing: bytes) -> None:
    head = b"POST /_matrix/client/v3/bytes HTTP/1.1\r\nHost: test\r\n" + framing + b"\r\n\r\n"
    answer = await talk(busy_house.port, head, until=b"}")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer


async def test_sec_http_1_a_response_that_nobody_reads_is_given_up(busy_house: TeaHouse) -> None:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", busy_house.port, limit=1)
        writer.write(b"GET /_matrix/client/v3/large HTTP/1.1\r\nHost: test\r\n\r\n")
        while 'route="/_matrix/client/v3/large",status="200"' not in busy_house.metrics.text().decode():
            await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await write_until_cut_off(writer)
        writer.close()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()
        assert not reader.at_eof()


async def write_until_cut_off(writer: asyncio.StreamWriter) -> None:
    while True:
        await writer.drain()
        writer.write(b"\r\n")
        await asyncio.sleep(0)
