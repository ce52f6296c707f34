"""What a peer may send that is not quite HTTP: never two meanings for the same bytes."""

from __future__ import annotations

import pytest

from tests.http.conftest import talk
from tests.http.tea_house import TeaHouse

pytestmark = pytest.mark.invariant("SEC-HTTP-1")

LIVE = b"GET /health/live HTTP/1.1\r\n"
POST = b"POST /_matrix/client/v3/bytes HTTP/1.1\r\n"
HOST = b"Host: test\r\n"
CLOSE = b"Connection: close\r\n"
SMUGGLED = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: test\r\n\r\n"


def statuses(answers: bytes) -> list[int]:
    """The statuses of the responses in what a connection has sent."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "head",
    [
        POST + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        POST + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        POST + HOST + b"Transfer-Encoding: gzip, chunked, identity\r\n",
        POST + HOST + b"Transfer-Encoding: xchunked\r\n",
        POST + HOST + b"Transfer-Encoding : chunked\r\n",
        POST + HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n",
        POST + HOST + b"Content-Length: 4\r\nContent-Length: 4\r\n",
        POST + HOST + b"Content-Length: +4\r\n",
        POST + HOST + b"Content-Length: -4\r\n",
        POST + HOST + b"Content-Length: 4,4\r\n",
        POST + HOST + b"Content-Length: 0x4\r\n",
        LIVE + HOST + b"Host: other\r\n",
        LIVE + HOST + b"X-Long: a\r\n b\r\n",
        LIVE + HOST + b"X Y: a\r\n",
        LIVE + HOST + b"X-Nul: a\0b\r\n",
        LIVE + HOST + b"X-Return: a\rb\r\n",
        LIVE + HOST + b"No colon\r\n",
        LIVE + b" Host: test\r\n",
        LIVE + HOST + b": empty name\r\n",
        b"GET /health/live HTTP/3.7\r\n" + HOST,
        b"GET /health live HTTP/1.1\r\n" + HOST,
        b"G@T /health/live HTTP/1.1\r\n" + HOST,
        b"/health/live\r\n" + HOST,
        LIVE[:-2] + b"\n" + HOST[:-2] + b"\n",
        LIVE + HOST[:-2] + b"\n",
    ],
)
async def test_sec_http_1_an_ambiguous_head_is_refused_and_ends_the_connection(
    house: TeaHouse, head: bytes
) -> None:
    answers = await talk(house.port, head + b"\r\n" + SMUGGLED)

    assert statuses(answers) == [400]
    assert b"\r\nContent-Type: application/json\r\n" in answers
    assert b'"errcode":"M_UNKNOWN"' in answers


@pytest.mark.parametrize(
    "body", [b"5\r\nteatime\r\n0\r\n\r\n", b"g\r\n", b"-1\r\n", b"0x3\r\ntea\r\n0\r\n\r\n", b"3\ntea\n0\n\n"]
)
async def test_sec_http_1_a_broken_chunk_is_refused_and_ends_the_connection(
    house: TeaHouse, body: bytes
) -> None:
    answers = await talk(house.port, POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body + SMUGGLED)

    assert statuses(answers) == [400]


async def test_sec_http_1_pipelined_requests_are_answered_in_their_order(house: TeaHouse) -> None:
    first = POST + HOST + b"Content-Length: 3\r\n\r\ntea"
    last = b"GET /unknown HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"

    assert statuses(await talk(house.port, first + SMUGGLED + last)) == [200, 200, 404]


async def test_sec_http_1_the_absolute_form_is_the_path_in_it(house: TeaHouse) -> None:
    known = b"GET http://elsewhere/_matrix/client/v3/rooms/!a:b/event/$a%2Fb?x=1 HTTP/1.1\r\n" + HOST + CLOSE
    unknown = b"GET http://elsewhere HTTP/1.1\r\n" + HOST + CLOSE

    assert b'{"event_id":"$a/b"}' in await talk(house.port, known + b"\r\n")
    assert statuses(await talk(house.port, unknown + b"\r\n"))[0] in {200, 404}


@pytest.mark.parametrize("target", [b"*", b"elsewhere:443", b"?x", b"health/live"])
async def test_sec_http_1_another_form_of_target_finds_nothing(house: TeaHouse, target: bytes) -> None:
    answers = await talk(house.port, b"GET " + target + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")

    assert statuses(answers)[0] in {400, 404}


async def test_sec_http_1_a_tunnel_is_refused(house: TeaHouse) -> None:
    answers = await talk(house.port, b"CONNECT elsewhere:443 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")

    assert statuses(answers)[0] in {400, 404, 405}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST,
        LIVE + HOST + b"X-Long: " + b"a" * 20_000 + b"\r\n",
        LIVE + HOST + b"X" * 20_000 + b": a\r\n",
        LIVE + HOST + b"".join(b"X-%d: a\r\n" % number for number in range(200)),
    ],
)
async def test_sec_http_1_a_head_has_a_limit(house: TeaHouse, head: bytes) -> None:
    assert statuses(await talk(house.port, head + b"\r\n")) in ([400], [431])


async def test_sec_http_1_bytes_that_are_not_utf_8_in_a_path_are_refused(house: TeaHouse) -> None:
    target = b"/_matrix/client/v3/rooms/!a:b/state/m.x/\xff"
    answers = await talk(house.port, b"GET " + target + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")

    assert statuses(answers) == [400]


async def test_sec_http_1_a_broken_request_is_not_logged_with_what_it_held(
    house: TeaHouse, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        await talk(house.port, LIVE + HOST + b"Authorization: Bearer hidden\0\r\n\r\n")

    assert "hidden" not in caplog.text
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "WARNING"}]


async def test_sec_http_1_a_request_names_its_host(house: TeaHouse) -> None:
    assert statuses(await talk(house.port, LIVE + CLOSE + b"\r\n")) == [400]


async def test_sec_http_1_http_1_0_is_answered_and_closed(house: TeaHouse) -> None:
    answer = await talk(house.port, b"GET /health/live HTTP/1.0\r\n\r\n")

    assert statuses(answer) == [200]
    assert b"\r\nConnection: close\r\n" in answer
