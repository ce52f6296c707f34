"""The user that PostgreSQL runs as.

PostgreSQL refuses to run as root. Started by an ordinary user, it is a child like any other. Started by root,
the child becomes `database.run_as`; but such a user cannot pass folders of mode 0700 (root's home, temporary
folders) that may stand above the data or above the programs. The modes of those folders are not ours to
change, so three ways are tried, and the first that reaches everything is taken:

1. become that user, and no more;
2. become that user and keep the one capability that opens folders (CAP_DAC_OVERRIDE);
3. stay root outside, and be that user inside a user namespace.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from homeserver.errors import LairError
from storage.embedded.binaries import Binaries

CHILD_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""Nothing of ours: PGOPTIONS and the like of whoever starts the server must not change what it does."""

CHILD_FOLDER: Final = "/"
"""Where children begin: our own working folder may be one that their user cannot enter."""

_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROBE_LIMIT_S: Final = 60.0

_PROBE: Final = """
for folder do cd -- "$folder" 2>/dev/null || { printf %s "$folder"; exit 99; }; done
exec "$0" --version
"""


class RunAsUnusable(LairError):
    """PostgreSQL cannot be started as the user that it should run as."""


class Way(Enum):
    """How a child of root becomes another user."""

    PLAIN = "as an ordinary user"
    DAC_OVERRIDE = "as a user who may enter every folder"
    USER_NAMESPACE = "in a user namespace"


@dataclass(frozen=True)
class Privileges:
    """How children are started, and whose their files are.

    `name`: the user's name. `prefix`: the words that stand before a program and its arguments.
    """

    name: str
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def command(self, *words: str | Path, death_signal: str) -> list[str]:
        """The words that start a program which gets `death_signal` (INT, KILL) when we die.

        The signal is asked for after the change of user, which would clear it.
        """
        setpriv = _find("setpriv")
        guard = [] if setpriv is None else [setpriv, "--pdeathsig", death_signal]
        return [*self.prefix, *guard, *(str(word) for word in words)]


def check_owner(cluster: Path) -> None:
    """Raise RunAsUnusable where an ordinary user starts the PostgreSQL of another one."""
    uid = os.geteuid()
    if uid != 0 and cluster.exists() and cluster.stat().st_uid != uid:
        owner, name = _name_of(cluster.stat().st_uid), _name_of(uid)
        raise RunAsUnusable(
            f"data_dir: {cluster} belongs to the user {owner} and not to {name}; run this as {owner} or as "
            f"root, or hand the folder over: chown -R {name} {cluster}"
        )


async def choose_privileges(
    run_as: str,
    data_dir: Path,
    cluster: Path,
    binaries: Binaries,
    folders: Iterable[Path],
    ways: Iterable[Way] = tuple(Way),
) -> Privileges:
    """Find the way to start PostgreSQL that reaches its programs and `folders`.

    `cluster`: PostgreSQL's own folder in `data_dir`, which may not exist yet. Raises RunAsUnusable; its text
    names the folder that cannot be entered.
    """
    if os.geteuid() != 0:
        return Privileges(_name_of(os.geteuid()), os.geteuid(), os.getegid())
    user = _user_for_root(run_as, data_dir, cluster)
    if _find("setpriv") is None:
        raise RunAsUnusable(
            "database.run_as: changing the user of PostgreSQL needs the program setpriv; install the package "
            "util-linux, or start Lair Chat as an ordinary user"
        )
    needed = sorted({parent for path in (*folders, binaries.folder) for parent in (path, *path.parents)})
    obstacle = None
    for way in ways:
        privileges = _privileges(way, user)
        found = await _obstacle(privileges, binaries.postgres, needed)
        if found is None:
            return privileges
        obstacle = obstacle or found
    raise RunAsUnusable(
        f"database.run_as: PostgreSQL may not run as root, and the user {user.pw_name} {obstacle}; set "
        f"database.run_as to a user who can, move it to where {user.pw_name} can reach it, "
        "or start Lair Chat as an ordinary user"
    )


def _user_for_root(run_as: str, data_dir: Path, cluster: Path) -> pwd.struct_passwd:
    """The user whose PostgreSQL root starts.

    An ordinary user's data folder stays that user's, so that the server can go on as before when root has run
    a command in it.
    """
    owner = data_dir.stat().st_uid
    if owner != 0 and cluster.exists() and cluster.stat().st_uid == owner:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            pass  # PostgreSQL needs a user with a name
    try:
        user = pwd.getpwnam(run_as)
    except KeyError:
        raise RunAsUnusable(
            f"database.run_as: this machine has no user {run_as}; name one that exists, such as nobody"
        ) from None
    if user.pw_uid == 0:
        raise RunAsUnusable(
            f"database.run_as: PostgreSQL refuses to run as {run_as}; name another user, such as nobody"
        )
    return user


def _privileges(way: Way, user: pwd.struct_passwd) -> Privileges:
    uid, gid = str(user.pw_uid), str(user.pw_gid)
    drop = (str(_find("setpriv")), "--reuid", uid, "--regid", gid, "--clear-groups")
    match way:
        case Way.PLAIN:
            return Privileges(user.pw_name, user.pw_uid, user.pw_gid, drop)
        case Way.DAC_OVERRIDE:
            capability = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
            keep = (*drop, *capability, "--securebits=+no_setuid_fixup")
            return Privileges(user.pw_name, user.pw_uid, user.pw_gid, keep)
        case Way.USER_NAMESPACE:
            namespace = (_find("unshare") or "unshare", "--user", "--map-user", uid, "--map-group", gid)
            return Privileges(user.pw_name, 0, 0, namespace)


async def _obstacle(privileges: Privileges, postgres: Path, folders: Sequence[Path]) -> str | None:
    """What keeps PostgreSQL from being started so; None when nothing does."""
    words = privileges.command("/bin/sh", "-c", _PROBE, postgres, *folders, death_signal="KILL")
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=CHILD_FOLDER,
            env=CHILD_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot be changed to ({error})"
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _PROBE_LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"gets no answer from {postgres}"
    if process.returncode == 0:
        return None
    text = os.fsdecode(output).strip()
    if process.returncode == 99:
        return f"cannot enter the folder {text} (mode {_mode(Path(text))})"
    return f"cannot run {postgres} ({text or f'exit status {process.returncode}'})"


def _mode(folder: Path) -> str:
    return f"{stat.S_IMODE(folder.stat().st_mode):04o}"


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _find(program: str) -> str | None:
    return shutil.which(program, path=_SYSTEM_PATH)
