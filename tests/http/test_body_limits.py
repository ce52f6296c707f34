from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from tests.http.conftest import Ask, talk
from tests.http.tea_house import TeaHouse

BYTES = "/_matrix/client/v3/bytes"
UPLOAD = "/_matrix/media/v3/upload"


async def in_pieces(size: int, pieces: int) -> AsyncIterator[bytes]:
    for _ in range(pieces):
        yield b"x" * size


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: test", *lines, "", ""]).encode()


@pytest.mark.invariant("SEC-SIZE-1")
@pytest.mark.parametrize(
    "content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain"]
)
async def test_sec_size_1_a_body_has_a_limit_for_every_content_type(ask: Ask, content_type: str) -> None:
    headers = {"Content-Type": content_type}

    assert (await ask("POST", BYTES, b"x" * 1000, headers=headers)).body == {"bytes": 1000}
    assert (await ask("POST", BYTES, b"x" * 1001, headers=headers)).error == (413, "M_TOO_LARGE")
    assert (await ask("POST", BYTES, in_pieces(100, 10), headers=headers)).body == {"bytes": 1000}
    assert (await ask("POST", BYTES, in_pieces(100, 11), headers=headers)).error == (413, "M_TOO_LARGE")


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_an_announced_body_is_refused_before_it_is_sent(house: TeaHouse) -> None:
    answer = await talk(house.port, head(BYTES, "Content-Length: 1001"), until=b"}")

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"M_TOO_LARGE" in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_a_chunked_body_is_refused_before_its_end(house: TeaHouse) -> None:
    chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
    answer = await talk(
        house.port, head(BYTES, "Transfer-Encoding: chunked"), chunk, chunk, chunk, until=b"}"
    )

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.invariant("SEC-SIZE-1")
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_sec_size_1_a_compressed_body_is_measured_decompressed(ask: Ask, encoding: str) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    headers = {"Content-Encoding": encoding}

    assert (await ask("POST", BYTES, compress(b"x" * 1000), headers=headers)).body == {"bytes": 1000}
    assert (await ask("POST", BYTES, compress(b"x" * 1001), headers=headers)).error == (413, "M_TOO_LARGE")
    bomb = compress(bytes(50_000_000))[:150_000]
    assert (await ask("POST", UPLOAD, bomb, headers=headers)).error == (413, "M_TOO_LARGE")


async def test_a_body_may_be_streamed_up_to_its_limit(ask: Ask) -> None:
    assert (await ask("POST", UPLOAD, in_pieces(50_000, 4))).body == {"bytes": 200_000}
    assert (await ask("POST", UPLOAD, in_pieces(50_000, 5))).error == (413, "M_TOO_LARGE")


async def test_a_body_that_is_not_what_its_encoding_says_is_refused(ask: Ask) -> None:
    answer = await ask("POST", BYTES, b"tea", headers={"Content-Encoding": "gzip"})

    assert answer.error == (400, "M_NOT_JSON")


async def test_a_client_that_waits_is_told_to_continue_only_when_its_body_is_wanted(house: TeaHouse) -> None:
    wait = "Expect: 100-continue"
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(head(BYTES, wait, "Content-Length: 3"))
        told = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"tea")
        answer = await reader.readuntil(b"}")
        writer.close()
        await writer.wait_closed()
    unwanted = await talk(house.port, head(BYTES, wait, "Content-Length: 2000"), until=b"}")
    unknown = await talk(house.port, head("/unknown", wait, "Content-Length: 3", "Connection: close"), b"tea")

    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert unwanted.startswith(b"HTTP/1.1 413 ")
    assert unknown.startswith(b"HTTP/1.1 404 ")


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    house: TeaHouse, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [b"x" * 10, b"5\r\nab"]
    for message, framing in zip(requests, ["Content-Length: 100", "Transfer-Encoding: chunked"], strict=True):
        await leave_after(house, head(BYTES, framing) + message)
    assert (await ask("GET", "/health/live")).status == 200

    assert not [record for record in caplog.records if record.levelname in {"ERROR", "WARNING"}]


async def leave_after(house: TeaHouse, message: bytes) -> None:
    async with asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(message)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        while 'status="499"' not in house.metrics.text().decode():
            await asyncio.sleep(0)
