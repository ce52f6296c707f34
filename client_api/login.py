"""Client-Server API, sections "Login", "Refreshing access tokens"."""

from __future__ import annotations

import time
from typing import Final

from client_api.endpoints import client_endpoints
from client_api.session_fields import SessionFields, SessionReply
from homeserver.errors import BadRequest, MissingParam
from homeserver.http.models import Body, Reply
from homeserver.http.request import Request
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.login_identifiers import user_of

endpoints = client_endpoints()

PASSWORD: Final = "m.login.password"  # noqa: S105 -- the name of a login type


class LoginFlow(Reply):
    """A way to log in."""

    type: str


class LoginFlows(Reply):
    """The ways to log in."""

    flows: list[LoginFlow]


class Credentials(SessionFields):
    """What proves who logs in, with the keys from before there were identifiers."""

    type: str
    identifier: JsonObject | None = None
    user: str | None = None
    medium: str | None = None
    address: str | None = None
    password: str | None = None


class RefreshRequest(Body):
    """A refresh token."""

    refresh_token: str


class RefreshedTokens(Reply):
    """A new pair of tokens."""

    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None


@endpoints.get("/_matrix/client/v3/login", public=True)
async def get_login_flows() -> LoginFlows:
    """List the ways to log in."""
    return LoginFlows(flows=[LoginFlow(type=PASSWORD)])


@endpoints.post("/_matrix/client/v3/login", public=True, rate_limit="login", max_body_bytes=65536)
async def login(services: Services, body: Credentials, request: Request) -> SessionReply:
    """Log in."""
    if body.type != PASSWORD:
        raise BadRequest("this type of login is not known")
    user = user_of(body.model_dump(include={"identifier", "user", "medium", "address"}, exclude_none=True))
    if body.password is None:
        raise MissingParam("password is missing")
    user_id = services.accounts.local_user_id(user) if user is not None else None
    if user_id is not None:
        request.listener.rate_limiter.check("login", user_id, time.monotonic())
    issued = await services.login.with_password(user, body.password, body.new_session(request.client_address))
    return SessionReply.of(issued, services.config.public_base_url)


@endpoints.post("/_matrix/client/v3/logout")
async def logout(services: Services, requester: Requester) -> Reply:
    """End the device that asks."""
    await services.sessions.end(requester)
    return Reply()


@endpoints.post("/_matrix/client/v3/logout/all")
async def logout_all(services: Services, requester: Requester) -> Reply:
    """End every device of the user who asks."""
    await services.sessions.end_all(requester.user_nid)
    return Reply()


@endpoints.post("/_matrix/client/v3/refresh", public=True, rate_limit="message")
async def refresh(services: Services, body: RefreshRequest) -> RefreshedTokens:
    """Give a new pair of tokens for a refresh token."""
    issued = await services.sessions.refresh(body.refresh_token)
    return RefreshedTokens(
        access_token=issued.access_token,
        refresh_token=issued.refresh_token,
        expires_in_ms=issued.expires_in_ms,
    )
