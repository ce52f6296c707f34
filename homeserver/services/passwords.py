"""Hashes of passwords: Argon2id, computed beside the event loop, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from homeserver.errors import InvalidParam, LimitExceeded
from homeserver.services.secrets import new_secret

T = TypeVar("T")

MAX_PASSWORD_BYTES: Final = 4096
AT_ONCE: Final = 2
"""Each computation takes a thread and as much memory as the configuration says."""

MAX_WAITING: Final = 200
MAX_WAIT_S: Final = 20
RETRY_AFTER_MS: Final = 2000


class _Turns:
    """Lets few work at once and a bounded number wait a bounded time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """A turn, or LimitExceeded."""
        if self._waiting >= MAX_WAITING:
            raise LimitExceeded(RETRY_AFTER_MS)
        self._waiting += 1
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise LimitExceeded(RETRY_AFTER_MS) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


@dataclass(frozen=True)
class Passwords:
    """Hashes and checks passwords.

    `decoy` is the hash of a password that nobody knows: where an account or its password does not exist, it
    is checked instead, so that the time an answer takes does not tell.
    """

    hasher: PasswordHasher
    decoy: str
    _turns: _Turns = field(default_factory=_Turns, init=False, repr=False)

    @classmethod
    def with_costs(cls, *, memory_kib: int, iterations: int) -> Passwords:
        """Passwords whose new hashes cost so much memory and time."""
        hasher = PasswordHasher(time_cost=iterations, memory_cost=memory_kib, parallelism=1)
        return cls(hasher, hasher.hash(new_secret()))

    async def hash(self, password: str) -> str:
        """The text that is stored for a password; it names its algorithm and costs.

        Raises InvalidParam for an empty or overlong one, LimitExceeded when too many wait.
        """
        if not password:
            raise InvalidParam("the password is empty")
        if len(_encoded(password)) > MAX_PASSWORD_BYTES:
            raise InvalidParam(f"a password has at most {MAX_PASSWORD_BYTES} bytes")
        return await self._in_turn(self._hash, password)

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether a password is the one of a hash; None matches nothing and takes as long.

        Raises LimitExceeded when too many wait.
        """
        if len(_encoded(password)) > MAX_PASSWORD_BYTES:
            return False
        found = await self._in_turn(self._verify, password_hash or self.decoy, password)
        return found and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other costs than new ones are."""
        return self.hasher.check_needs_rehash(password_hash)

    def _hash(self, password: str) -> str:
        return self.hasher.hash(_encoded(password))

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self.hasher.verify(password_hash, _encoded(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _in_turn(self, compute: Callable[..., T], *arguments: str) -> T:
        async with self._turns.take():
            return await asyncio.to_thread(compute, *arguments)


def _encoded(password: str) -> bytes:
    return password.encode(errors="surrogatepass")
