"""Secrets that we hand out: random, and stored only as their hash."""

from __future__ import annotations

import hashlib
import secrets
import string
from typing import Final

_SECRET_LETTERS: Final = 43


def new_secret(prefix: str = "") -> str:
    """A text that nobody can guess, after a prefix that tells what it is for.

    Only letters and digits, so that it can be an argument of a command: 256 bits in 43 of them.
    """
    return prefix + random_letters(_SECRET_LETTERS, string.ascii_letters + string.digits)


def random_letters(count: int, alphabet: str = string.ascii_uppercase) -> str:
    """Random letters for an identifier that has to be new, but no secret."""
    return "".join(secrets.choice(alphabet) for _ in range(count))


def random_number() -> int:
    """A random number that PostgreSQL's bigint holds, for an identifier that is never given out twice."""
    return secrets.randbits(63)


def secret_hash(secret: str) -> bytes:
    """What is stored of a secret. It is random, so a plain SHA-256 cannot be reversed by guessing."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
