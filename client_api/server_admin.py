"""Administration API in the form that tools for Synapse call: registration with a shared secret."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from client_api.endpoints import client_endpoints
from client_api.session_fields import SessionFields, SessionReply
from homeserver.http.models import Reply
from homeserver.http.request import RequestInfo
from homeserver.services import Services
from homeserver.services.shared_secret_registration import SharedSecretRequest

endpoints = client_endpoints("admin")


class Nonce(Reply):
    """What the registration that follows has to repeat."""

    nonce: str


class NewAccount(SessionFields):
    """The account that is wanted, and the HMAC that proves knowledge of the secret."""

    nonce: str
    username: Annotated[str, Field(min_length=1)]
    password: Annotated[str, Field(min_length=1)]
    mac: str
    admin: bool = False
    user_type: Literal["bot", "support"] | None = None


@endpoints.get("/_synapse/admin/v1/register", public=True)
async def get_registration_nonce(services: Services) -> Nonce:
    """Give a nonce for one registration."""
    return Nonce(nonce=await services.shared_secret_registration.issue_nonce())


@endpoints.post("/_synapse/admin/v1/register", public=True, max_body_bytes=65536)
async def register_with_shared_secret(
    services: Services, body: NewAccount, info: RequestInfo
) -> SessionReply:
    """Make an account for someone who knows the secret."""
    wanted = SharedSecretRequest(
        body.nonce, body.username, body.password, body.admin, body.user_type, body.mac
    )
    issued = await services.shared_secret_registration.register(wanted, body.new_session(info.client_address))
    return SessionReply.of(issued)
