"""One request: who sends it, its body within its limits, its query."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from homeserver.errors import InvalidParam, MatrixError, NotJson, TooLarge
from homeserver.http.cors import CORS_HEADERS
from homeserver.http.rate_limit import RateLimiter

if TYPE_CHECKING:
    from homeserver.http.endpoints import Endpoint

IpRange = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_QUERY_PARAMETERS: Final = 200
_SLOWEST_BYTES_PER_SECOND: Final = 4096
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROCESS: Final = token_hex(4)
_numbers = count(1)


class RequestTimeout(MatrixError):
    """The request body came too slowly."""

    status, errcode = 408, "M_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a slow client is waited for, in seconds.

    head: without a whole request head, be the connection idle or sending one very slowly.
    body: for a request body, and longer by what has come, at 4 KiB a second.
    reader: for a client to take a response that is larger than the socket's buffers.
    """

    head: float = 75.0
    body: float = 30.0
    reader: float = 120.0


PATIENCE: Final = Patience()


@dataclass(slots=True)
class ListenerState:
    """What all requests of one listener share.

    stopping: set once, when the server begins to stop.
    cancellable: the tasks that end with their connection.
    """

    rate_limiter: RateLimiter
    trusted_proxies: Sequence[IpRange] = ()
    patience: Patience = PATIENCE
    stopping: bool = False
    cancellable: dict[web.RequestHandler, asyncio.Task[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Where a request comes from. `client_address` is an IP address without port, "" for a Unix socket."""

    client_address: str
    user_agent: str
    request_id: str


class Request(web.BaseRequest):
    """A request of aiohttp with what our endpoints know about it.

    A handler asks for it when the typed arguments do not do: to stream a body, for a WebSocket, for cookies.
    `raw_segments` and `raw_query` are path and query, percent-encoded as they came.
    """

    ATTRS = web.BaseRequest.ATTRS | frozenset(
        {
            "listener",
            "request_id",
            "endpoint",
            "path_parameters",
            "cors",
            "raw_segments",
            "raw_query",
            "_body",
            "_received_bytes",
            "_continued",
            "_pairs",
        }
    )

    def __init__(self, listener: ListenerState, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.listener = listener
        self.request_id = f"{_PROCESS}-{next(_numbers):x}"
        self.endpoint: Endpoint[Any] | None = None
        self.path_parameters: dict[str, str] = {}
        self.cors = True
        self._body: bytes | None = None
        self._received_bytes = 0
        self._continued = False
        self._pairs: list[tuple[str, str]] | None = None
        target = self.raw_path
        if not target.startswith("/"):  # absolute-form, as proxies are sent it
            target = self.rel_url.raw_path_qs
        self.raw_segments, _, self.raw_query = target.partition("?")

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        """The query parameters, decoded, in their order. Raises InvalidParam where they are not UTF-8."""
        if self._pairs is None:
            query = self.raw_query
            try:
                self._pairs = (
                    parse_qsl(
                        query, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_PARAMETERS
                    )
                    if query
                    else []
                )
            except ValueError:
                raise InvalidParam("The query is not UTF-8, or has too many parameters") from None
            if "%00" in query:
                raise InvalidParam("The character U+0000 is not allowed in a query")
        return self._pairs

    def query_value(self, name: str) -> str | None:
        """The first value of a query parameter. Raises InvalidParam where the query is not UTF-8."""
        return next((value for key, value in self.query_pairs if key == name), None)

    @property
    def user_agent(self) -> str:
        """The User-Agent header, "" where there is none."""
        return self.headers.get(hdrs.USER_AGENT, "")

    @property
    def client_address(self) -> str:
        """The address of the client: of proxies that the listener trusts, what the last of them saw.

        Read from the right, the first address in X-Forwarded-For that is not a trusted proxy's counts; what
        stands left of it is the sender's own claim.
        """
        peer = self._transport_peername
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self.listener.trusted_proxies:
            return address
        forwarded = ",".join(self.headers.getall(hdrs.X_FORWARDED_FOR, ())).split(",")
        while forwarded and self._is_trusted_proxy(address):
            seen = _without_port(forwarded.pop().strip())
            if seen is None:
                break
            address = seen
        return address

    def _is_trusted_proxy(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.listener.trusted_proxies)

    @property
    def info(self) -> RequestInfo:
        """Where the request comes from, as plain values."""
        return RequestInfo(self.client_address, self.user_agent, self.request_id)

    @property
    def max_body_bytes(self) -> int:
        """How large the endpoint lets a body be, compressed or not."""
        return 0 if self.endpoint is None else self.endpoint.max_body_bytes

    def check_announced_size(self) -> None:
        """Raise TooLarge where the headers already announce a body above the endpoint's limit."""
        announced = self.headers.get(hdrs.CONTENT_LENGTH)
        if announced is not None and int(announced) > self.max_body_bytes:
            raise TooLarge(f"The request body is larger than {self.max_body_bytes} bytes")

    async def read_body(self) -> bytes:
        """The whole body, decompressed. May be called again.

        Raises TooLarge as soon as more than the endpoint's limit has come, RequestTimeout for a body that
        comes too slowly, NotJson for one whose transfer or content encoding is broken.
        """
        if self._body is None:
            if self.content.is_eof() and self.content.exception() is None:
                body = self.content.read_nowait()
                self._count_body(len(body))
            else:
                body = b"".join([chunk async for chunk in self.stream_body()])
            self._body = body
        return self._body

    async def stream_body(self) -> AsyncIterator[bytes]:
        """The body in pieces, decompressed. Raises as read_body does."""
        self._send_continue()
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            allowed = self.listener.patience.body + self._received_bytes / _SLOWEST_BYTES_PER_SECOND
            try:
                async with asyncio.timeout_at(started + allowed):
                    chunk = await self.content.readany()
            except TimeoutError:
                raise RequestTimeout("The request body came too slowly") from None
            except web.RequestPayloadError:
                raise NotJson("The transfer or content encoding of the request body is broken") from None
            if not chunk:
                return
            self._count_body(len(chunk))
            yield chunk

    def _count_body(self, size_bytes: int) -> None:
        self._received_bytes += size_bytes
        if self._received_bytes > self.max_body_bytes:
            raise TooLarge(f"The request body is larger than {self.max_body_bytes} bytes")

    def _send_continue(self) -> None:
        """Tell a client that waits for it to send its body: only now, when the body is wanted."""
        waits = self.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and self.version >= HttpVersion11
        if waits and not self._continued and self.transport is not None:
            self._continued = True
            self.transport.write(_CONTINUE)

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """What every response of aiohttp's own kinds passes just before its headers are sent."""
        if self.method == "HEAD":
            self.writer.length = 0  # what a handler streams all the same is thrown away
        headers = response.headers
        headers.popall(hdrs.SERVER, None)
        headers["X-Request-ID"] = self.request_id
        if self.cors:
            headers.update(CORS_HEADERS)


def _without_port(text: str) -> str | None:
    """The address in an entry of X-Forwarded-For; None where there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
