"""Accounts of this server: making them, their passwords, their end.

Source: Client-Server API, "Account registration", "Account management"; Appendices, "User Identifiers".
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from homeserver.errors import InvalidUsername, NotFound, UserDeactivated, UserInUse
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import (
    MAX_ID_BYTES,
    ServerName,
    UserId,
    is_new_localpart,
    parse_user_id,
)
from homeserver.services.clock import Clock
from homeserver.services.passwords import Passwords
from homeserver.services.secrets import random_letters
from homeserver.services.sessions import Sessions
from storage import profiles, ui_auth_sessions, unfinished_deactivations, users
from storage.database import Database, Transaction
from storage.dictionaries import Dictionary
from storage.users import User

GENERATED_LETTERS: Final = 12

AfterDeactivation: TypeAlias = Callable[[], None]
"""Called once the deactivation of an account is committed: there is something to do for `Deactivations`."""


def nobody_waits() -> None:
    """The next server that looks will finish the deactivation."""


@dataclass(frozen=True)
class Accounts:
    """Makes, finds, changes and deactivates accounts; `atoms` numbers user IDs."""

    database: Database
    atoms: Dictionary
    passwords: Passwords
    sessions: Sessions
    clock: Clock
    server_name: ServerName
    after_deactivation: AfterDeactivation = nobody_waits

    def new_user_id(self, username: str | None) -> UserId:
        """The user ID that a user name gives, in lower case; a free one of our making for None.

        Raises InvalidUsername. Source: Appendices, "User Identifiers".
        """
        if username is None:
            username = random_letters(GENERATED_LETTERS, string.ascii_lowercase)
        user_id = UserId(f"@{username.lower()}:{self.server_name}")
        if not is_new_localpart(username.lower()) or not username.isascii():
            raise InvalidUsername("a user name has only the characters a-z, 0-9 and ._=-/+")
        if len(user_id) > MAX_ID_BYTES:
            raise InvalidUsername(f"a user ID has at most {MAX_ID_BYTES} characters, this one {len(user_id)}")
        return user_id

    def local_user_id(self, user: str) -> UserId | None:
        """The user ID that someone means by a localpart or a whole user ID; None for no user of ours."""
        localpart, colon, server_name = user.removeprefix("@").partition(":")
        if colon and (not user.startswith("@") or server_name.lower() != self.server_name.lower()):
            return None
        try:
            return parse_user_id(f"@{localpart.lower()}:{self.server_name}")
        except InvalidIdentifier:
            return None

    async def find(self, user_id: UserId) -> User | None:
        """The account of a user ID."""
        user_nid = await self.atoms.find_nid(user_id)
        if user_nid is None:
            return None
        async with self.database.connection() as tx:
            return await users.load(tx, user_nid)

    async def has_users(self) -> bool:
        """Whether there is any account."""
        async with self.database.connection() as tx:
            return not await users.is_empty(tx)

    async def check_available(self, user_id: UserId) -> None:
        """Raises UserInUse when there is, or was, an account of this user ID."""
        if await self.find(user_id) is not None:
            raise UserInUse(f"{user_id} is taken")

    async def add(
        self,
        tx: Transaction,
        user_id: UserId,
        user_nid: int,
        password_hash: str | None,
        *,
        is_admin: bool = False,
        is_guest: bool = False,
        user_type: str | None = None,
    ) -> None:
        """Store an account in the caller's transaction; `user_nid` is the number of its user ID.

        Raises UserInUse. Without a password nobody logs in to it with one.
        """
        added = await users.insert(
            tx,
            user_nid,
            password_hash=password_hash,
            created_ts=self.clock(),
            user_type=user_type,
            is_admin=is_admin,
            is_guest=is_guest,
        )
        if not added:
            raise UserInUse(f"{user_id} is taken")

    async def create(self, username: str, password: str, *, is_admin: bool = False) -> UserId:
        """Make an account at an admin's word. Raises InvalidUsername, UserInUse, InvalidParam (password)."""
        user_id = self.new_user_id(username)
        await self.check_available(user_id)
        password_hash = await self.passwords.hash(password)
        user_nid = await self.atoms.nid(user_id)
        async with self.database.transaction() as tx:
            await self.add(tx, user_id, user_nid, password_hash, is_admin=is_admin)
        return user_id

    async def check_password(self, user_id: UserId | None, password: str) -> User | None:
        """The account whose password this is; else None, after the same time whatever the reason."""
        user = await self.find(user_id) if user_id is not None else None
        password_hash = user.password_hash if user is not None else None
        if not await self.passwords.matches(password_hash, password):
            return None
        if password_hash is not None and user is not None and self.passwords.is_outdated(password_hash):
            new = await self.passwords.hash(password)
            async with self.database.connection() as tx:
                replaced = await users.replace_password_hash(tx, user.user_nid, password_hash, new)
            return (
                replace(user, password_hash=new) if replaced else await self.check_password(user_id, password)
            )
        return user

    async def set_password(self, user_id: UserId, password: str) -> None:
        """Give a user another password at an admin's word; all the user's devices are logged out.

        Raises NotFound, UserDeactivated, or InvalidParam for the password.
        """
        user = await self.find(user_id)
        if user is None:
            raise NotFound(f"there is no account {user_id}")
        password_hash = await self.passwords.hash(password)
        async with self.database.transaction() as tx:
            ended = await self.store_password(tx, user.user_nid, password_hash)
        self.sessions.access_tokens.forget(ended)

    async def store_password(
        self,
        tx: Transaction,
        user_nid: int,
        password_hash: str,
        *,
        keep_device_nid: int | None = None,
        logout_devices: bool = True,
    ) -> list[int]:
        """Store the hash of a new password, in the caller's transaction; returns the sessions that end.

        Every device but one is logged out, unless `logout_devices` says that all stay; requests that wait for
        the old password's proof end. When the transaction has committed, the caller says
        `access_tokens.forget`. Raises UserDeactivated.
        """
        if not await users.set_password_hash(tx, user_nid, password_hash):
            raise UserDeactivated("this account has been deactivated")
        await ui_auth_sessions.delete_of_user(tx, user_nid)
        if not logout_devices:
            return []
        return await self.sessions.end_devices(tx, user_nid, keep=keep_device_nid)

    async def deactivate(self, user_id: UserId, *, erase: bool = False) -> None:
        """End an account for ever: its devices, tokens, password and profile go; its user ID stays taken.

        A server that runs makes the user leave all rooms: `Deactivations`. Raises NotFound where there is no
        account.
        """
        user = await self.find(user_id)
        if user is None:
            raise NotFound(f"there is no account {user_id}")
        async with self.database.transaction() as tx:
            await users.deactivate(tx, user.user_nid, erase=erase)
            await ui_auth_sessions.delete_of_user(tx, user.user_nid)
            await profiles.delete_all(tx, user.user_nid)
            await unfinished_deactivations.add(tx, user.user_nid)
            ended = await self.sessions.end_devices(tx, user.user_nid)
        self.sessions.access_tokens.forget(ended)
        self.after_deactivation()
