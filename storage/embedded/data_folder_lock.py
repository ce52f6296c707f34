"""Who runs the PostgreSQL of a data folder: one process at a time, and those that use it meanwhile.

Both are locks of the kernel on files (flock), so that a process that dies leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final

from homeserver.errors import LairError

LOCK_FILE: Final = "postgres.lock"
ATTACHED_FILE: Final = "postgres.attached"
ORPHAN_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2, *([0.5] * 10))


class DataFolderInUse(LairError):
    """Another process runs the PostgreSQL of this data folder."""


class DataFolderUnusable(LairError):
    """The data folder cannot be read or written by this process."""


class FileLock:
    """A lock that this process holds until `release`, or until it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def lock_data_folder(data_dir: Path) -> FileLock:
    """Become the one who runs PostgreSQL in `data_dir`; raises DataFolderInUse with the pid of another.

    What a killed process had just begun to start has its lock for a moment longer: that is waited for.
    """
    file = data_dir / LOCK_FILE
    for pause_s in (*ORPHAN_PAUSES_S, None):
        lock = _lock(file, fcntl.LOCK_EX)
        if lock is not None:
            file.write_text(f"{os.getpid()}\n")
            return lock
        holder = file.read_text().strip()
        if pause_s is None or _is_alive(holder):
            break
        await asyncio.sleep(pause_s)
    raise DataFolderInUse(
        f"data_dir: {data_dir} is in use by another Lair Chat, process {holder}; "
        "stop that one first, or give this one a data_dir of its own"
    )


def _is_alive(pid: str) -> bool:
    """Whether a process is there, as far as this one can see."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):  # it is only about to write its number, or somebody else's
        return True
    return True


def lock_as_user(data_dir: Path) -> FileLock | None:
    """Keep whoever runs PostgreSQL for a command from stopping it; None when it is being stopped."""
    return _lock(data_dir / ATTACHED_FILE, fcntl.LOCK_SH)


def lock_out_users(data_dir: Path) -> FileLock | None:
    """Keep new commands from attaching; None while there are attached ones."""
    return _lock(data_dir / ATTACHED_FILE, fcntl.LOCK_EX)


def _lock(file: Path, kind: int) -> FileLock | None:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        lock = FileLock(descriptor)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.release()
            return None
        except OSError:
            lock.release()
            raise
    except OSError as error:
        raise DataFolderUnusable(
            f"data_dir: {file} cannot be opened and locked ({error.strerror}); run this as the user who owns "
            "the folder or as root, and keep data_dir on a file system that has locks"
        ) from None
    return lock
