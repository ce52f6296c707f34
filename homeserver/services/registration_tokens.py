"""Registration tokens: what admins hand to those who may register.

Source: Client-Server API, "Token-authenticated registration".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from homeserver.errors import InvalidParam
from homeserver.services.clock import Clock
from homeserver.services.secrets import new_secret, secret_hash
from storage import registration_tokens
from storage.database import Database, Transaction

MAX_USES: Final = 2**31 - 1
FINGERPRINT_HEX_DIGITS: Final = 12


@dataclass(frozen=True)
class ListedToken:
    """A token as admins see it: the secret itself is not kept, so a fingerprint stands for it."""

    fingerprint: str
    uses_allowed: int | None
    completed: int
    created_ts: int
    expires_ts: int | None
    is_usable: bool


@dataclass(frozen=True)
class RegistrationTokens:
    """Makes, lists, checks, uses and revokes registration tokens."""

    database: Database
    clock: Clock

    async def create(self, uses_allowed: int | None = None, lifetime_ms: int | None = None) -> str:
        """A new token, for so many registrations and so long; None is without limit. Raises InvalidParam."""
        if uses_allowed is not None and not 1 <= uses_allowed <= MAX_USES:
            raise InvalidParam("a registration token is for at least one use")
        token = new_secret()
        now = self.clock()
        expires_ts = None if lifetime_ms is None else now + lifetime_ms
        async with self.database.connection() as tx:
            await registration_tokens.insert(tx, secret_hash(token), uses_allowed, now, expires_ts)
        return token

    async def list(self) -> list[ListedToken]:
        """Every token that has not been revoked, the oldest first."""
        now = self.clock()
        async with self.database.connection() as tx:
            return [
                ListedToken(
                    _fingerprint(token.token_hash),
                    token.uses_allowed,
                    token.completed,
                    token.created_ts,
                    token.expires_ts,
                    (token.uses_allowed is None or token.completed < token.uses_allowed)
                    and (token.expires_ts is None or token.expires_ts > now),
                )
                for token in await registration_tokens.load_all(tx)
            ]

    async def revoke(self, token: str) -> bool:
        """End a token, named by itself or by its fingerprint; False when there is none."""
        async with self.database.transaction() as tx:
            if await registration_tokens.delete(tx, secret_hash(token)):
                return True
            for known in await registration_tokens.load_all(tx):
                if _fingerprint(known.token_hash) == token:
                    return await registration_tokens.delete(tx, known.token_hash)
        return False

    async def is_usable(self, token: str) -> bool:
        """Whether someone can register with a token now."""
        async with self.database.connection() as tx:
            return await registration_tokens.is_usable(tx, secret_hash(token), self.clock())

    async def use(self, tx: Transaction, token: str) -> bool:
        """Count a registration in the caller's transaction; False when the token cannot be used any more."""
        return await registration_tokens.use(tx, secret_hash(token), self.clock())


def _fingerprint(token_hash: bytes) -> str:
    return token_hash.hex()[:FINGERPRINT_HEX_DIGITS]
