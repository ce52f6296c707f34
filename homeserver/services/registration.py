"""Registering an account.

Source: Client-Server API, "Account registration", "Guest Access".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from homeserver.errors import Forbidden, Unauthorized
from homeserver.protocol.identifiers import DeviceId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.accounts import Accounts
from homeserver.services.registration_tokens import RegistrationTokens
from homeserver.services.sessions import IssuedTokens, NewSession, Sessions
from homeserver.services.ui_auth_stages import DUMMY, REGISTRATION_TOKEN
from homeserver.services.user_interactive_auth import Flows, Operation, Proof, UserInteractiveAuth
from storage.database import Database

REGISTER: Final = Operation("POST", "/_matrix/client/v3/register")


@dataclass(frozen=True)
class AccountRequest:
    """What a client asks for when it registers; `is_empty` when its request had nothing but `auth`."""

    username: str | None = None
    password: str | None = None
    inhibit_login: bool = False
    session: NewSession = field(default_factory=NewSession)
    is_empty: bool = False


@dataclass(frozen=True)
class RegisteredAccount:
    """A new account, and the tokens of its first session unless the client wanted none."""

    user_id: UserId
    tokens: IssuedTokens | None


@dataclass(frozen=True)
class Registration:
    """Registers accounts at the word of those who want one."""

    database: Database
    accounts: Accounts
    sessions: Sessions
    registration_tokens: RegistrationTokens
    user_interactive_auth: UserInteractiveAuth
    enabled: bool
    require_token: bool
    guests: bool

    async def check_available(self, username: str) -> None:
        """Raises UserInUse, InvalidUsername, or Forbidden where nobody may register.

        Source: Client-Server API, "GET /_matrix/client/v3/register/available".
        """
        self._check_enabled()
        await self.accounts.check_available(self.accounts.new_user_id(username))

    async def is_usable_token(self, token: str) -> bool:
        """Whether a registration token can be used now. Raises Forbidden where nobody may register.

        Source: Client-Server API, "GET /_matrix/client/v1/register/m.login.registration_token/validity".
        """
        self._check_enabled()
        return await self.registration_tokens.is_usable(token)

    async def register(self, wanted: AccountRequest, auth: JsonObject | None) -> RegisteredAccount:
        """Make an account, once user-interactive authentication is complete.

        Raises UiAuthRequired until then; InvalidUsername, UserInUse and InvalidParam (the password) at any
        time; Forbidden where nobody may register.
        Source: Client-Server API, "POST /_matrix/client/v3/register".
        """
        self._check_enabled()
        if wanted.username is not None:
            await self.accounts.check_available(self.accounts.new_user_id(wanted.username))
        proof = await self.user_interactive_auth.authenticate(
            REGISTER,
            self._flows(),
            auth,
            has_params=not wanted.is_empty,
            remember=lambda: self._remembered(wanted),
        )
        if proof.params is None:
            return await self._make(wanted, await self._password_hash(wanted), proof)
        earlier = _recalled(proof.params, wanted.session.address)
        return await self._make(earlier, proof.params["password_hash"], proof)

    async def register_guest(self, display_name: str | None, address: str | None) -> RegisteredAccount:
        """Make a guest account, whose name and device we choose. Raises Forbidden where guests may not come.

        Source: Client-Server API, "Guest Access".
        """
        if not self.guests:
            raise Forbidden("this server has no guest accounts")
        user_id = self.accounts.new_user_id(None)
        user_nid = await self.accounts.atoms.nid(user_id)
        async with self.database.transaction() as tx:
            await self.accounts.add(tx, user_id, user_nid, None, is_guest=True)
            session = NewSession(display_name=display_name, address=address)
            issued = await self.sessions.open(tx, user_id, user_nid, session)
        return RegisteredAccount(user_id, self.sessions.opened(issued))

    async def _make(
        self, wanted: AccountRequest, password_hash: str | None, proof: Proof
    ) -> RegisteredAccount:
        user_id = self.accounts.new_user_id(wanted.username)
        await self.accounts.check_available(user_id)
        user_nid = await self.accounts.atoms.nid(user_id)
        issued = None
        async with self.database.transaction() as tx:
            await self.accounts.add(tx, user_id, user_nid, password_hash)
            await self.user_interactive_auth.finish(tx, proof)
            token = proof.proved.get(REGISTRATION_TOKEN)
            if token is not None and not await self.registration_tokens.use(tx, token):
                raise Unauthorized("this registration token has been used up")
            if not wanted.inhibit_login:
                issued = await self.sessions.open(tx, user_id, user_nid, wanted.session)
        return RegisteredAccount(user_id, None if issued is None else self.sessions.opened(issued))

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise Forbidden("registration is closed on this server")

    def _flows(self) -> Flows:
        return [[REGISTRATION_TOKEN if self.require_token else DUMMY]]

    async def _password_hash(self, wanted: AccountRequest) -> str | None:
        if wanted.password is None:
            return None
        return await self.accounts.passwords.hash(wanted.password)

    async def _remembered(self, wanted: AccountRequest) -> JsonObject:
        return {
            "username": wanted.username,
            "password_hash": await self._password_hash(wanted),
            "inhibit_login": wanted.inhibit_login,
            "device_id": wanted.session.device_id,
            "display_name": wanted.session.display_name,
            "wants_refresh_token": wanted.session.wants_refresh_token,
        }


def _recalled(params: JsonObject, address: str | None) -> AccountRequest:
    device_id = params["device_id"]
    session = NewSession(
        None if device_id is None else DeviceId(device_id),
        params["display_name"],
        params["wants_refresh_token"],
        address,
    )
    return AccountRequest(params["username"], None, params["inhibit_login"], session)
