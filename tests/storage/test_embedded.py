"""The embedded PostgreSQL: its whole life, as root and as an ordinary user alike."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from homeserver.errors import LairError
from storage.database import CONNECTION_LOST
from storage.embedded.binaries import find_binaries, package_folder
from storage.embedded.cluster import ClusterUnsuitable
from storage.embedded.data_folder_lock import DataFolderInUse
from storage.embedded.postmaster import Postmaster
from storage.embedded.readiness import PostgresNotStarted
from storage.embedded.supervisor import EmbeddedPostgres, attach_or_start, embedded_postgres
from storage.embedded.survivors import processes_in
from tests.storage.embedded_processes import has_ended, program, query, told


@pytest.fixture(scope="module")
async def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that has been started and stopped before."""
    folder = tmp_path_factory.mktemp("embedded") / "data"
    async with embedded_postgres(folder, "nobody", 5):
        pass
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def sees_processes_of_other_users() -> bool:
    """Whether this is an ordinary user, whose PostgreSQL is its own, or root with CAP_SYS_PTRACE."""
    capabilities = re.search(r"CapEff:\t([0-9a-f]+)", Path("/proc/self/status").read_text())
    assert capabilities is not None
    return os.geteuid() != 0 or bool(int(capabilities[1], 16) >> 19 & 1)


