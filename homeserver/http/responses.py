"""From what a handler returns or raises to the bytes of a response."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10

from homeserver.errors import LimitExceeded, MatrixError
from homeserver.http.cors import CORS_HEADERS
from homeserver.http.models import RawReply, Reply
from homeserver.http.request import Request
from homeserver.http.routing import UnknownMethod
from homeserver.protocol.canonical_json import write_json

Answer: TypeAlias = Reply | Mapping[str, Any] | RawReply | web.StreamResponse
"""What a handler may return: a model, a JSON object, JSON as bytes, or any response of aiohttp."""

_LARGE_BODY_BYTES: Final = 65536
_JSON: Final = "Content-Type: application/json\r\n"
_CORS: Final = "".join(f"{name}: {value}\r\n" for name, value in CORS_HEADERS.items())


class WholeResponse(web.StreamResponse):
    """A response whose whole body is known: JSON, unless its headers name another Content-Type.

    It writes its head itself, in one piece with the body: a fraction of the cost of aiohttp's general case.
    Raises ValueError for a header that is more than one line.
    """

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status=status)
        self._content = body
        self._lines = _JSON if headers is None else _header_lines(headers)
        self._stays_open = True
        self._request: Request | None = None

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection serves further requests after this one."""
        return self._stays_open

    def force_close(self) -> None:
        """Close the connection after this response."""
        self._stays_open = False

    @property
    def prepared(self) -> bool:
        """Whether the head has been sent."""
        return self._request is not None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send head and body."""
        assert isinstance(request, Request)
        if self._request is not None:
            return request.writer
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client has closed the connection")
        if not request.keep_alive or request.listener.stopping or not request.content.is_eof():
            self._stays_open = False  # what is unread of the body is not worth waiting for
        self._request = request
        head = self._head(request).encode("latin-1")
        transport.write(head if request.method == "HEAD" else head + self._content)
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Wait until the client has taken most of a large body; cut one off that does not read."""
        request = self._request
        if request is None or len(self._content) < _LARGE_BODY_BYTES:
            return
        try:
            async with asyncio.timeout(request.listener.patience.reader):
                await request.writer.drain()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("The client does not read its response") from None

    def _head(self, request: Request) -> str:
        if not self._stays_open:
            connection = "Connection: close\r\n"
        elif request.version == HttpVersion10:
            connection = "Connection: keep-alive\r\n"
        else:
            connection = ""
        return (
            f"HTTP/1.1 {self.status} {self.reason}\r\n{self._lines}"
            f"Content-Length: {len(self._content)}\r\nDate: {_date_of(int(time.time()))}\r\n"
            f"X-Request-ID: {request.request_id}\r\n{_CORS if request.cors else ''}{connection}\r\n"
        )


def response_of(answer: Answer) -> web.StreamResponse:
    """The response for what a handler returned. Raises TypeError for anything else."""
    match answer:
        case Reply():
            return WholeResponse(answer.to_json())
        case RawReply():
            return WholeResponse(answer.body, answer.status, answer.headers)
        case web.StreamResponse():
            return answer
        case _:
            return WholeResponse(write_json(answer))


def error_response(error: MatrixError) -> WholeResponse:
    """The standard error response. Source: Client-Server API, "Standard error response", "Rate limiting"."""
    headers = None
    if isinstance(error, LimitExceeded):
        headers = {"Retry-After": str(math.ceil(error.retry_after_ms / 1000))}
    elif isinstance(error, UnknownMethod):
        headers = {"Allow": ", ".join(error.allowed)}
    return WholeResponse(orjson.dumps(error.body()), error.status, headers)


def preflight_response() -> web.StreamResponse:
    """What every path answers to OPTIONS. Source: Client-Server API, "Web Browser Clients"."""
    return web.Response(status=204)


def _header_lines(headers: Mapping[str, str]) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\r") + lines.count("\n") != 2 * len(headers):
        raise ValueError("a header must be one line")
    return lines if any(name.lower() == "content-type" for name in headers) else lines + _JSON


@lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)
