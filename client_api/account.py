"""Client-Server API, section "Account management"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from homeserver.http.models import Body, OptionalBody, Reply
from homeserver.protocol.identifiers import DeviceId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.own_account import PasswordRequest

endpoints = client_endpoints()


class TokenOwner(Reply):
    """Whose an access token is."""

    user_id: UserId
    device_id: DeviceId
    is_guest: bool


class NewPassword(Body):
    """A new password, and whether the user's other devices have to log in with it."""

    auth: JsonObject | None = None
    new_password: str | None = None
    logout_devices: bool | None = None


class Deactivation(OptionalBody):
    """How an account is to end; there is no identity server that anything would be unbound from."""

    auth: JsonObject | None = None
    erase: bool | None = None


class Deactivated(Reply):
    """An account has ended."""

    id_server_unbind_result: str = "success"


@endpoints.get("/_matrix/client/v3/account/whoami")
async def get_token_owner(requester: Requester) -> TokenOwner:
    """Tell whose the access token is."""
    return TokenOwner(user_id=requester.user_id, device_id=requester.device_id, is_guest=requester.is_guest)


@endpoints.post("/_matrix/client/v3/account/password", rate_limit="login", max_body_bytes=65536)
async def change_password(services: Services, requester: Requester, body: NewPassword) -> Reply:
    """Give the user who asks another password."""
    wanted = PasswordRequest(body.new_password, body.logout_devices is not False)
    await services.own_account.change_password(requester, wanted, body.auth)
    return Reply()


@endpoints.post("/_matrix/client/v3/account/deactivate", rate_limit="login", max_body_bytes=65536)
async def deactivate_account(services: Services, requester: Requester, body: Deactivation) -> Deactivated:
    """End the account of the user who asks."""
    await services.own_account.deactivate(
        requester, erase=bool(body.erase), is_empty=body.model_fields_set <= {"auth"}, auth=body.auth
    )
    return Deactivated()
