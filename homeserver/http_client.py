"""The one client for calls to outside; it checks every address that it connects to.

A name is resolved once for a request, each of its addresses is checked, and the connection goes to one of
the checked addresses: what the name resolves to later changes nothing. A URL that holds an address takes the
same way, and so does every redirect. The name stays what the Host header and the certificate are about.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import aiohttp
from aiohttp import hdrs
from yarl import URL

from homeserver.addresses import IpAddress, IpRange, SystemResolver, may_connect
from homeserver.config import Federation, Outbound
from homeserver.errors import LairError

Place: TypeAlias = tuple[str, int]
"""A host, name or address without brackets, and a port."""
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a host name, the best first. Raises OSError where it has none."""

CONNECT_TIMEOUT_S: Final = 10.0
"""For one address, TLS included."""
MAX_ADDRESSES: Final = 6
"""So many addresses are tried for one request."""
MAX_CONNECTIONS: Final = 1000
MAX_CONNECTIONS_TO_A_SERVER: Final = 12
KEEP_ALIVE_S: Final = 60.0
MAX_TARGET_CHARS: Final = 65536

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class OutboundError(Exception):
    """A call to outside that brought no response. Its text is for a log, not for whoever asked."""


class AddressRefused(OutboundError):
    """The host has no address that may be connected to."""


class ConnectFailed(OutboundError):
    """No connection: an unknown name, nobody there, a certificate that is not trusted. Nothing was sent."""


class TimedOut(OutboundError):
    """The response did not come in time."""


class ResponseTooLarge(OutboundError):
    """The response is longer than what is taken, as it came or as decompressed."""


