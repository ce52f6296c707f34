"""The access token of a request -> Requester.

Source: Client-Server API, "Using access tokens".
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs

from homeserver.errors import GuestAccessForbidden, MissingToken
from homeserver.http.endpoints import Authentication
from homeserver.http.request import Request
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

_SCHEME: Final = "bearer "


GUESTS_MAY: Final = frozenset(
    {
        "get_token_owner",
        "logout",
        "logout_all",
        "get_capabilities",
        "define_filter",
        "get_filter",
        "set_profile_field",
        "delete_profile_field",
        "sync",
        "get_joined_rooms",
        "get_public_rooms",
        "query_public_rooms",
        "get_room_state",
        "get_room_state_with_key",
        "get_members_by_room",
        "get_joined_members_by_room",
        "get_room_events",
        "get_one_room_event",
        "get_event_context",
        "join_room",
        "join_room_by_id",
        "leave_room",
        "forget_room",
        "send_message",
        "set_room_state_with_key",
    }
)
"""The handlers that guests may call. Source: "Guest Access"; what every client needs to read is added."""


async def authenticate(services: Services, request: Request) -> Requester:
    """Who sends a request. Raises MissingToken, UnknownToken, and GuestAccessForbidden."""
    token = access_token_of(request, allow_in_query=services.config.access_tokens.allow_in_query)
    if token is None:
        raise MissingToken("this request needs an access token")
    requester = services.access_tokens.remembered(token)
    if requester is None:
        requester = await services.access_tokens.authenticate(token)
    if requester.is_guest and (request.endpoint is None or request.endpoint.name not in GUESTS_MAY):
        raise GuestAccessForbidden("guests may not do this")
    return requester


def access_token_of(request: Request, *, allow_in_query: bool) -> str | None:
    """The access token that a request carries, in its header or, where that is allowed, in its query."""
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is not None:
        return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else None
    return request.query_value("access_token") if allow_in_query else None


by_access_token: Final = Authentication[Services, Requester](
    Requester, authenticate, lambda requester: requester.user_id
)
