"""PostgreSQL's data folder: made whole or not at all, of the right version, owned by the right user."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from homeserver.errors import LairError
from storage.embedded.binaries import Binaries
from storage.embedded.data_folder_lock import DataFolderUnusable
from storage.embedded.privileges import CHILD_ENVIRONMENT, CHILD_FOLDER, Privileges

log = logging.getLogger(__name__)

CLUSTER: Final = "postgres"
_UNFINISHED: Final = "postgres.new-"
_INITDB_LIMIT_S: Final = 600.0

_INITDB_OPTIONS: Final = (
    "--username=postgres",
    "--auth=trust",  # whoever may enter the folder of the socket
    "--locale-provider=builtin",
    "--locale=C.UTF-8",
    "--encoding=UTF8",
    "--no-instructions",
)


class ClusterUnsuitable(LairError):
    """The data folder holds something that this PostgreSQL cannot run."""


class ClusterNotMade(LairError):
    """A new data folder could not be made."""


def make_data_dir(data_dir: Path) -> None:
    """Make the folder that everything lies in; others may pass through, but not look into it."""
    if data_dir.is_dir():
        return
    try:
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise DataFolderUnusable(
            f"data_dir: {data_dir} cannot be made ({error.strerror}); make it, or name another folder"
        ) from None
    _sync_folder(data_dir.parent)


def choose_binaries(cluster: Path, installed: Mapping[int, Binaries]) -> Binaries:
    """The programs that fit the data folder: those of its major version, the newest where it is new.

    Raises ClusterUnsuitable for data of a version that is not installed, and for a folder that is no data
    folder.
    """
    newest = installed[max(installed)]
    if not cluster.exists() or not any(cluster.iterdir()):
        return newest
    try:
        version = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise ClusterUnsuitable(
            f"data_dir: {cluster} is not a data folder of PostgreSQL (it has no PG_VERSION); "
            "move it away, or give this server another data_dir"
        ) from None
    if version.isdigit() and int(version) in installed:
        return installed[int(version)]
    raise ClusterUnsuitable(
        f"data_dir: {cluster} was made by PostgreSQL {version}, but {newest.major} is installed; start the "
        f"release of Lair Chat that made it, set database.url to a PostgreSQL {version} that serves this "
        f"folder, or move the data with pg_dump of version {version} into a new data_dir"
    )


async def prepare_cluster(cluster: Path, binaries: Binaries, privileges: Privileges, settings: str) -> None:
    """Make the data folder where there is none, hand it to its user, and write postgresql.conf.

    To be called while no PostgreSQL runs in it. Raises ClusterNotMade.
    """
    data_dir = cluster.parent
    for unfinished in data_dir.glob(f"{_UNFINISHED}*"):
        log.warning("removing %s, which an interrupted first start left", unfinished)
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
    if not (cluster / "PG_VERSION").exists():
        await _make(cluster, binaries, privileges)
    await asyncio.to_thread(_hand_over, cluster, privileges)
    _write_settings(cluster, privileges, settings)


async def _make(cluster: Path, binaries: Binaries, privileges: Privileges) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=cluster.parent))
    log.info("making the data folder of PostgreSQL %d in %s", binaries.major, cluster)
    try:
        await asyncio.to_thread(_hand_over, unfinished, privileges)
        process = await asyncio.create_subprocess_exec(
            *privileges.command(binaries.initdb, *_INITDB_OPTIONS, "-D", unfinished, death_signal="KILL"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=CHILD_FOLDER,
            env=CHILD_ENVIRONMENT,
            start_new_session=True,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _INITDB_LIMIT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise ClusterNotMade(
                f"data_dir: a data folder of PostgreSQL could not be made in {cluster.parent}; initdb said:\n"
                + os.fsdecode(output).strip()
            )
        await asyncio.to_thread(_put_in_place, unfinished, cluster)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        raise


def _put_in_place(unfinished: Path, cluster: Path) -> None:
    unfinished.rename(cluster)
    _sync_folder(cluster.parent)


def _hand_over(folder: Path, privileges: Privileges) -> None:
    """Give a folder and all in it to the user of PostgreSQL, where it is another's.

    The folder itself comes last, so that an interrupted hand-over is done again.
    """
    if folder.stat().st_uid == privileges.uid:
        return
    log.info("data_dir: giving %s to the user %s", folder, privileges.name)
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.lchown(Path(parent, name), privileges.uid, privileges.gid)
    os.chown(folder, privileges.uid, privileges.gid)


def _write_settings(cluster: Path, privileges: Privileges, settings: str) -> None:
    """Replace postgresql.conf, without following a link that its user may have put in its place."""
    descriptor, name = tempfile.mkstemp(prefix="postgresql.conf.", dir=cluster)
    with os.fdopen(descriptor, "w") as file:
        file.write(settings)
        if os.geteuid() == 0:
            os.fchown(descriptor, privileges.uid, privileges.gid)
    Path(name).replace(cluster / "postgresql.conf")


def _sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