async def settings_of(url: str, *names: str) -> Mapping[str, str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", names)
    finally:
        await connection.close()
    return dict(rows)


async def test_a_first_start_makes_a_database_that_is_safe_and_ours_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    async with embedded_postgres(data_dir, "nobody", 10) as postgres:
        settings = await settings_of(
            postgres.url,
            *("data_checksums", "fsync", "full_page_writes", "synchronous_commit"),
            *("jit", "wal_compression", "listen_addresses", "log_timezone", "server_encoding"),
        )
        max_connections = int(await query(postgres.url, "SHOW max_connections"))
        collation = await query(
            postgres.url,
            "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = current_database()",
        )

    assert settings == {
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "jit": "off",
        "wal_compression": "pglz",
        "listen_addresses": "",
        "log_timezone": "UTC",
        "server_encoding": "UTF8",
    }
    assert max_connections > 10
    assert collation == "bC.UTF-8"
    assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700


async def test_what_was_committed_and_set_is_there_after_a_restart(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        await query(postgres.url, "CREATE TABLE kept AS SELECT 7 AS number")
        await query(postgres.url, "ALTER SYSTEM SET work_mem = '9MB'")
        first = postgres.postmaster_pid
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        number = await query(postgres.url, "SELECT number FROM kept")
        work_mem = await query(postgres.url, "SHOW work_mem")
        second = postgres.postmaster_pid

    assert (number, work_mem) == (7, "9MB")
    assert first != second
    assert processes_in(data_dir / "postgres") == []


async def test_a_second_server_on_the_same_folder_is_told_who_has_it(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        with pytest.raises(DataFolderInUse, match=f"in use by another Lair Chat, process {os.getpid()};"):
            await EmbeddedPostgres(data_dir, "nobody", 5).start()

        assert await query(postgres.url, "SELECT 1") == 1


async def test_files_that_a_dead_server_left_hold_nobody_up(data_dir: Path) -> None:
    alive_but_another_program = os.getpid()
    (data_dir / "postgres.lock").write_text(f"{alive_but_another_program}\n")
    (data_dir / "postgres" / "postmaster.pid").write_text(f"{alive_but_another_program}\n")
    (data_dir / "postgres" / ".s.PGSQL.5432.lock").write_text(f"{alive_but_another_program}\n")

    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        assert await query(postgres.url, "SELECT 1") == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_postgres_ends_when_its_server_is_killed(data_dir: Path, loop: str) -> None:
    async with program(loop, data_dir, "serve") as server:
        postmaster = (await told(server))["postmaster"]
        server.kill()

        assert await has_ended(postmaster)

    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        assert await query(postgres.url, "SELECT 1") == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_ctrl_c_reaches_the_server_alone_which_drains_and_then_stops_postgres(
    data_dir: Path, loop: str
) -> None:
    async with program(loop, data_dir, "serve") as server:
        postmaster = (await told(server))["postmaster"]
        os.killpg(server.pid, signal.SIGINT)

        assert await told(server) == {"answer": 42}
        assert await server.wait() == 0
        assert await has_ended(postmaster)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_killed_postgres_comes_back_and_every_child_is_reaped(data_dir: Path, loop: str) -> None:
    async with program(loop, data_dir, "cycle") as server:
        assert await told(server) == {"is_another": True, "answer": 42}
        assert await told(server) == {"children": []}
        assert await server.wait() == 0


async def test_a_postgres_that_is_killed_again_and_again_loses_nothing(data_dir: Path) -> None:
    restarted = asyncio.Event()
    async with embedded_postgres(data_dir, "nobody", 5, on_restart=restarted.set) as postgres:
        url = postgres.url
        await query(url, "CREATE TABLE kills (number int)")
        for number in range(3):
            await query(url, f"INSERT INTO kills VALUES ({number})")
            assert postgres.postmaster_pid is not None
            os.kill(postgres.postmaster_pid, signal.SIGKILL)
            await asyncio.wait_for(restarted.wait(), 60)
            restarted.clear()
            assert postgres.is_ready

        assert postgres.url == url
        assert await query(url, "SELECT array_agg(number) FROM kills") == [0, 1, 2]


if sees_processes_of_other_users():

    async def test_processes_that_outlive_a_killed_postmaster_are_stopped_before_the_next(
        data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("storage.embedded.survivors._ORPHANS_LEAVE_LIMIT_S", 0.1)
        monkeypatch.setattr("storage.embedded.survivors._HARD_STOP_LIMIT_S", 0.5)
        restarted = asyncio.Event()
        async with embedded_postgres(data_dir, "nobody", 5, on_restart=restarted.set) as postgres:
            connection = await asyncpg.connect(postgres.url)
            frozen = connection.get_server_pid()
            os.kill(frozen, signal.SIGSTOP)
            try:
                assert postgres.postmaster_pid is not None
                os.kill(postgres.postmaster_pid, signal.SIGKILL)
                await asyncio.wait_for(restarted.wait(), 60)
            finally:
                connection.terminate()
                with suppress(ProcessLookupError):
                    os.kill(frozen, signal.SIGCONT)

            assert frozen not in processes_in(data_dir / "postgres")
            assert await query(postgres.url, "SELECT 1") == 1


async def recovered(url: str) -> bool:
    """Whether PostgreSQL answers; while it recovers it refuses connections, or drops them half-way."""
    try:
        return bool(await query(url, "SELECT 1") == 1)
    except CONNECTION_LOST:
        await asyncio.sleep(0.02)
        return False


async def test_a_killed_connection_is_the_business_of_postgres_and_is_reported(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        postmaster = postgres.postmaster_pid
        connection = await asyncpg.connect(postgres.url)
        os.kill(connection.get_server_pid(), signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT pg_sleep(60)")
        async with asyncio.timeout(60):
            while not await recovered(postgres.url):
                pass

        assert postgres.postmaster_pid == postmaster
    assert "was terminated by signal 9" in caplog.text


async def test_starting_again_is_tried_until_it_succeeds(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("storage.embedded.supervisor._FIRST_DELAY_S", 0.01)
    restarted = asyncio.Event()
    start = Postmaster.start
    failures = [OSError("no memory for a process"), PostgresNotStarted("the disk is full")]

    async def start_at_the_third_time(*values: Any) -> Postmaster:
        if failures:
            raise failures.pop(0)
        return await start(*values)

    async with embedded_postgres(data_dir, "nobody", 5, on_restart=restarted.set) as postgres:
        monkeypatch.setattr(Postmaster, "start", start_at_the_third_time)
        assert postgres.postmaster_pid is not None
        os.kill(postgres.postmaster_pid, signal.SIGKILL)
        await asyncio.wait_for(restarted.wait(), 60)

        assert await query(postgres.url, "SELECT 1") == 1
    assert "the next attempt is in 0.02 s: the disk is full" in caplog.text


async def test_a_postmaster_of_an_earlier_start_is_stopped_first(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, "nobody", 5)
    await postgres.start()
    try:
        words = postgres._privileges.command(
            postgres._binaries.postgres, "-D", data_dir / "postgres", "-h", "", death_signal="KILL"
        )
    finally:
        await postgres.stop()
    survivor = await asyncio.create_subprocess_exec(
        *words, "-k", str(data_dir / "postgres"), cwd="/", stderr=asyncio.subprocess.PIPE
    )
    assert survivor.stderr is not None
    while b"ready to accept connections" not in await asyncio.wait_for(survivor.stderr.readline(), 60):
        pass

    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        assert await asyncio.wait_for(survivor.wait(), 10) == 0
        assert await query(postgres.url, "SELECT 1") == 1


async def test_commands_use_the_running_postgres_and_leave_it_running(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, "nobody", 5) as postgres:
        async with attach_or_start(data_dir, "nobody", 5) as url:
            assert url == postgres.url
            assert await query(url, "SELECT 1") == 1

        assert await query(postgres.url, "SELECT 1") == 1


async def test_a_command_without_a_server_starts_postgres_while_it_runs(data_dir: Path) -> None:
    async with attach_or_start(data_dir, "nobody", 5) as url:
        assert await query(url, "SELECT 1") == 1

    assert processes_in(data_dir / "postgres") == []


async def test_a_command_that_started_postgres_waits_for_those_that_use_it(data_dir: Path) -> None:
    second_is_attached = asyncio.Event()
    first_leaves = asyncio.Event()
    first_left = asyncio.Event()

    async def first_command() -> None:
        async with attach_or_start(data_dir, "nobody", 5):
            group.create_task(second_command())
            await second_is_attached.wait()
            first_leaves.set()
        first_left.set()

    async def second_command() -> None:
        async with attach_or_start(data_dir, "nobody", 5) as url:
            second_is_attached.set()
            await first_leaves.wait()
            assert await query(url, "SELECT count(*) FROM pg_class, pg_sleep(0.1)") > 0
            assert not first_left.is_set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(first_command())
    assert processes_in(data_dir / "postgres") == []


async def test_a_command_waits_for_a_server_that_is_starting(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, "nobody", 5)

    async def command() -> None:
        with pytest.raises(DataFolderInUse):
            await EmbeddedPostgres(data_dir, "nobody", 5).start()
        async with attach_or_start(data_dir, "nobody", 5) as url:
            assert await query(url, "SELECT 1") == 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(postgres.start())
        group.create_task(command())
    await postgres.stop()


async def test_an_interrupted_first_start_is_made_up_for(tmp_path: Path) -> None:
    async with program("asyncio", tmp_path, "serve") as server:
        assert server.stderr is not None
        while b"making the data folder" not in await asyncio.wait_for(server.stderr.readline(), 60):
            pass
        server.kill()
        await server.wait()
    assert not (tmp_path / "postgres").exists()
    assert len(list(tmp_path.glob("postgres.new-*"))) == 1

    async with embedded_postgres(tmp_path, "nobody", 5) as postgres:
        assert await query(postgres.url, "SELECT 1") == 1
    assert list(tmp_path.glob("postgres.new-*")) == []


@pytest.mark.parametrize("name", ["long" * 30, "a, b", "gr\u00fcn %41 \"'", "not\udce4utf8", "tea=1&2?#:@"])
async def test_any_name_of_a_folder_is_good_for_a_socket(
    data_dir: Path, short_folder: Path, name: str
) -> None:
    folder = short_folder / name
    shutil.copytree(data_dir, folder)
    async with embedded_postgres(folder, "nobody", 5) as postgres:
        assert await query(postgres.url, "SELECT 1") == 1
        async with attach_or_start(folder, "nobody", 5) as url:
            assert await query(url, "SELECT 1") == 1
        naming_file = folder / "postgres.socket"
        elsewhere = Path(naming_file.read_text().strip()) if naming_file.exists() else None
        if elsewhere is not None:
            assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700

    assert (elsewhere is None) == name.startswith(("gr", "tea"))
    assert not naming_file.exists()
    assert elsewhere is None or not elsewhere.exists()


async def test_a_socket_folder_that_a_killed_server_left_is_used_again(
    data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)
    shutil.copytree(data_dir, folder)
    async with program("asyncio", folder, "serve") as server:
        first = await told(server)
        server.kill()
        assert await has_ended(first["postmaster"])

    async with embedded_postgres(folder, "nobody", 5) as postgres:
        assert postgres.url == first["url"]


async def test_data_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")

    with pytest.raises(
        ClusterUnsuitable, match=r"was made by PostgreSQL 16, but \d+ is installed; .*pg_dump"
    ):
        await EmbeddedPostgres(tmp_path, "nobody", 5).start()

    assert [file.name for file in (tmp_path / "postgres").iterdir()] == ["PG_VERSION"]


async def test_a_folder_that_holds_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "holiday.jpg").touch()

    with pytest.raises(ClusterUnsuitable, match="is not a data folder of PostgreSQL"):
        await EmbeddedPostgres(tmp_path, "nobody", 5).start()

    assert (tmp_path / "postgres" / "holiday.jpg").exists()


async def test_a_postmaster_that_ends_while_starting_is_an_error_with_its_last_words(
    data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    os.truncate(folder / "postgres" / "global" / "pg_control", 100)
    postgres = EmbeddedPostgres(folder, "nobody", 5)

    with pytest.raises(PostgresNotStarted, match=r"ended while it started \((?s:.*)pg_control"):
        await postgres.start()

    with pytest.raises(PostgresNotStarted):  # and the lock was let go
        await postgres.start()


async def test_a_start_that_takes_time_says_so(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("storage.embedded.readiness.PROGRESS_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO)

    async with embedded_postgres(data_dir, "nobody", 5):
        assert "PostgreSQL has been starting for 0 s" in caplog.text


async def test_an_error_of_the_server_comes_out_as_it_is(data_dir: Path) -> None:
    async def serve() -> None:
        async with embedded_postgres(data_dir, "nobody", 5):
            raise LairError("listeners: the port is taken")

    with pytest.raises(LairError, match="the port is taken"):
        await serve()
    assert processes_in(data_dir / "postgres") == []


async def test_cancelling_the_server_stops_postgres(data_dir: Path) -> None:
    is_up = asyncio.Event()

    async def serve() -> None:
        async with embedded_postgres(data_dir, "nobody", 5):
            is_up.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        server = group.create_task(serve())
        await is_up.wait()
        server.cancel()

    assert server.cancelled()
    assert processes_in(data_dir / "postgres") == []


async def test_a_backup_that_root_restored_is_handed_over(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)  # the copy belongs to whoever runs the tests

    async with embedded_postgres(folder, "nobody", 5) as postgres:
        assert await query(postgres.url, "SELECT 1") == 1


def test_the_wheel_carries_one_postgres_18() -> None:
    [binaries] = [found for major, found in find_binaries(package_folder()).items() if major == 18]

    assert binaries.postgres.exists()
    assert binaries.initdb.exists()