class BrokenResponse(OutboundError):
    """The connection broke, or what came is no response of HTTP, or it redirects to where we do not go."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response. `url`: where it came from, after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


class StreamedResponse:
    """A response whose body is read piece by piece, decompressed."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, max_response_bytes: int) -> None:
        self.status: Final = response.status
        self.headers: Final[Mapping[str, str]] = response.headers
        self.url: Final = url
        self._response = response
        self._max_response_bytes = max_response_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body. Raises ResponseTooLarge as soon as more has come than is taken, BrokenResponse."""
        announced = self._response.content_length
        if announced is not None and announced > self._max_response_bytes:
            raise ResponseTooLarge(f"a body of {announced} bytes")
        received = 0
        while True:
            try:
                chunk = await self._response.content.readany()
            except aiohttp.ClientError as error:
                raise BrokenResponse(f"{type(error).__name__} while the body was read") from error
            if not chunk:
                return
            received += len(chunk)
            if received > self._max_response_bytes:
                raise ResponseTooLarge(f"a body of more than {self._max_response_bytes} bytes")
            yield chunk


class HttpClient:
    """Calls over HTTP to servers that others name.

    `allowed_ranges`: addresses that may be connected to although they are not public. `ca_files`: PEM files
    of authorities that are trusted besides the system's; LairError for one that cannot be used.
    Use it as an async context manager, on one event loop.
    """

    def __init__(
        self,
        *,
        allowed_ranges: Sequence[IpRange] = (),
        verify_certificates: bool = True,
        ca_files: Sequence[Path] = (),
        resolve: Resolve | None = None,
    ) -> None:
        self._allowed_ranges = tuple(allowed_ranges)
        self._tls = _tls_context(ca_files, verify_certificates=verify_certificates)
        self._system = SystemResolver()
        self._resolve: Resolve = resolve or self._system
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of_federation(cls, settings: Federation, resolve: Resolve | None = None) -> HttpClient:
        """The client for other homeservers."""
        return cls(
            allowed_ranges=settings.allowed_ip_ranges,
            verify_certificates=settings.verify_certificates,
            ca_files=settings.trusted_ca_files,
            resolve=resolve,
        )

    @classmethod
    def of_outbound(cls, settings: Outbound, resolve: Resolve | None = None) -> HttpClient:
        """The client for everybody else: push gateways, application services, web pages."""
        return cls(
            allowed_ranges=settings.allowed_ip_ranges,
            verify_certificates=settings.verify_certificates,
            resolve=resolve,
        )

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            ssl=self._tls,
            limit=MAX_CONNECTIONS,
            limit_per_host=MAX_CONNECTIONS_TO_A_SERVER,
            keepalive_timeout=KEEP_ALIVE_S,
            use_dns_cache=False,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers={hdrs.USER_AGENT: "Lair-Chat", hdrs.ACCEPT_ENCODING: "gzip"},
            skip_auto_headers=(hdrs.CONTENT_TYPE, hdrs.ACCEPT),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        self._system.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        max_response_bytes: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        places: Sequence[Place] | None = None,
        max_redirects: int = 0,
    ) -> HttpResponse:
        """Send a request and read its whole response, whatever its status; all as in `stream`."""
        async with self.stream(
            method,
            url,
            timeout_s=timeout_s,
            max_response_bytes=max_response_bytes,
            headers=headers,
            body=body,
            places=places,
            max_redirects=max_redirects,
        ) as response:
            content = b"".join([chunk async for chunk in response.chunks()])
            return HttpResponse(response.status, response.headers, content, response.url)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        max_response_bytes: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        places: Sequence[Place] | None = None,
        max_redirects: int = 0,
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request; the response can be read while the block lasts, all of it within `timeout_s`.

        `url`: path and query percent-encoded, and sent as they are. `places`: where to connect to, one after
        the other, in place of the URL's host and port; the Host header and the certificate stay the URL's.
        `max_redirects`: for GET and HEAD; a further redirect is the response, and so is one without Location.
        Raises AddressRefused, ConnectFailed, TimedOut, ResponseTooLarge, BrokenResponse; ValueError for a URL
        that cannot be requested.
        """
        target = _requested_url(url)
        left = max_redirects if method in ("GET", "HEAD") else 0
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                while True:
                    response = await self._send(method, target, headers or {}, body, places)
                    try:
                        location = response.headers.get(hdrs.LOCATION)
                        if left == 0 or location is None or response.status not in _REDIRECTS:
                            yield StreamedResponse(response, str(target), max_response_bytes)
                            return
                    finally:
                        response.release()
                    left -= 1
                    redirected = _redirected_url(target, location)
                    if redirected.origin() != target.origin():
                        headers = _without_credentials(headers or {})
                    target, places = redirected, None
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise TimedOut(f"no response within {timeout_s:g} s") from error

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | None,
        places: Sequence[Place] | None,
    ) -> aiohttp.ClientResponse:
        """Send a request to the first address that takes a connection; its response without the body."""
        assert self._session is not None, "the client is used outside of its context"
        assert url.raw_host is not None
        assert url.port is not None
        failure: OutboundError | None = None
        tried = 0
        for host, port in [(url.raw_host, url.port)] if places is None else places:
            try:
                addresses = await self._checked_addresses(host)
            except OutboundError as error:
                failure = error
                continue
            for address in addresses[: MAX_ADDRESSES - tried]:
                tried += 1
                authority = f"[{address}]" if address.version == 6 else str(address)
                try:
                    return await self._session.request(
                        method,
                        URL(f"{url.scheme}://{authority}:{port}{url.raw_path_qs}", encoded=True),
                        headers={**headers, hdrs.HOST: _host_header(url)},
                        data=body,
                        server_hostname=url.raw_host if url.scheme == "https" else None,
                        allow_redirects=False,
                    )
                except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                    failure = ConnectFailed(f"{host} ({address}) port {port}: {error}")
                except aiohttp.ClientError as error:
                    raise BrokenResponse(f"{type(error).__name__} before a response") from error
        raise failure or ConnectFailed(f"{url.raw_host} offers no such service")

    async def _checked_addresses(self, host: str) -> list[IpAddress]:
        """The addresses of a host that may be connected to. Raises AddressRefused, ConnectFailed."""
        try:
            found: Sequence[IpAddress] = [ip_address(host)]
        except ValueError:
            try:
                found = [ip_address(text) for text in await self._resolve(host)]
            except (OSError, UnicodeError, ValueError) as error:
                raise ConnectFailed(f"{host} has no address: {error}") from error
        allowed = [address for address in found if may_connect(address, self._allowed_ranges)]
        if not allowed:
            raise AddressRefused(f"{host} has no address that may be connected to")
        return allowed


def _requested_url(text: str) -> URL:
    url = URL(text, encoded=True)
    target = url.raw_path_qs
    host = url.raw_host
    if url.scheme not in ("http", "https") or not host or not host.isascii() or url.raw_user is not None:
        raise ValueError(f"{url.scheme}://{host or ''} is not the URL of an HTTP server")
    if not _is_encoded(target) or len(target) > MAX_TARGET_CHARS:
        raise ValueError("the path of a URL is not percent-encoded, or too long")
    return url


def _is_encoded(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _redirected_url(url: URL, location: str) -> URL:
    """Where a redirect leads. Raises BrokenResponse for where we do not go: https never becomes http."""
    try:
        target = _requested_url(str(url.join(URL(location, encoded=_is_encoded(location)))))
    except ValueError as error:
        raise BrokenResponse("a redirect to what is no URL of an HTTP server") from error
    if url.scheme == "https" and target.scheme != "https":
        raise BrokenResponse("a redirect from https to http")
    return target


def _without_credentials(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "authorization"}


def _host_header(url: URL) -> str:
    """Host and port as the URL has them."""
    port = "" if url.explicit_port is None else f":{url.explicit_port}"
    return f"{url.host_subcomponent}{port}"


def _tls_context(ca_files: Sequence[Path], *, verify_certificates: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in ca_files:
        try:
            context.load_verify_locations(cafile=path)
        except OSError as error:
            problem = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise LairError(f"federation.trusted_ca_files: {path}: {problem}") from None
    if not verify_certificates:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
