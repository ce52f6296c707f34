"""Client-Server API, section "Account registration"."""

from __future__ import annotations

import time
from typing import Literal

from client_api.endpoints import client_endpoints
from client_api.session_fields import SessionFields, SessionReply
from homeserver.http.models import Query, Reply
from homeserver.http.rate_limit import address_key
from homeserver.http.request import Request
from homeserver.protocol.identifiers import server_name_of
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.registration import AccountRequest, RegisteredAccount

endpoints = client_endpoints()


class RegisterQuery(Query):
    """Which kind of account is wanted."""

    kind: Literal["guest", "user"] = "user"


class NewAccount(SessionFields):
    """The account and session that are wanted."""

    auth: JsonObject | None = None
    username: str | None = None
    password: str | None = None
    inhibit_login: bool | None = None

    def account_request(self, address: str) -> AccountRequest:
        """What is asked for, from an IP address."""
        return AccountRequest(
            username=self.username,
            password=self.password,
            inhibit_login=bool(self.inhibit_login),
            session=self.new_session(address),
            is_empty=self.model_fields_set <= {"auth"},
        )


class UsernameQuery(Query):
    """A user name that someone thinks of."""

    username: str


class Availability(Reply):
    """A user name can be had; for one that cannot, the answer is an error."""

    available: Literal[True] = True


class TokenQuery(Query):
    """A registration token."""

    token: str


class Validity(Reply):
    """Whether a registration token can be used now."""

    valid: bool


@endpoints.post("/_matrix/client/v3/register", public=True, rate_limit="message", max_body_bytes=65536)
async def register(
    services: Services, query: RegisterQuery, body: NewAccount, request: Request
) -> SessionReply:
    """Make an account.

    Each request counts as any other; an attempt counts for the limit of registrations too. One without `auth`
    is none: it only asks how to register, and one who does that first still pays once for an account.
    """
    address = request.client_address
    if query.kind == "guest" or body.auth:
        request.listener.rate_limiter.check("registration", address_key(address), time.monotonic())
    if query.kind == "guest":
        display_name = body.initial_device_display_name
        return _reply(await services.registration.register_guest(display_name, address))
    return _reply(await services.registration.register(body.account_request(address), body.auth))


@endpoints.get("/_matrix/client/v3/register/available", public=True, rate_limit="message")
async def check_username_availability(services: Services, query: UsernameQuery) -> Availability:
    """Tell whether a user name is valid and free."""
    await services.registration.check_available(query.username)
    return Availability()


@endpoints.get(
    "/_matrix/client/v1/register/m.login.registration_token/validity", public=True, rate_limit="login"
)
async def registration_token_validity(services: Services, query: TokenQuery) -> Validity:
    """Tell whether a registration token can be used."""
    return Validity(valid=await services.registration.is_usable_token(query.token))


def _reply(registered: RegisteredAccount) -> SessionReply:
    if registered.tokens is not None:
        return SessionReply.of(registered.tokens)
    return SessionReply(user_id=registered.user_id, home_server=server_name_of(registered.user_id))
