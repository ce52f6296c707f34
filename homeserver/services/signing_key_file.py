"""The file of this server's signing key: one line, made on the first start, read by its owner alone.

Source: Server-Server API, "Retrieving server keys"; the format of the line is that of other homeservers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import string
from pathlib import Path
from typing import Final

from homeserver.errors import LairError
from homeserver.protocol.errors import InvalidKey
from homeserver.protocol.signing import SigningKey, parse_signing_key

log = logging.getLogger(__name__)

MODE: Final = 0o600
_SEED_BYTES: Final = 32
_LONGEST_FILE_BYTES: Final = 1024
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_VERSION_LETTERS: Final = string.ascii_letters + string.digits


class SigningKeyUnusable(LairError):
    """The signing key cannot be read or made."""


def new_signing_key() -> SigningKey:
    """A key of a new version, from the randomness of the operating system."""
    version = "a_" + "".join(secrets.choice(_VERSION_LETTERS) for _ in range(4))
    return SigningKey.from_seed(version, secrets.token_bytes(_SEED_BYTES))


def read_signing_key(path: Path) -> SigningKey | None:
    """The key in a file; None where there is no file.

    Raises SigningKeyUnusable for a file that cannot be read or holds anything else: another key is never
    made in its place.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LONGEST_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SigningKeyUnusable(
            f"signing_key_path: {path} cannot be read ({error.strerror}); "
            "let the user that runs the server read it"
        ) from None
    try:
        key = parse_signing_key(content.decode())
    except (InvalidKey, UnicodeDecodeError) as error:
        problem = "not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SigningKeyUnusable(
            f"signing_key_path: {path} holds no signing key ({problem}); restore it from a backup"
        ) from None
    if stat.S_IMODE(mode) & _OTHERS:
        log.warning("%s can be read by others than its owner; run chmod 600 on it", path)
    return key


def create_signing_key(path: Path) -> SigningKey:
    """The key of a new file, whole and of mode 0600; that of another process where it was first.

    Raises SigningKeyUnusable.
    """
    key = new_signing_key()
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(key.to_text().encode())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(unfinished, path)
        finally:
            unfinished.unlink()
    except OSError as error:
        raise SigningKeyUnusable(
            f"signing_key_path: {path} cannot be written ({error.strerror}); "
            "let the user that runs the server write in its folder"
        ) from None
    stored = read_signing_key(path)
    assert stored is not None
    return stored
