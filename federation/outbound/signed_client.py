"""Requests to other servers: signed, limited in time and size, and held back from servers that fail.

Source: Server-Server API, "Request Authentication", "Server discovery".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final, Protocol
from urllib.parse import quote, urlencode

import orjson

from federation.outbound.server_discovery import ServerDiscovery
from homeserver.http_client import HttpClient, HttpResponse, OutboundError
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadJson, InvalidIdentifier
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import XMatrix
from homeserver.protocol.signing import SigningKey
from homeserver.protocol.strict_json import MAX_BODY_DEPTH, JsonObject, parse_json_object
from homeserver.protocol.unpadded_base64 import encode_base64
from homeserver.server_policy import ServerPolicy

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_MAX_RESPONSE_BYTES: Final = 1024 * 1024
_LARGE_BODY_BYTES: Final = 256 * 1024
_LONGEST_ERROR_CHARS: Final = 300
_FAILING: Final = frozenset({401, 429})


class FederationError(Exception):
    """Another server did not do what it was asked."""

    def __init__(self, destination: ServerName, reason: str) -> None:
        super().__init__(f"{destination}: {reason}")
        self.destination = destination
        self.reason = reason


class DestinationDenied(FederationError):
    """We do not talk to that server."""


class BackingOff(FederationError):
    """The server failed lately, so it was not asked; `retry_ts` (ms) says when it will be."""

    def __init__(self, destination: ServerName, retry_ts: int) -> None:
        super().__init__(destination, "it failed lately, and is not asked yet")
        self.retry_ts = retry_ts


class Unreachable(FederationError):
    """No response came, or one that cannot be read. Whether the request arrived is unknown."""


class RequestRefused(FederationError):
    """The server answered with an error: its status, errcode and text, "" where it gave none.

    `room_version`: that of a room which is of another version than was asked for, where it says so.
    """

    def __init__(
        self, destination: ServerName, status: int, errcode: str, error: str, room_version: str = ""
    ) -> None:
        super().__init__(destination, f"{status} {errcode} {error}".rstrip())
        self.status = status
        self.errcode = errcode
        self.error = error
        self.room_version = room_version


class InvalidResponse(FederationError):
    """The server answered 200, but not with what was asked for."""


class BackOff(Protocol):
    """Remembers which servers fail, and for how long they are left alone."""

    def retry_ts(self, destination: ServerName) -> int | None:
        """When a server may be asked again (ms); None for at once."""

    async def failed(self, destination: ServerName, retry_after_ms: int) -> None:
        """A server failed, and asks to be left alone for so long at least."""

    async def succeeded(self, destination: ServerName) -> None:
        """A server answered."""


class SignedClient:
    """Sends requests to other servers. `clock`: ms."""

    def __init__(
        self,
        client: HttpClient,
        discovery: ServerDiscovery,
        server_name: ServerName,
        key: SigningKey,
        policy: ServerPolicy,
        back_off: BackOff,
        clock: Callable[[], int],
    ) -> None:
        self._client = client
        self._discovery = discovery
        self._server_name = server_name
        self._key = key
        self._policy = policy
        self._back_off = back_off
        self._clock = clock

    async def send(
        self,
        method: str,
        destination: ServerName,
        uri: str,
        content: JsonObject | orjson.Fragment | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_response_bytes: int = DEFAULT_MAX_RESPONSE_BYTES,
        ignore_back_off: bool = False,
        must_accept: bool = False,
    ) -> JsonObject:
        """Send a signed request; the JSON object of its response.

        `uri`: path and query, as `uri_of` makes them. `content`: the body, for canonical_json.
        Discovery and response together take `timeout_s` at most. `ignore_back_off`: ask now; how it ends
        counts all the same. `must_accept`: the server fails if it refuses, whatever the status. Raises
        DestinationDenied, BackingOff, Unreachable, RequestRefused, InvalidResponse.
        """
        self._check(destination)
        retry_ts = None if ignore_back_off else self._back_off.retry_ts(destination)
        if retry_ts is not None and retry_ts > self._clock():
            raise BackingOff(destination, retry_ts)
        body = None if content is None else canonical_json(content)
        headers = {"Authorization": self._authorization(method, destination, uri, body)}
        try:
            response = await self._exchange(
                method, destination, uri, headers, body, timeout_s, max_response_bytes
            )
        except Unreachable:
            await self._back_off.failed(destination, 0)
            raise
        answer, problem = await _parsed(response)
        fails = response.status >= 500 or response.status in _FAILING or (response.status == 200 and problem)
        if fails or (must_accept and response.status != 200):
            await self._back_off.failed(destination, _retry_after_ms(response, self._clock()))
        else:
            await self._back_off.succeeded(destination)
        return _accepted(destination, response.status, answer, problem)

    async def send_unsigned(
        self,
        method: str,
        destination: ServerName,
        uri: str,
        content: JsonObject | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_response_bytes: int = DEFAULT_MAX_RESPONSE_BYTES,
    ) -> JsonObject:
        """Ask for what everybody may ask for, whether the server failed lately or not; else as `send`."""
        self._check(destination)
        body = None if content is None else canonical_json(content)
        response = await self._exchange(method, destination, uri, {}, body, timeout_s, max_response_bytes)
        return _accepted(destination, response.status, *await _parsed(response))

    def _check(self, destination: ServerName) -> None:
        if not self._policy.permits(destination):
            raise DestinationDenied(destination, "we do not talk to this server")

    def _authorization(self, method: str, destination: ServerName, uri: str, body: bytes | None) -> str:
        signed = {"method": method, "uri": uri, "origin": self._server_name, "destination": destination}
        message = canonical_json(signed if body is None else {**signed, "content": orjson.Fragment(body)})
        signature = encode_base64(self._key.sign(message))
        return XMatrix(self._server_name, destination, self._key.key_id, signature).to_header()

    async def _exchange(
        self,
        method: str,
        destination: ServerName,
        uri: str,
        headers: dict[str, str],
        body: bytes | None,
        timeout_s: float,
        max_response_bytes: int,
    ) -> HttpResponse:
        """One request and its response. Raises Unreachable, DestinationDenied."""
        if body is not None:
            headers = {**headers, "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout_s):
                address = await self._discovery.find(destination)
                return await self._client.request(
                    method,
                    f"https://{address.authority}{uri}",
                    places=address.places,
                    headers=headers,
                    body=body,
                    timeout_s=timeout_s,
                    max_response_bytes=max_response_bytes,
                )
        except TimeoutError:
            raise Unreachable(destination, f"no response within {timeout_s:g} s") from None
        except (OutboundError, InvalidIdentifier) as error:
            log.debug("%s %s of %r failed: %s", method, uri, destination, error)
            raise Unreachable(destination, f"{type(error).__name__}: {error}") from error


def uri_of(*segments: str, query: dict[str, str | list[str]] | None = None) -> str:
    """Path and query of a request: the first segment as it is, each further one percent-encoded.

    As in `uri_of("/_matrix/federation/v1/event", event_id)`.
    """
    path = segments[0] + "".join(f"/{quote(segment, safe='')}" for segment in segments[1:])
    return f"{path}?{urlencode(query, doseq=True, quote_via=quote)}" if query else path


async def _parsed(response: HttpResponse) -> tuple[JsonObject | None, str]:
    """The JSON object of a response, or what is wrong with it."""
    try:
        if len(response.body) > _LARGE_BODY_BYTES:
            return await asyncio.to_thread(parse_json_object, response.body, max_depth=MAX_BODY_DEPTH), ""
        return parse_json_object(response.body, max_depth=MAX_BODY_DEPTH), ""
    except BadJson as error:
        return None, str(error)


def _accepted(destination: ServerName, status: int, content: JsonObject | None, problem: str) -> JsonObject:
    """The object that came with status 200. Raises RequestRefused, InvalidResponse."""
    if status != 200:
        texts = (_text(content, key) for key in ("errcode", "error", "room_version"))
        raise RequestRefused(destination, status, *texts)
    if content is None:
        raise InvalidResponse(destination, problem)
    return content


def _text(content: JsonObject | None, key: str) -> str:
    value = None if content is None else content.get(key)
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_LONGEST_ERROR_CHARS])


def _retry_after_ms(response: HttpResponse, now: int) -> int:
    """How long a server asks to be left alone; 0 where it does not say. Source: RFC 9110, "Retry-After"."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return int(text[:9]) * 1000
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp() * 1000) - now) if text else 0
    except (ValueError, OverflowError):
        return 0
