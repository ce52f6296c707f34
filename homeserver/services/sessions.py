"""Sessions: a login on a device, from its first token to its last.

Refresh tokens rotate. The old one stays valid until the new access or refresh token is used for the first
time; whoever comes with an older one holds a copy, so the whole session ends.
Source: Client-Server API, "Relationship between access tokens and devices", "Refreshing access tokens".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from homeserver.errors import UnknownToken
from homeserver.protocol.identifiers import DeviceId, UserId
from homeserver.services.access_tokens import AccessTokens, Requester
from homeserver.services.clock import Clock
from homeserver.services.secrets import new_secret, random_letters, random_number, secret_hash
from storage import devices, refresh_tokens, sessions
from storage.database import Database, Transaction

DEVICE_ID_LETTERS: Final = 10

DevicesRemoved: TypeAlias = Callable[[Transaction, int, Sequence[DeviceId]], Awaitable[None]]
"""Told, in the transaction that removes them: the user's number and the IDs of devices that vanish."""


@dataclass(frozen=True)
class NewSession:
    """What a client asks for when it logs in or registers."""

    device_id: DeviceId | None = None
    display_name: str | None = None
    wants_refresh_token: bool = False
    address: str | None = None


@dataclass(frozen=True)
class IssuedTokens:
    """What a client gets; without a refresh token the access token has no end."""

    user_id: UserId
    device_id: DeviceId
    access_token: str
    refresh_token: str | None = None
    expires_in_ms: int | None = None
    replaced: tuple[int, ...] = field(default=(), repr=False)
    """Sessions that this one replaces; `Sessions.opened` makes their tokens forgotten."""


async def nobody_cares(_tx: Transaction, _user_nid: int, _device_ids: Sequence[DeviceId]) -> None:
    """Devices vanish with nothing but their own rows."""


@dataclass(frozen=True)
class Sessions:
    """Opens, refreshes and ends sessions. Lifetimes are in ms."""

    database: Database
    access_tokens: AccessTokens
    clock: Clock
    access_lifetime_ms: int
    refresh_lifetime_ms: int
    devices_removed: DevicesRemoved = nobody_cares

    async def open(
        self, tx: Transaction, user_id: UserId, user_nid: int, new_session: NewSession
    ) -> IssuedTokens:
        """Log a user in on a new or a known device; the session that the device had ends.

        When the transaction has committed, the caller says `opened`.
        """
        device_id = new_session.device_id or DeviceId(random_letters(DEVICE_ID_LETTERS))
        now = self.clock()
        device_nid = await devices.save(
            tx,
            user_nid,
            device_id,
            display_name=new_session.display_name,
            seen_ts=now,
            seen_ip=new_session.address,
        )
        replaced = tuple(await sessions.delete_of_device(tx, device_nid))
        session_id = random_number()
        await sessions.insert(tx, session_id, device_nid, now)
        if not new_session.wants_refresh_token:
            return IssuedTokens(user_id, device_id, self.access_tokens.mint(session_id), replaced=replaced)
        return await self._issue_pair(tx, user_id, device_id, session_id, 0, replaced)

    def opened(self, issued: IssuedTokens) -> IssuedTokens:
        """The transaction of `open` has committed."""
        self.access_tokens.forget(issued.replaced)
        return issued

    async def refresh(self, refresh_token: str) -> IssuedTokens:
        """A new pair of tokens for a refresh token.

        Raises UnknownToken for a token that is unknown, expired (with `soft_logout`) or superseded, which
        ends the session. Source: Client-Server API, "POST /_matrix/client/v3/refresh".
        """
        async with self.database.transaction() as tx:
            known = await refresh_tokens.lock(tx, secret_hash(refresh_token))
            if known is None:
                raise UnknownToken("this refresh token is not valid")
            is_current = known.refresh_nid == known.current_refresh_nid
            if not is_current and known.parent_nid != known.current_refresh_nid:
                await sessions.delete(tx, known.session_id)
                issued = None
            elif known.expires_ts <= self.clock():
                raise UnknownToken("this refresh token has expired", soft_logout=True)
            else:
                if not is_current:
                    await sessions.advance(tx, known.session_id, known.current_refresh_nid, known.refresh_nid)
                await refresh_tokens.delete_expired(tx, known.session_id, known.refresh_nid, self.clock())
                issued = await self._issue_pair(
                    tx, known.user_id, known.device_id, known.session_id, known.refresh_nid
                )
        if issued is None or not is_current:
            self.access_tokens.forget([known.session_id])
        if issued is None:
            raise UnknownToken("this refresh token has already been used")
        return issued

    async def end(self, requester: Requester) -> None:
        """Log the requester's device out: it vanishes.

        Source: Client-Server API, "POST /_matrix/client/v3/logout".
        """
        async with self.database.transaction() as tx:
            ended = await self.end_devices(tx, requester.user_nid, only=requester.device_nid)
        self.access_tokens.forget(ended)

    async def end_all(self, user_nid: int) -> None:
        """Log a user out everywhere.

        Source: Client-Server API, "POST /_matrix/client/v3/logout/all".
        """
        async with self.database.transaction() as tx:
            ended = await self.end_devices(tx, user_nid)
        self.access_tokens.forget(ended)

    async def end_devices(
        self, tx: Transaction, user_nid: int, *, only: int | None = None, keep: int | None = None
    ) -> list[int]:
        """Remove one device of a user, or all but one, or all; returns the sessions that end.

        When the transaction has committed, the caller says `access_tokens.forget`.
        """
        gone = [
            device
            for device in await devices.lock(tx, user_nid)
            if device.device_nid != keep and only in {None, device.device_nid}
        ]
        nids = [device.device_nid for device in gone]
        ended = await sessions.of_devices(tx, nids)
        await devices.delete(tx, nids)
        await self.devices_removed(tx, user_nid, [device.device_id for device in gone])
        return ended

    async def _issue_pair(
        self,
        tx: Transaction,
        user_id: UserId,
        device_id: DeviceId,
        session_id: int,
        parent_nid: int,
        replaced: tuple[int, ...] = (),
    ) -> IssuedTokens:
        now = self.clock()
        refresh_token = new_secret("lrt_")
        refresh_nid = await refresh_tokens.insert(
            tx, session_id, parent_nid, secret_hash(refresh_token), now + self.refresh_lifetime_ms
        )
        access_token = self.access_tokens.mint(session_id, refresh_nid, now + self.access_lifetime_ms)
        return IssuedTokens(
            user_id, device_id, access_token, refresh_token, self.access_lifetime_ms, replaced
        )
