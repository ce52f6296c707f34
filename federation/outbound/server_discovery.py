"""From a server name to where its requests go.

Source: Server-Server API, "Resolving server names".
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import Final

from federation.outbound.srv_records import SrvRecords, SrvUnknown
from homeserver.http_client import HttpClient, HttpResponse, OutboundError, Place
from homeserver.protocol.errors import BadJson, InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, split_host_port
from homeserver.protocol.strict_json import parse_json

DEFAULT_PORT: Final = 8448
WELL_KNOWN_PORT: Final = 443
WELL_KNOWN: Final = "/.well-known/matrix/server"
WELL_KNOWN_TIMEOUT_S: Final = 15.0
MAX_WELL_KNOWN_BYTES: Final = 50 * 1024
MAX_REDIRECTS: Final = 10
MAX_PORT: Final = 65535
CACHE_SIZE: Final = 10_000

_MINUTE_MS: Final = 60 * 1000
_HOUR_MS: Final = 60 * _MINUTE_MS
DEFAULT_LIFETIME_MS: Final = 24 * _HOUR_MS
LONGEST_LIFETIME_MS: Final = 48 * _HOUR_MS
SHORTEST_LIFETIME_MS: Final = 5 * _MINUTE_MS
FIRST_RETRY_MS: Final = _MINUTE_MS
LONGEST_RETRY_MS: Final = _HOUR_MS
_REFRESHED_EARLY: Final = 0.2
"""The last part of a lifetime: a new answer is asked for while the old one still serves if that fails."""
_JITTER: Final = 0.1

_MAX_AGE: Final = re.compile(r"max-age\s*=\s*\"?([0-9]{1,10})\"?\Z", re.IGNORECASE)
_SERVICES: Final = ("_matrix-fed._tcp", "_matrix._tcp")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where requests to a server go.

    `authority`: what the Host header says; the certificate has to be for its host. `places`: where to
    connect to, one after the other; none where the server says that it takes no requests.
    """

    authority: str
    places: Sequence[Place]


@dataclass(frozen=True, slots=True)
class _WellKnown:
    """What is known of a host's well-known file. Times are ms.

    `delegated`: the server name in it, None where it has none that can be used. `refresh_from`: when the file
    is asked for again. `failures`: how often that has failed since, for a reason that may pass.
    """

    delegated: ServerName | None
    found: int
    refresh_from: int
    failures: int = 0


class ServerDiscovery:
    """Finds servers and remembers what it found. `clock`: ms."""

    def __init__(
        self,
        client: HttpClient,
        srv_records: SrvRecords,
        clock: Callable[[], int],
        *,
        well_known_port: int = WELL_KNOWN_PORT,
    ) -> None:
        self._client = client
        self._srv_records = srv_records
        self._clock = clock
        self._well_known_port = well_known_port
        self._random = SystemRandom()
        self._well_known: OrderedDict[str, _WellKnown] = OrderedDict()
        self._asking: dict[str, asyncio.Future[None]] = {}

    async def find(self, server_name: ServerName) -> ServerAddress:
        """Where requests to a server go. Raises InvalidIdentifier for what is no server name."""
        host, port = _host_and_port(server_name)
        if port is None and not _is_address(host):
            delegated = await self._delegated(host)
            if delegated is not None:
                return await self._find_without_well_known(delegated)
        return await self._find_without_well_known(server_name)

    async def _find_without_well_known(self, server_name: ServerName) -> ServerAddress:
        """The steps for an address, a port, SRV records, or none of them."""
        host, port = _host_and_port(server_name)
        if port is None and not _is_address(host):
            for service in _SERVICES:
                try:
                    places = await self._srv_records.find(f"{service}.{host.rstrip('.')}")
                except SrvUnknown:
                    break
                if places is not None:
                    return ServerAddress(server_name, places)
        return ServerAddress(server_name, [(host.strip("[]"), DEFAULT_PORT if port is None else port)])

    async def _delegated(self, host: str) -> ServerName | None:
        """The server name in a host's well-known file."""
        while True:
            known = self._well_known.get(host)
            if known is not None and self._clock() < known.refresh_from:
                return known.delegated
            if (asking := self._asking.get(host)) is None:
                break
            await asyncio.shield(asking)
        asking = self._asking[host] = asyncio.get_running_loop().create_future()
        try:
            known = self._well_known[host] = await self._ask(host, known)
            self._well_known.move_to_end(host)
            if len(self._well_known) > CACHE_SIZE:
                self._well_known.popitem(last=False)
        finally:
            del self._asking[host]
            asking.set_result(None)
        return known.delegated

    async def _ask(self, host: str, old: _WellKnown | None) -> _WellKnown:
        try:
            response = await self._client.request(
                "GET",
                f"https://{host}{WELL_KNOWN}",
                places=[(host, self._well_known_port)],
                timeout_s=WELL_KNOWN_TIMEOUT_S,
                max_response_bytes=MAX_WELL_KNOWN_BYTES,
                max_redirects=MAX_REDIRECTS,
            )
        except OutboundError:
            return self._failed(old, temporary=True)
        delegated = _server_in(response)
        if delegated is None:
            return self._failed(old, temporary=response.status == 429 or response.status >= 500)
        now = self._clock()
        used = (1 - _REFRESHED_EARLY) * (1 - _JITTER * self._random.random())
        return _WellKnown(delegated, now, now + int(_lifetime_ms(response.headers, now) * used))

    def _failed(self, old: _WellKnown | None, *, temporary: bool) -> _WellKnown:
        """After a failure: what was found before serves on for a while if the failure may pass."""
        now = self._clock()
        if not temporary:
            return _WellKnown(None, now, now + LONGEST_RETRY_MS)
        failures = 0 if old is None else old.failures
        retry = now + min(FIRST_RETRY_MS << min(failures, 10), LONGEST_RETRY_MS)
        if old is not None and old.delegated is not None and retry <= old.found + LONGEST_LIFETIME_MS:
            return _WellKnown(old.delegated, old.found, retry, failures + 1)
        return _WellKnown(None, now, retry, failures + 1)


def _server_in(response: HttpResponse) -> ServerName | None:
    """The server name in a well-known file; None for any other response."""
    if response.status != 200:
        return None
    try:
        content = parse_json(response.body)
        name = content.get("m.server") if isinstance(content, dict) else None
        if not isinstance(name, str):
            return None
        _host_and_port(name)
    except (BadJson, InvalidIdentifier):
        return None
    return ServerName(name)


def _host_and_port(server_name: str) -> tuple[str, int | None]:
    host, port = split_host_port(server_name)
    if port is not None and not 0 < port <= MAX_PORT:
        raise InvalidIdentifier(f"{server_name!r} has an impossible port")
    return host, port


def _lifetime_ms(headers: Mapping[str, str], now: int) -> int:
    """How long a well-known file may be kept. Source: RFC 9111, "Calculating Freshness Lifetime"."""
    lifetime = DEFAULT_LIFETIME_MS
    directives = [part.strip().lower() for part in headers.get("Cache-Control", "").split(",")]
    ages = [int(match[1]) for part in directives if (match := _MAX_AGE.match(part)) is not None]
    if not {"no-store", "no-cache"}.isdisjoint(directives):
        lifetime = 0
    elif ages:
        lifetime = min(ages) * 1000
    elif "Expires" in headers:
        try:
            expires = parsedate_to_datetime(headers["Expires"]).timestamp()
            lifetime = int(expires * 1000) - now
        except (ValueError, OverflowError):
            lifetime = 0
    return min(max(lifetime, SHORTEST_LIFETIME_MS), LONGEST_LIFETIME_MS)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
