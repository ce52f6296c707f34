"""What the server writes to its log: lines of text or JSON that carry a request ID and never a secret."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Final, Literal, TextIO

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The ID of the request that is being answered; every line logged meanwhile carries it."""

REDACTED: Final = "<redacted>"

_logger = logging.getLogger(__name__)

_HIDDEN_FIELDS: Final = (
    r"(?:[a-z_]*token|[a-z_]*password|[a-z_]*secret|private_key|mac|(?:proxy-)?authorization|(?:set-)?cookie)"
)
_SECRETS: Final = tuple(
    (mark, re.compile(pattern, re.IGNORECASE))
    for mark, pattern in (
        # In a query or a form, percent-encoded or not: access_token=..., loginToken=...
        (
            "token",
            r"(?P<keep>(?:access|refresh|login|registration|session|id)(?:_|%5f|)token(?:=|%3d))[^&\s\"'<>#]+",
        ),
        # In JSON, or in a Python value that has been printed
        (
            '"',
            rf"(?P<keep>[\"']{_HIDDEN_FIELDS}[\"']\s*[:,]\s*)b?(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')",
        ),
        # A header line, and a credential wherever it stands
        (
            "authorization",
            r"(?P<keep>\b(?:proxy-)?authorization\s*[:=]\s*)(?![\"']?<redacted>)[^\r\n]+",
        ),
        ("bearer", r"(?P<keep>\bbearer\s+)[a-z0-9._~+/=\-]{8,}"),
        ("x-matrix", r"(?P<keep>\bx-matrix\s+)\S*=[^\r\n]+"),
        # An access token of ours, whatever is around it
        (
            "eyj",
            r"(?P<keep>)(?:(?<![\w\-])|(?<=%[0-9a-f][0-9a-f]))eyJ[a-z0-9_\-]{8,}\.[a-z0-9_\-]+\.[a-z0-9_\-]*",
        ),
        # The password in a URL
        ("://", r"(?P<keep>://[^\s/:@\"']*:)[^\s/@\"']+(?=@)"),
    )
)
"""How secrets look, each with a mark that is part of whatever the pattern finds; the mark " is ' as well."""

_CONTROL_CHARACTERS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def without_secrets(text: str) -> str:
    """The text with access tokens, passwords and authorization headers cut out."""
    # Beyond ASCII there are letters that a pattern takes for a small one, and lower() does not
    small = text.lower().replace("'", '"') if text.isascii() else None
    for mark, pattern in _SECRETS:
        if small is None or mark in small:
            text = pattern.sub(rf"\g<keep>{REDACTED}", text)
    return text


def set_up_logging(
    level: str, line_format: Literal["text", "json"], stream: TextIO | None = None
) -> Callable[[], None]:
    """Send every log record of this process to `stream` (standard error by default), as one line each.

    What nobody has caught, in any thread, is logged once with its traceback. Returns what undoes all this.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if line_format == "json" else TextLines())
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    unused = (logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    # What no line shows need not be found out for each: the caller, the thread, the process
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.handlers = [handler]
    root.setLevel(level)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread

    def undo() -> None:
        root.handlers, level, sys.excepthook, threading.excepthook = before
        root.setLevel(level)
        logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing = unused

    return undo


class TextLines(logging.Formatter):
    """Lines for people: time (UTC), level, logger, request ID, message; a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of a traceback."""
        request = request_id.get()
        about = f" [{request}]" if request is not None else ""
        line = f"{_time_of(record)} {record.levelname:<7} {record.name}{about} {record.getMessage()}"
        if not line.isprintable():  # nobody can forge a line by a name with a line break
            line = line.translate(_CONTROL_CHARACTERS)
        exception = _exception_of(self, record)
        return without_secrets(line if exception is None else f"{line}\n{exception}")


class JsonLines(logging.Formatter):
    """Lines for programs: one JSON object with the same six keys in each."""

    def format(self, record: logging.LogRecord) -> str:
        """The object; `request_id` and `exception` are null where there is none."""
        exception = _exception_of(self, record)
        return json.dumps(
            {
                "time": _time_of(record),
                "level": record.levelname,
                "logger": record.name,
                "message": without_secrets(record.getMessage()),
                "request_id": request_id.get(),
                "exception": None if exception is None else without_secrets(exception),
            }
        )


def _time_of(record: logging.LogRecord) -> str:
    """The time of a record, in UTC, by ISO 8601."""
    seconds, ms = divmod(int(record.created * 1000), 1000)
    return f"{_second(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """A second since 1970 by ISO 8601. Busy times log many lines in each."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _exception_of(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[0] is not None:
        return formatter.formatException(record.exc_info)
    return record.exc_text or None


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        _logger.critical("an error that nobody caught ends the process", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None and not issubclass(uncaught.exc_type, SystemExit):
        error = (uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback)
        _logger.critical("an error that nobody caught ends a thread", exc_info=error)
