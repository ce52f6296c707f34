"""One connection of a client, and the server object that makes one for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from homeserver.errors import MatrixError
from homeserver.http.request import ListenerState, Request
from homeserver.http.responses import error_response

logger = logging.getLogger(__name__)

LINGERING_SECONDS: Final = 5.0
"""How long what a client still sends is read and thrown away, so that it can read why it was refused."""
MAX_HEADER_BYTES: Final = 16384
MAX_HEADERS: Final = 100


class NotHttp(MatrixError):
    """Bytes that are no request of HTTP/1.1."""

    status, errcode = 400, "M_UNKNOWN"


class HeadTooLarge(MatrixError):
    """A request line or header above the limits."""

    status, errcode = 431, "M_TOO_LARGE"


class Connection(web.RequestHandler):
    """A connection whose broken requests get a standard error, and whose end cancels those that only wait."""

    __slots__ = ("_listener",)

    def __init__(self, server: web.Server, listener: ListenerState, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._listener = listener

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel what only waits for the client that is gone."""
        if (task := self._listener.cancellable.get(self)) is not None:
            task.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as a request, without the parser's text: it may show a token."""
        logger.debug("a broken request from %s: %s", request.remote, type(exc).__name__)
        if isinstance(exc, LineTooLong):
            response = error_response(HeadTooLarge("The request line or a header is too long"))
        else:
            response = error_response(NotHttp("This is not a valid HTTP request"))
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """Makes a Connection for each client of one listener."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        listener: ListenerState,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.listener: Final = listener
        self._event_loop = loop
        super().__init__(handler, request_factory=self._request, loop=loop)

    def _request(self, *arguments: Any) -> Request:
        return Request(self.listener, *arguments, self._event_loop)

    def __call__(self) -> web.RequestHandler:
        """A new connection; asyncio calls this for each that it accepts."""
        return Connection(
            self,
            self.listener,
            loop=self._event_loop,
            access_log=None,
            keepalive_timeout=self.listener.patience.head,
            lingering_time=LINGERING_SECONDS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )

    def cancel_waiting(self) -> None:
        """Cancel the requests that only wait: they are answered with an error that says to ask again."""
        for task in list(self.listener.cancellable.values()):
            task.cancel()
