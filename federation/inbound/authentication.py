"""The X-Matrix signature of a request -> origin.

Source: Server-Server API, "Request Authentication".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NewType

from aiohttp import hdrs, web

from homeserver.errors import BadJson, Forbidden, Unauthorized
from homeserver.http.endpoints import Authentication
from homeserver.http.request import Request
from homeserver.protocol import errors as protocol_errors
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import credentials_of, exact_content, signed_request
from homeserver.protocol.strict_json import MAX_BODY_DEPTH, JsonObject, parse_json
from homeserver.services import Services

_CONTENT: Final = web.RequestKey("signed_content", object)


@dataclass(frozen=True, slots=True)
class Origin:
    """The server that a request comes from."""

    server_name: ServerName


SignedContent = NewType("SignedContent", JsonObject)
"""The body of a signed request, any JSON object: parsed once, to check its signature."""


async def authenticate(services: Services, request: Request) -> Origin:
    """Who sends a request, whose body is then read and parsed.

    Raises Unauthorized; Forbidden for a server that we do not talk to, before its keys are fetched; what
    parse_json raises for a body that is no JSON.
    """
    try:
        credentials = credentials_of(request.headers.getall(hdrs.AUTHORIZATION, ()))
    except protocol_errors.BadSignature as error:
        raise Unauthorized(str(error)) from None
    origin, own_name = credentials[0].origin, services.config.server_name
    if credentials[0].destination not in (None, own_name):
        raise Unauthorized(f"destination is not {own_name}: check where its name leads")
    if origin == own_name:
        raise Unauthorized(f"origin is {own_name}, this server itself: sign with your own name")
    if not services.server_policy.permits(origin):
        raise Forbidden(f"this server is set up not to talk to {origin}: ask its admin")
    signed = signed_request(credentials, own_name, request.method, target_of(request))
    body = await request.read_body()
    if body:
        content = request[_CONTENT] = parse_json(body, max_depth=MAX_BODY_DEPTH)
        await _verify_with_content(services, origin, signed, body, content)
    else:
        await services.server_keys.verify_request(origin, signed)
    await services.destinations.succeeded(origin)
    return Origin(origin)


async def _verify_with_content(
    services: Services, origin: ServerName, signed: JsonObject, body: bytes, content: Any
) -> None:
    try:
        await services.server_keys.verify_request(origin, {**signed, "content": content})
    except Unauthorized:
        # Rarely the sender writes numbers otherwise than we do, and has signed them as it writes them.
        await services.server_keys.verify_request(origin, {**signed, "content": exact_content(body)})


def target_of(request: Request) -> str:
    """Path and query of a request, as they were sent."""
    target = request.raw_path
    return target if target.startswith("/") else request.rel_url.raw_path_qs


async def signed_content(_services: Services, request: Request) -> SignedContent:
    """The body of an authenticated request. Raises BadJson where it is no JSON object."""
    content = request.get(_CONTENT)
    if not isinstance(content, dict):
        raise BadJson("The request body must be a JSON object")
    return SignedContent(content)


by_signature: Final = Authentication[Services, Origin](
    Origin, authenticate, lambda origin: origin.server_name
)
