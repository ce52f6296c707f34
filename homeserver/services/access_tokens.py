"""Access tokens: who is asking.

A token is a JSON Web Token that names a session; the row of the session is the truth. What was found true is
remembered, so that the next request with the same token costs one look-up in memory.
Source: Client-Server API, "Client Authentication", "Using access tokens", "Refreshing access tokens".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import jwt

from homeserver.errors import UnknownToken
from homeserver.protocol.identifiers import DeviceId, UserId
from homeserver.services.clock import Clock
from storage import refresh_tokens, sessions
from storage.database import Database

CACHE_SIZE: Final = 20_000
MAX_TOKEN_CHARS: Final = 1024
ALGORITHM: Final = "HS256"


@dataclass(frozen=True, slots=True)
class Requester:
    """The user and device that a request comes from."""

    user_id: UserId
    device_id: DeviceId
    user_nid: int
    device_nid: int
    is_admin: bool
    is_guest: bool


@dataclass(frozen=True, slots=True)
class _Claims:
    session_id: int
    refresh_nid: int | None
    expires_ts: int | None


@dataclass(frozen=True, slots=True)
class _Verified:
    requester: Requester
    session_id: int
    expires_ts: int | None


class _VerifiedTokens:
    """The tokens found valid, the least recently used dropped first."""

    def __init__(self) -> None:
        self._by_token: OrderedDict[str, _Verified] = OrderedDict()
        self._tokens: dict[int, set[str]] = {}
        self.changes = 0

    def get(self, token: str) -> _Verified | None:
        verified = self._by_token.get(token)
        if verified is not None:
            self._by_token.move_to_end(token)
        return verified

    def add(self, token: str, verified: _Verified) -> None:
        self._by_token[token] = verified
        self._tokens.setdefault(verified.session_id, set()).add(token)
        if len(self._by_token) > CACHE_SIZE:
            self.drop(next(iter(self._by_token)))

    def drop(self, token: str) -> None:
        verified = self._by_token.pop(token, None)
        if verified is None:
            return
        tokens = self._tokens[verified.session_id]
        tokens.discard(token)
        if not tokens:
            del self._tokens[verified.session_id]

    def forget(self, session_ids: Iterable[int]) -> None:
        self.changes += 1
        for session_id in session_ids:
            for token in self._tokens.pop(session_id, ()):
                del self._by_token[token]

    def forget_all(self) -> None:
        self.changes += 1
        self._by_token.clear()
        self._tokens.clear()


@dataclass(frozen=True)
class AccessTokens:
    """Makes and verifies access tokens.

    Who changes or ends sessions says `forget` once that is committed. Other processes of the server learn it
    from the database, which notes every such change by itself, and say `forget` within a second.
    """

    database: Database
    key: bytes
    clock: Clock
    _verified: _VerifiedTokens = field(default_factory=_VerifiedTokens, init=False, repr=False)

    def mint(self, session_id: int, refresh_nid: int | None = None, expires_ts: int | None = None) -> str:
        """A token for a session: with a refresh token and an end (ms), or for as long as the session is."""
        claims: dict[str, int] = {"sid": session_id}
        if refresh_nid is not None:
            claims["rid"] = refresh_nid
        if expires_ts is not None:
            claims["exp"] = -(-expires_ts // 1000)
        return jwt.encode(claims, self.key, ALGORITHM)

    def remembered(self, token: str) -> Requester | None:
        """The requester of a token known to be valid, without waiting; None says to `authenticate`."""
        verified = self._verified.get(token)
        if verified is None or (verified.expires_ts is not None and verified.expires_ts <= self.clock()):
            return None
        return verified.requester

    async def authenticate(self, token: str) -> Requester:
        """The requester of a token.

        The first use of a token that a refresh has given ends the tokens before it. Raises UnknownToken, with
        `soft_logout` where the device is still there and may log in or refresh again.
        """
        requester = self.remembered(token)
        if requester is not None:
            return requester
        self._verified.drop(token)
        claims = self._claims(token)
        # What is revoked while the database answers must not be remembered as valid.
        changes = self._verified.changes
        async with self.database.connection() as tx:
            session = await sessions.load(tx, claims.session_id, claims.refresh_nid)
        if session is None:
            raise UnknownToken("this access token is not valid")
        if claims.expires_ts is not None and claims.expires_ts <= self.clock():
            raise UnknownToken("this access token has expired", soft_logout=True)
        if claims.refresh_nid is not None and claims.refresh_nid != session.current_refresh_nid:
            if session.parent_nid != session.current_refresh_nid or not await self._confirm(
                claims.session_id, session.current_refresh_nid, claims.refresh_nid
            ):
                raise UnknownToken("this access token was replaced by a newer one", soft_logout=True)
            changes += 1
        requester = Requester(
            session.user_id,
            session.device_id,
            session.user_nid,
            session.device_nid,
            session.is_admin,
            session.is_guest,
        )
        if changes == self._verified.changes:
            self._verified.add(token, _Verified(requester, claims.session_id, claims.expires_ts))
        return requester

    def forget(self, session_ids: Iterable[int]) -> None:
        """Ask the database again about the tokens of these sessions: they have changed or ended."""
        self._verified.forget(session_ids)

    def forget_all(self) -> None:
        """Ask the database again about every token: any session may have changed."""
        self._verified.forget_all()

    async def _confirm(self, session_id: int, old_refresh_nid: int, refresh_nid: int) -> bool:
        async with self.database.transaction() as tx:
            advanced = await sessions.advance(tx, session_id, old_refresh_nid, refresh_nid)
            if advanced:
                await refresh_tokens.delete_expired(tx, session_id, refresh_nid, self.clock())
        if advanced:
            self.forget([session_id])
        return advanced

    def _claims(self, token: str) -> _Claims:
        if len(token) > MAX_TOKEN_CHARS:
            raise UnknownToken("this access token is not valid")
        try:
            claims = jwt.decode(
                token, self.key, [ALGORITHM], options={"verify_exp": False, "require": ["sid"]}
            )
        except jwt.InvalidTokenError:
            raise UnknownToken("this access token is not valid") from None
        expires = claims.get("exp")
        return _Claims(claims["sid"], claims.get("rid"), None if expires is None else expires * 1000)
