"""What users do to their own account after proving that they still know its password.

Source: Client-Server API, "Account management".
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.errors import Forbidden, MissingParam
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.accounts import Accounts
from homeserver.services.ui_auth_stages import PASSWORD
from homeserver.services.user_interactive_auth import Flows, Operation, UserInteractiveAuth
from storage.database import Database


@dataclass(frozen=True)
class PasswordRequest:
    """The new password; None in a request that has nothing but `auth`."""

    new_password: str | None
    logout_devices: bool = True


@dataclass(frozen=True)
class OwnAccount:
    """Changes and ends accounts at their users' word."""

    database: Database
    accounts: Accounts
    user_interactive_auth: UserInteractiveAuth

    async def change_password(
        self, requester: Requester, wanted: PasswordRequest, auth: JsonObject | None
    ) -> None:
        """Give the requester another password; the requester's device stays logged in.

        Raises UiAuthRequired until the user has given the old password, InvalidParam for the new one.
        Source: Client-Server API, "POST /_matrix/client/v3/account/password".
        """

        async def remember() -> JsonObject:
            new = wanted.new_password
            return {
                "password_hash": None if new is None else await self.accounts.passwords.hash(new),
                "logout_devices": wanted.logout_devices,
            }

        operation = Operation("POST", "/_matrix/client/v3/account/password", requester)
        flows = await self.flows(requester)
        has_params = wanted.new_password is not None
        proof = await self.user_interactive_auth.authenticate(
            operation, flows, auth, has_params=has_params, remember=remember
        )
        params = await remember() if proof.params is None else proof.params
        if params["password_hash"] is None:
            raise MissingParam("new_password is missing")
        async with self.database.transaction() as tx:
            await self.user_interactive_auth.finish(tx, proof)
            ended = await self.accounts.store_password(
                tx,
                requester.user_nid,
                params["password_hash"],
                keep_device_nid=requester.device_nid,
                logout_devices=params["logout_devices"],
            )
        self.accounts.sessions.access_tokens.forget(ended)

    async def deactivate(
        self, requester: Requester, *, erase: bool, is_empty: bool, auth: JsonObject | None
    ) -> None:
        """End the requester's account for ever; `is_empty` says that the request had nothing but `auth`.

        Raises UiAuthRequired until the user has given the password.
        Source: Client-Server API, "POST /_matrix/client/v3/account/deactivate".
        """

        async def remember() -> JsonObject:
            return {"erase": erase}

        operation = Operation("POST", "/_matrix/client/v3/account/deactivate", requester)
        flows = await self.flows(requester)
        proof = await self.user_interactive_auth.authenticate(
            operation, flows, auth, has_params=not is_empty, remember=remember
        )
        async with self.database.connection() as tx:
            await self.user_interactive_auth.finish(tx, proof)
        params = await remember() if proof.params is None else proof.params
        await self.accounts.deactivate(requester.user_id, erase=params["erase"])

    async def flows(self, requester: Requester) -> Flows:
        """How a user proves who is asking. Raises Forbidden for one who has no way to."""
        user = await self.accounts.find(requester.user_id)
        if user is None or user.password_hash is None:
            raise Forbidden("this account has no password to confirm this with")
        return [[PASSWORD]]
