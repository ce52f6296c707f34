"""The embedded PostgreSQL as one object: started, watched, started again when it dies, stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from homeserver.errors import LairError
from storage.embedded.binaries import Binaries, find_binaries, package_folder
from storage.embedded.cluster import CLUSTER, choose_binaries, make_data_dir, prepare_cluster
from storage.embedded.data_folder_lock import (
    DataFolderInUse,
    DataFolderUnusable,
    FileLock,
    lock_as_user,
    lock_data_folder,
    lock_out_users,
)
from storage.embedded.postmaster import Postmaster
from storage.embedded.privileges import Privileges, Way, check_owner, choose_privileges
from storage.embedded.readiness import PROGRESS_INTERVAL_S, is_ready, wait_until_ready
from storage.embedded.settings import configuration
from storage.embedded.socket_folder import (
    connection_url,
    provide_socket_folder,
    remove_socket_folder,
    socket_folder_of,
    temporary_parent,
)
from storage.embedded.survivors import remove_stale_lock_files, stop_survivors

log = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.1
_ATTACHED_LIMIT_S: Final = 60.0


class EmbeddedPostgres:
    """The PostgreSQL of one data folder, run by this process.

    `data_dir`: the server's data folder; PostgreSQL's own is in it. `run_as`: the user that root starts
    PostgreSQL as. `pool_size`: the connections that all pools of the server may open together.
    `on_restart` is called each time PostgreSQL has died and answers again.
    `package` and `ways`: where the programs are, and which ways to change the user are tried.
    """

    def __init__(
        self,
        data_dir: Path,
        run_as: str,
        pool_size: int,
        *,
        on_restart: Callable[[], None] | None = None,
        package: Path | None = None,
        ways: Iterable[Way] = tuple(Way),
    ) -> None:
        self.data_dir = data_dir.resolve()
        self._cluster = self.data_dir / CLUSTER
        self._run_as = run_as
        self._pool_size = pool_size
        self._on_restart = on_restart
        self._package = package
        self._ways = tuple(ways)
        self._lock: FileLock | None = None
        self._postmaster: Postmaster | None = None
        self._is_ready = False

    @property
    def url(self) -> str:
        """The URL (DSN) of our database, the same for as long as PostgreSQL runs or is started again."""
        return connection_url(socket_folder_of(self.data_dir, self._cluster))

    @property
    def postmaster_pid(self) -> int | None:
        """The process ID of the postmaster; None while there is none."""
        return None if self._postmaster is None else self._postmaster.pid

    @property
    def is_ready(self) -> bool:
        """Whether PostgreSQL has answered and not died since."""
        return self._is_ready

    async def start(self) -> None:
        """Start PostgreSQL and wait until it answers; makes the data folder where there is none.

        Raises DataFolderInUse when another process runs it, and other kinds of LairError that say what is
        wrong with the data folder or the machine.
        """
        make_data_dir(self.data_dir)
        self._lock = await lock_data_folder(self.data_dir)
        try:
            self._binaries, self._privileges = await self._choose()
            await stop_survivors(self._cluster)
            settings = configuration(self._pool_size)
            await prepare_cluster(self._cluster, self._binaries, self._privileges, settings)
            self._socket_folder = provide_socket_folder(
                self.data_dir, self._cluster, self._privileges.uid, self._privileges.gid
            )
            await self._launch()
        except OSError as error:
            await self.stop()
            raise DataFolderUnusable(
                f"data_dir: PostgreSQL cannot be started in {self.data_dir} ({error}); "
                "check that the disk has space and that this user may write there"
            ) from error
        except BaseException:
            await self.stop()
            raise
        log.info("PostgreSQL %d answers (process %d)", self._binaries.major, self.postmaster_pid)

    async def stop(self) -> None:
        """Stop PostgreSQL, wait for its end and let others have the data folder."""
        try:
            self._is_ready = False
            if self._postmaster is not None:
                await self._postmaster.stop()
                self._postmaster = None
        finally:
            if self._lock is not None:
                remove_socket_folder(self.data_dir, self._cluster)
                self._lock.release()
                self._lock = None

    async def keep_running(self) -> None:
        """Start PostgreSQL again each time it dies; to be cancelled before `stop`."""
        while self._postmaster is not None:
            ending = await self._postmaster.wait()
            self._is_ready = False
            log.error("PostgreSQL ended unexpectedly (%s); starting it again", ending)
            self._postmaster = None
            await self._launch_at_last()
            log.warning("PostgreSQL answers again (process %d)", self.postmaster_pid)
            if self._on_restart is not None:
                self._on_restart()

    async def _choose(self) -> tuple[Binaries, Privileges]:
        check_owner(self._cluster)
        binaries = choose_binaries(self._cluster, find_binaries(self._package or package_folder()))
        folders = [self.data_dir, self._cluster.resolve().parent]
        parent = temporary_parent(self._cluster)
        if parent is not None:
            folders.append(parent)
        privileges = await choose_privileges(
            self._run_as, self.data_dir, self._cluster, binaries, folders, self._ways
        )
        return binaries, privileges

    async def _launch_at_last(self) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return await self._launch()
            except (LairError, OSError) as error:
                log.error("PostgreSQL does not start; the next attempt is in %g s: %s", delay_s, error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _launch(self) -> None:
        await stop_survivors(self._cluster)
        remove_stale_lock_files(self._cluster, self._socket_folder)
        postmaster = await Postmaster.start(
            self._cluster, self._binaries, self._privileges, self._socket_folder
        )
        try:
            await wait_until_ready(postmaster, self._socket_folder)
        except BaseException:
            await postmaster.stop()
            raise
        self._postmaster = postmaster
        self._is_ready = True


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path, run_as: str, pool_size: int, *, on_restart: Callable[[], None] | None = None
) -> AsyncIterator[EmbeddedPostgres]:
    """Run the PostgreSQL of `data_dir` for as long as the block lasts, and start it again when it dies.

    Raises what `EmbeddedPostgres.start` raises.
    """
    postgres = EmbeddedPostgres(data_dir, run_as, pool_size, on_restart=on_restart)
    await postgres.start()
    try:
        async with _beside(postgres.keep_running()):
            yield postgres
    finally:
        await postgres.stop()


@asynccontextmanager
async def attach_or_start(data_dir: Path, run_as: str, pool_size: int) -> AsyncIterator[str]:
    """For commands: the URL of the database, of the running PostgreSQL or of one started for the block.

    One that was started is stopped at the end, after the commands that have attached to it meanwhile. While
    another process starts or stops it, this waits for that process.
    """
    reported = time.monotonic()
    while True:
        postgres = EmbeddedPostgres(data_dir, run_as, pool_size)
        try:
            await postgres.start()
        except DataFolderInUse as error:
            in_use = error
        else:
            try:
                yield postgres.url
            finally:
                no_users = await _without_users(postgres.data_dir)
                try:
                    await postgres.stop()
                finally:
                    if no_users is not None:
                        no_users.release()
            return
        as_user = lock_as_user(postgres.data_dir)
        if as_user is not None:
            try:
                socket_folder = socket_folder_of(postgres.data_dir, postgres.data_dir / CLUSTER)
                if await is_ready(socket_folder):
                    yield connection_url(socket_folder)
                    return
            finally:
                as_user.release()
        if time.monotonic() - reported >= PROGRESS_INTERVAL_S:
            log.info("waiting until PostgreSQL answers: %s", in_use)
            reported = time.monotonic()
        await asyncio.sleep(_LOOK_AGAIN_S)


async def _without_users(data_dir: Path) -> FileLock | None:
    """Wait until no command uses the PostgreSQL that we are about to stop; None when they take too long."""
    try:
        async with asyncio.timeout(_ATTACHED_LIMIT_S):
            while True:
                lock = lock_out_users(data_dir)
                if lock is not None:
                    return lock
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        log.warning("stopping PostgreSQL although other commands still use it")
        return None


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` until the block ends; the block's exception comes out as it is, not in a group."""
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield
        except BaseException as error:  # raised again below
            failure = error
        finally:
            task.cancel()
    if failure is not None:
        raise failure
