"""Logging in.

Source: Client-Server API, "Login".
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.errors import Forbidden, UserDeactivated
from homeserver.services.accounts import Accounts
from homeserver.services.sessions import IssuedTokens, NewSession, Sessions
from storage import users
from storage.database import Database


@dataclass(frozen=True)
class Login:
    """Turns credentials into a session."""

    database: Database
    accounts: Accounts
    sessions: Sessions

    async def with_password(self, user: str | None, password: str, new_session: NewSession) -> IssuedTokens:
        """Log in the user of a localpart or user ID; None is someone who is not known here.

        Raises Forbidden for a wrong password and an unknown user alike, UserDeactivated.
        Source: Client-Server API, "POST /_matrix/client/v3/login".
        """
        user_id = self.accounts.local_user_id(user) if user is not None else None
        account = await self.accounts.check_password(user_id, password)
        if account is None:
            known = await self.accounts.find(user_id) if user_id is not None else None
            if known is not None and known.is_deactivated:
                raise UserDeactivated("this account has been deactivated")
            raise Forbidden("the user name or the password is wrong")
        async with self.database.transaction() as tx:
            if not await users.hold_unchanged(tx, account.user_nid, account.password_hash):
                raise Forbidden("the user name or the password is wrong")
            issued = await self.sessions.open(tx, account.user_id, account.user_nid, new_session)
        return self.sessions.opened(issued)
