"""Registering accounts with a secret that the operator and a script share, as Synapse's admin API does it.

The one who registers first gets a nonce, then proves knowledge of the secret by an HMAC over nonce and
account.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from homeserver.errors import BadRequest, InvalidParam, MatrixError
from homeserver.services.accounts import Accounts
from homeserver.services.clock import Clock
from homeserver.services.secrets import new_secret, secret_hash
from homeserver.services.sessions import IssuedTokens, NewSession, Sessions
from storage import registration_nonces
from storage.database import Database

NONCE_LIFETIME_MS: Final = 60_000
MAX_NONCES: Final = 10_000
USER_TYPES: Final = ("support", "bot")


class WrongMac(MatrixError):
    """The HMAC of a shared-secret registration is not the one that the secret gives."""

    status, errcode = 403, "M_UNKNOWN"


@dataclass(frozen=True)
class SharedSecretRequest:
    """The account that a script wants, its texts as they were sent; `mac` is in hex."""

    nonce: str
    username: str
    password: str
    is_admin: bool
    user_type: str | None
    mac: str


@dataclass(frozen=True)
class SharedSecretRegistration:
    """Registers accounts for those who know the secret; without a secret nobody does."""

    database: Database
    accounts: Accounts
    sessions: Sessions
    clock: Clock
    secret: str | None

    async def issue_nonce(self) -> str:
        """A nonce for one registration within a minute. Raises BadRequest where there is no secret."""
        self._key()
        nonce = new_secret()
        now = self.clock()
        async with self.database.transaction() as tx:
            await registration_nonces.delete_expired(tx, now)
            await registration_nonces.insert(tx, secret_hash(nonce), now + NONCE_LIFETIME_MS)
            await registration_nonces.keep_newest(tx, MAX_NONCES)
        return nonce

    async def register(self, wanted: SharedSecretRequest, new_session: NewSession) -> IssuedTokens:
        """Make the account and log it in.

        Raises BadRequest for a nonce that is unknown, used or old, WrongMac, InvalidUsername, UserInUse, and
        InvalidParam for the password or user type. The nonce is used up whatever comes of it.
        """
        key = self._key()
        async with self.database.connection() as tx:
            if not await registration_nonces.take(tx, secret_hash(wanted.nonce), self.clock()):
                raise BadRequest("unrecognised nonce")
        if "\0" in wanted.username + wanted.password:
            raise InvalidParam("neither the user name nor the password may have a NUL")
        if wanted.user_type is not None and wanted.user_type not in USER_TYPES:
            raise InvalidParam("this user type is not known")
        if not hmac.compare_digest(_mac(key, wanted), wanted.mac.lower().encode(errors="replace")):
            raise WrongMac("HMAC incorrect")
        user_id = self.accounts.new_user_id(wanted.username)
        await self.accounts.check_available(user_id)
        password_hash = await self.accounts.passwords.hash(wanted.password)
        user_nid = await self.accounts.atoms.nid(user_id)
        async with self.database.transaction() as tx:
            await self.accounts.add(
                tx,
                user_id,
                user_nid,
                password_hash,
                is_admin=wanted.is_admin,
                user_type=wanted.user_type,
            )
            issued = await self.sessions.open(tx, user_id, user_nid, new_session)
        return self.sessions.opened(issued)

    def _key(self) -> bytes:
        if self.secret is None:
            raise BadRequest("shared-secret registration is not enabled on this server")
        return self.secret.encode()


def _mac(key: bytes, wanted: SharedSecretRequest) -> bytes:
    parts = [wanted.nonce, wanted.username, wanted.password, "admin" if wanted.is_admin else "notadmin"]
    if wanted.user_type is not None:
        parts.append(wanted.user_type)
    message = "\0".join(parts).encode(errors="surrogatepass")
    return hmac.new(key, message, hashlib.sha1).hexdigest().encode()
