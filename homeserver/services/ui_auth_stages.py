"""The stages of user-interactive authentication: what each asks for and what it proves.

Source: Client-Server API, "User-Interactive Authentication API", "Authentication types".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from homeserver.errors import BadJson, Forbidden, MissingParam
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.accounts import Accounts
from homeserver.services.login_identifiers import user_of
from homeserver.services.registration_tokens import RegistrationTokens
from homeserver.services.user_interactive_auth import Operation, StageFailed

DUMMY: Final = "m.login.dummy"
PASSWORD: Final = "m.login.password"  # noqa: S105 -- the name of a stage
REGISTRATION_TOKEN: Final = "m.login.registration_token"  # noqa: S105 -- the name of a stage


class DummyStage:
    """Asks for nothing and proves nothing. Source: "Dummy Auth"."""

    async def attempt(self, auth: JsonObject, operation: Operation) -> str:
        """Always passes."""
        return ""


@dataclass(frozen=True)
class RegistrationTokenStage:
    """Proves that the client has a token of an admin, which is its result.

    Source: "Token-authenticated registration".
    """

    registration_tokens: RegistrationTokens

    async def attempt(self, auth: JsonObject, operation: Operation) -> str:
        """Raises StageFailed for a token that cannot be used; uses are counted when accounts are made."""
        token = _required_text(auth, "token")
        if not await self.registration_tokens.is_usable(token):
            raise StageFailed("M_UNAUTHORIZED", "this registration token is not valid")
        return token


@dataclass(frozen=True)
class PasswordStage:
    """Proves that the requester knows the password of the account. Source: "Password-based"."""

    accounts: Accounts

    async def attempt(self, auth: JsonObject, operation: Operation) -> str:
        """Raises StageFailed for a wrong password, Forbidden for credentials that are not the requester's."""
        if operation.requester is None:
            raise Forbidden("nobody is logged in")
        user = user_of(auth)
        password = _required_text(auth, "password")
        user_id = self.accounts.local_user_id(user) if user is not None else None
        if user_id != operation.requester.user_id:
            raise Forbidden("these are not the credentials of the user who is logged in")
        if await self.accounts.check_password(user_id, password) is None:
            raise StageFailed("M_FORBIDDEN", "the password is wrong")
        return user_id


def _required_text(auth: JsonObject, key: str) -> str:
    value = auth.get(key)
    if value is None:
        raise MissingParam(f"auth.{key} is missing")
    if not isinstance(value, str):
        raise BadJson(f"auth.{key} is not a string")
    return value
