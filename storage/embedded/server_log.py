"""What PostgreSQL writes while it runs: passed on to our log, the newest lines kept for error messages."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from typing import Final

log = logging.getLogger(__name__)

_KEPT_LINES: Final = 20
_MAX_LINE_BYTES: Final = 4096

_LINE: Final = re.compile(r"(?P<sqlstate>[0-9A-Z]{5}) (?P<severity>[A-Z]+\d?):  (?P<text>.*)")

_LEVELS: Final = {
    "PANIC": logging.ERROR,
    "FATAL": logging.ERROR,
    "ERROR": logging.WARNING,  # of one client, who is told as well
    "WARNING": logging.WARNING,
}

_EXPECTED: Final = {"57P01", "57P03"}
"""Connections that a shutdown ends, or that come while the server starts or stops."""

_CRASH: Final = "was terminated by signal"
"""Of one of its processes; PostgreSQL says so with the severity LOG, and goes on after a recovery."""


class ServerLog(asyncio.Protocol):
    """Reads one end of a pipe whose other end PostgreSQL writes to."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._unfinished = b""

    @property
    def newest(self) -> str:
        """The last line; empty before the first."""
        return self._lines[-1] if self._lines else ""

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)

    def data_received(self, data: bytes) -> None:
        """Take what has been written; a line too long is cut in pieces."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._unfinished) > _MAX_LINE_BYTES:
            self._take(self._unfinished)
            self._unfinished = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Every process that could write has ended."""
        if self._unfinished:
            self._take(self._unfinished)
            self._unfinished = b""
        self.closed.set()

    def _take(self, line: bytes) -> None:
        text = os.fsdecode(line[:_MAX_LINE_BYTES]).rstrip()
        match = _LINE.fullmatch(text)
        if match is None:  # a further line of the message before
            log.debug("PostgreSQL: %s", text)
            self._lines.append(text)
            return
        message = f"{match['severity']}: {match['text']}"
        if match["sqlstate"] in _EXPECTED:
            log.debug("PostgreSQL: %s", message)
            return
        level = logging.WARNING if _CRASH in match["text"] else _LEVELS.get(match["severity"], logging.DEBUG)
        log.log(level, "PostgreSQL: %s", message)
        self._lines.append(message)
