"""What is written to the log, and what never is."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from homeserver.logs import REDACTED, JsonLines, request_id, set_up_logging, without_secrets

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJAYWxpY2U6dGVzdCJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"

logger = logging.getLogger("tests.logs")


@pytest.fixture
def text_log() -> Iterator[io.StringIO]:
    """The log of this process as text."""
    stream = io.StringIO()
    undo = set_up_logging("INFO", "text", stream)
    yield stream
    undo()


@pytest.fixture
def json_log() -> Iterator[io.StringIO]:
    """The log of this process as JSON."""
    stream = io.StringIO()
    undo = set_up_logging("INFO", "json", stream)
    yield stream
    undo()


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines of a JSON log."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def raise_error(text: str) -> None:
    """Fail."""
    raise RuntimeError(text)


def test_a_json_line_has_the_six_keys(json_log: io.StringIO) -> None:
    request_id.set(None)
    logger.info("a room %s", "ä\n")
    [line] = objects(json_log)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "INFO",
        "logger": "tests.logs",
        "message": "a room ä\n",
        "request_id": None,
        "exception": None,
    }


def test_half_of_a_surrogate_pair_is_escaped_in_a_json_line() -> None:
    record = logging.LogRecord("tests.logs", logging.INFO, __file__, 1, "a room %s", ("\ud800",), None)
    assert json.loads(JsonLines().format(record).encode())["message"] == "a room \ud800"


def test_a_line_carries_the_id_of_its_request(json_log: io.StringIO) -> None:
    before = request_id.set("request-1")
    try:
        logger.info("within")
    finally:
        request_id.reset(before)
    logger.info("after")

    assert [line["request_id"] for line in objects(json_log)] == ["request-1", None]


def test_a_text_line_names_time_level_logger_and_request(text_log: io.StringIO) -> None:
    before = request_id.set("request-1")
    try:
        logger.warning("the disk is nearly full")
    finally:
        request_id.reset(before)

    assert re.fullmatch(
        r"\S+Z WARNING tests\.logs \[request-1\] the disk is nearly full\n", text_log.getvalue()
    )


def test_a_name_cannot_forge_a_line(text_log: io.StringIO) -> None:
    logger.info("joined: %s", "eve\n2026-01-01T00:00:00.000Z INFO all is well\x1b[2J\u2028")

    assert len(text_log.getvalue().splitlines()) == 1
    assert "\\n2026" in text_log.getvalue()
    assert "\x1b" not in text_log.getvalue()


def test_records_below_the_level_are_not_written(text_log: io.StringIO) -> None:
    logger.debug("a detail")

    assert text_log.getvalue() == ""


def test_an_error_is_logged_with_its_traceback(json_log: io.StringIO) -> None:
    try:
        raise_error("the cause")
    except RuntimeError:
        logger.exception("it failed")
    [line] = objects(json_log)

    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("RuntimeError: the cause")


def test_an_error_that_ends_a_thread_is_logged_once(json_log: io.StringIO) -> None:
    thread = threading.Thread(target=raise_error, args=["in a thread"])
    thread.start()
    thread.join(10)
    [line] = objects(json_log)

    assert line["level"] == "CRITICAL"
    assert line["exception"].endswith("RuntimeError: in a thread")


def test_an_error_that_ends_the_process_is_logged_once() -> None:
    program = (
        "from homeserver.logs import set_up_logging\n"
        "set_up_logging('INFO', 'json')\n"
        "raise RuntimeError('access_token=hush')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]

    assert done.returncode == 1
    assert line["level"] == "CRITICAL"
    assert line["exception"].endswith(f"RuntimeError: access_token={REDACTED}")


LEAKS = [
    "GET /_matrix/client/v3/sync?since=5&access_token=hush&full_state=true",
    "GET /_matrix/client/v3/sync?access%5Ftoken=hush",
    "GET /_matrix/client/v3/sync?ACCESS_TOKEN=hush",
    "GET /_matrix/client/v3/sync?acce\u017fs_to\u212aen=hush",
    "GET /login?next=%2Fsync%3Faccess_token%3Dhush",
    "GET /?loginToken=hush",
    "POST /?session_token=hush HTTP/1.1",
    "Authorization: Bearer hush",
    "authorization=Bearer hush-hush-hush",
    "{'Authorization': 'Bearer hush', 'Host': 'a'}",
    "('Authorization', 'Bearer hush')",
    "<CIMultiDictProxy('Authorization': 'Bearer hush')>",
    'Authorization: X-Matrix origin="a",key="ed25519:1",sig="hush"',
    'X-Matrix origin="a",key="ed25519:1",sig="hush"',
    "Bearer hush-hush-hush is not valid",
    '{"type": "m.login.password", "password": "hush"}',
    '{"type":"m.login.registration_token","token":"hush"}',
    "{'password': \"hush'hush\", 'new_password': 'hush\\'hush'}",
    "{'refresh_token': b'hush'}",
    '{"mac": "hush", "shared_secret": "hush"}',
    "cannot connect to postgresql://lair:hush@host:5432/lair",
    "Proxy-Authorization: Basic hush",
    "{'COOKIE': 'hush'}",
]


@pytest.mark.invariant("SEC-WEB-1")
@pytest.mark.parametrize("text", LEAKS)
def test_sec_web_1_no_line_tells_a_secret(text: str, json_log: io.StringIO) -> None:
    logger.error("refused: %s", text)
    try:
        raise_error(text)
    except RuntimeError:
        logger.exception("failed")

    assert "refused: " in json_log.getvalue()
    assert "hush" not in json_log.getvalue()
    assert REDACTED in json_log.getvalue()


@pytest.mark.invariant("SEC-WEB-1")
@pytest.mark.parametrize("around", ["token {} expired", "'{}'", "?t={}&x", "?t=Bearer%20{}", "{}"])
def test_sec_web_1_an_access_token_is_cut_out_wherever_it_stands(around: str, text_log: io.StringIO) -> None:
    logger.error("%s", around.format(TOKEN))

    assert TOKEN[:20] not in text_log.getvalue()
    assert TOKEN[-20:] not in text_log.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "GET /_matrix/client/v3/sync?since=s5&timeout=30000",
        "the access token has expired",
        "the password is too short",
        "https://example.org:8448/a@b",
        "@alice:example.org joined !room:example.org",
        "no Authorization header",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "piece", ["-eyJ", "access_token", "authorization ", "://", "'a", "bearer ", "x-matrix ="]
)
def test_a_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * 20_000

    assert len(without_secrets(text)) <= len(text) + 20_000 * len(REDACTED)
