"""The embedded PostgreSQL started by root, which it refuses to run as.

For an ordinary user there is nothing to test here: nothing is collected.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.embedded.binaries import package_folder
from storage.embedded.privileges import RunAsUnusable, Way
from storage.embedded.supervisor import EmbeddedPostgres, embedded_postgres
from tests.storage.embedded_processes import has_ended, program, query, told

CAP_DAC_OVERRIDE = 1 << 1
NOBODY = pwd.getpwnam("nobody")


def user_namespaces_work() -> bool:
    words = ["unshare", "--user", "--map-user", str(NOBODY.pw_uid), "--map-group", str(NOBODY.pw_gid), "true"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


WAYS = [way for way in Way if way is not Way.USER_NAMESPACE or (os.geteuid() == 0 and user_namespaces_work())]


def status_of(pid: int | None) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def rights_of(pid: int | None) -> tuple[int, int]:
    """User ID and effective capabilities of a process."""
    status = status_of(pid)
    return int(status["Uid"].split()[1]), int(status["CapEff"], 16)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder of mode 0700, as `mktemp -d` makes it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


if os.geteuid() == 0:

    async def test_in_a_folder_that_can_be_reached_it_is_an_ordinary_user(open_folder: Path) -> None:
        async with embedded_postgres(open_folder / "data", "nobody", 5) as postgres:
            assert rights_of(postgres.postmaster_pid) == (NOBODY.pw_uid, 0)
            assert await query(postgres.url, "SELECT 1") == 1

    async def test_in_a_private_folder_it_may_enter_folders_and_no_more(closed_folder: Path) -> None:
        async with embedded_postgres(closed_folder / "data", "nobody", 5) as postgres:
            assert rights_of(postgres.postmaster_pid) == (NOBODY.pw_uid, CAP_DAC_OVERRIDE)
            assert status_of(postgres.postmaster_pid)["Groups"] == ""
            assert await query(postgres.url, "SELECT 1") == 1

        assert stat.S_IMODE(closed_folder.stat().st_mode) == 0o700
        assert (closed_folder.stat().st_uid, closed_folder.stat().st_gid) == (0, 0)

    async def test_programs_in_a_private_folder_are_reached(open_folder: Path, closed_folder: Path) -> None:
        package = package_folder()
        shutil.copytree(package, closed_folder / package.name)
        shutil.copytree(package.parent / f"{package.name}.libs", closed_folder / f"{package.name}.libs")
        postgres = EmbeddedPostgres(open_folder / "data", "nobody", 5, package=closed_folder / package.name)
        await postgres.start()
        try:
            assert rights_of(postgres.postmaster_pid) == (NOBODY.pw_uid, CAP_DAC_OVERRIDE)
            assert await query(postgres.url, "SELECT 1") == 1
        finally:
            await postgres.stop()

        assert stat.S_IMODE(closed_folder.stat().st_mode) == 0o700

    async def test_the_ways_follow_each_other_on_the_same_data(open_folder: Path) -> None:
        answers = []
        for way in (*WAYS, *reversed(WAYS)):
            postgres = EmbeddedPostgres(open_folder / "data", "nobody", 5, ways=[way])
            await postgres.start()
            try:
                await query(postgres.url, "CREATE TABLE IF NOT EXISTS starts (number serial)")
                await query(postgres.url, "INSERT INTO starts DEFAULT VALUES")
                answers.append(await query(postgres.url, "SELECT count(*) FROM starts"))
            finally:
                await postgres.stop()

        assert answers == list(range(1, 2 * len(WAYS) + 1))

    @pytest.mark.parametrize("way", [way for way in WAYS if way is not Way.PLAIN])
    async def test_every_other_way_reaches_a_private_folder(closed_folder: Path, way: Way) -> None:
        postgres = EmbeddedPostgres(closed_folder / "data", "nobody", 5, ways=[way])
        await postgres.start()
        try:
            assert await query(postgres.url, "SELECT 1") == 1
        finally:
            await postgres.stop()

    async def test_without_any_way_the_error_names_the_folder(closed_folder: Path) -> None:
        postgres = EmbeddedPostgres(closed_folder / "data", "nobody", 5, ways=[Way.PLAIN])

        expected = (
            rf"database\.run_as: .* the user nobody cannot enter the folder {closed_folder} \(mode 0700\)"
        )
        with pytest.raises(RunAsUnusable, match=expected):
            await postgres.start()

        assert not (closed_folder / "data" / "postgres").exists()

    @pytest.mark.parametrize(
        ("run_as", "reason"),
        [("no-such-user", "has no user no-such-user"), ("root", "refuses to run as root")],
    )
    async def test_a_user_that_cannot_be_is_refused(closed_folder: Path, run_as: str, reason: str) -> None:
        with pytest.raises(RunAsUnusable, match=reason):
            await EmbeddedPostgres(closed_folder / "data", run_as, 5).start()

    async def test_another_run_as_takes_the_data_over(open_folder: Path) -> None:
        async with embedded_postgres(open_folder / "data", "nobody", 5):
            pass
        async with embedded_postgres(open_folder / "data", "daemon", 5) as postgres:
            assert rights_of(postgres.postmaster_pid) == (pwd.getpwnam("daemon").pw_uid, 0)
            assert await query(postgres.url, "SELECT 1") == 1

    async def test_the_data_of_an_ordinary_user_stays_that_users(open_folder: Path) -> None:
        daemon = pwd.getpwnam("daemon")
        os.chown(open_folder, daemon.pw_uid, daemon.pw_gid)
        async with embedded_postgres(open_folder, "daemon", 5):
            pass
        async with embedded_postgres(open_folder, "nobody", 5) as postgres:
            assert rights_of(postgres.postmaster_pid)[0] == daemon.pw_uid

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    async def test_it_ends_with_its_server_when_it_is_an_ordinary_user(open_folder: Path, loop: str) -> None:
        async with program(loop, open_folder / "data", "serve") as server:
            postmaster = (await told(server))["postmaster"]
            server.kill()

            assert await has_ended(postmaster)

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    async def test_it_ends_with_its_server_when_it_may_enter_folders(closed_folder: Path, loop: str) -> None:
        async with program(loop, closed_folder / "data", "serve") as server:
            postmaster = (await told(server))["postmaster"]
            server.kill()

            assert await has_ended(postmaster)
