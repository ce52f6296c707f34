"""The folder of PostgreSQL's socket: its data folder, unless the path would be too long for a socket.

Then a folder of mode 0700 in the temporary directory serves, and a file in `data_dir` names it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from homeserver.errors import LairError

SOCKET_NAME: Final = ".s.PGSQL.5432"
MAX_SOCKET_PATH_BYTES: Final = 107
NAMING_FILE: Final = "postgres.socket"
DATABASE: Final = "lair"
USER: Final = "postgres"


class NoSocketFolder(LairError):
    """There is no folder with a name short enough for a socket."""


def temporary_parent(cluster: Path) -> Path | None:
    """The temporary directory that the folder will be in; None when the socket can be in `cluster` itself.

    `cluster`: PostgreSQL's data folder. Raises NoSocketFolder.
    """
    if _fits(cluster):
        return None
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if _fits(Path(parent, "lair-12345678")):
            return Path(parent)
    raise NoSocketFolder(
        f"data_dir: the path of {cluster} cannot be that of a socket, nor can that of the temporary "
        f"directory {tempfile.gettempdir()}; set TMPDIR to a folder with a short name"
    )


def provide_socket_folder(data_dir: Path, cluster: Path, uid: int, gid: int) -> Path:
    """The folder to make the socket in, owned by `uid` and `gid`. Raises NoSocketFolder."""
    parent = temporary_parent(cluster)
    if parent is None:
        (data_dir / NAMING_FILE).unlink(missing_ok=True)
        return cluster
    named = socket_folder_of(data_dir, cluster)
    if named != cluster and _is_private(named, uid):
        return named
    folder = Path(tempfile.mkdtemp(prefix="lair-", dir=parent))
    if os.geteuid() == 0:
        os.chown(folder, uid, gid)
    new = data_dir / f"{NAMING_FILE}.new"
    new.write_text(f"{folder}\n")
    new.replace(data_dir / NAMING_FILE)
    return folder


def socket_folder_of(data_dir: Path, cluster: Path) -> Path:
    """Where the socket of a running PostgreSQL is."""
    try:
        return Path((data_dir / NAMING_FILE).read_text().strip())
    except FileNotFoundError:
        return cluster


def remove_socket_folder(data_dir: Path, cluster: Path) -> None:
    """Remove the folder in the temporary directory, if there is one; PostgreSQL has been stopped."""
    folder = socket_folder_of(data_dir, cluster)
    if folder != cluster:
        shutil.rmtree(folder, ignore_errors=True)
        (data_dir / NAMING_FILE).unlink(missing_ok=True)


def connection_url(folder: Path, database: str = DATABASE) -> str:
    """The URL (DSN) that connects through the socket in `folder`."""
    return f"postgresql://{USER}@/{database}?host={quote(str(folder), safe='')}&port=5432"


def _fits(folder: Path) -> bool:
    """Whether a socket in this folder can be named in full, and in a URL, where commas part addresses."""
    text = str(folder)
    is_short = len(os.fsencode(folder / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
    return is_short and text.isprintable() and "," not in text


def _is_private(folder: Path, uid: int) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not stat.S_IMODE(status.st_mode) & 0o077
