"""The access token of a request -> Requester.

Source: Client-Server API, "Using access tokens".
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs

from homeserver.errors import MissingToken
from homeserver.http.endpoints import Authentication
from homeserver.http.request import Request
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

_SCHEME: Final = "bearer "


async def authenticate(services: Services, request: Request) -> Requester:
    """Who sends a request. Raises MissingToken, UnknownToken."""
    token = access_token_of(request, allow_in_query=services.config.access_tokens.allow_in_query)
    if token is None:
        raise MissingToken("this request needs an access token")
    requester = services.access_tokens.remembered(token)
    return requester if requester is not None else await services.access_tokens.authenticate(token)


def access_token_of(request: Request, *, allow_in_query: bool) -> str | None:
    """The access token that a request carries, in its header or, where that is allowed, in its query."""
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is not None:
        return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else None
    return request.query_value("access_token") if allow_in_query else None


by_access_token: Final = Authentication[Services, Requester](
    Requester, authenticate, lambda requester: requester.user_id
)
