"""The signing key: its file, and what the database remembers of it."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from homeserver.errors import LairError
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.signing import VerifyKey, parse_signing_key
from homeserver.services.own_keys import SigningKeyIdReused, SigningKeyLost, load_own_keys
from homeserver.services.signing_key_file import (
    SigningKeyUnusable,
    create_signing_key,
    new_signing_key,
    read_signing_key,
)
from storage.database import Database
from storage.migrate import migrate
from tests.servers import MovableClock, running_server

TEA = ServerName("tea.test")


@pytest.fixture
async def empty_database(postgres_url: str) -> AsyncIterator[Database]:
    """A migrated database that no server has used."""
    name = f"lair_test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    try:
        database = await Database.open(urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}")), 2)
        await migrate(database)
        yield database
        await database.close()
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.mark.invariant("SEC-SUPPLY-1")
def test_sec_supply_1_a_new_key_is_random_and_for_its_owner_alone(tmp_path: Path) -> None:
    first, second = (create_signing_key(tmp_path / name / "signing.key") for name in "ab")
    file = tmp_path / "a" / "signing.key"

    assert re.fullmatch(r"ed25519 a_[A-Za-z0-9]{4} [A-Za-z0-9+/]{43}\n", file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert parse_signing_key(file.read_text()).public_key == first.public_key != second.public_key
    assert [path.name for path in file.parent.iterdir()] == ["signing.key"]


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    first = create_signing_key(file)

    assert create_signing_key(file).public_key == first.public_key


@pytest.mark.invariant("SEC-SUPPLY-1")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"tea",
        b"\xff\xfe",
        b"ed25519 a_1 AAAA",
        b"rsa a_1 l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",
        b"ed25519 a-1 l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",
        b"ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1",  # published in the specification
        (new_signing_key().to_text() * 2).encode(),
    ],
)
async def test_sec_supply_1_a_file_without_a_usable_key_stops_the_start(
    database: Database, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "signing.key"
    file.write_bytes(content)
    with pytest.raises(SigningKeyUnusable, match=re.escape(f"signing_key_path: {file}")) as caught:
        await load_own_keys(database, TEA, file, MovableClock())

    assert isinstance(caught.value, LairError)
    assert file.read_bytes() == content


async def test_the_server_does_not_start_without_its_key(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    file.mkdir()
    with pytest.raises(SigningKeyUnusable, match="cannot be read"):
        async with running_server(database_url, signing_key_path=str(file)):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SigningKeyUnusable, match="cannot be written"):
        create_signing_key(tmp_path / "file" / "signing.key")


def test_a_key_that_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "signing.key"
    create_signing_key(file)
    read_signing_key(file)
    assert caplog.messages == []

    file.chmod(0o640)
    read_signing_key(file)
    assert f"{file} can be read by others" in caplog.messages[0]


async def test_the_first_start_makes_the_key_and_later_ones_keep_it(
    empty_database: Database, tmp_path: Path
) -> None:
    file, clock = tmp_path / "data" / "signing.key", MovableClock()
    async with asyncio.TaskGroup() as tasks:
        starts = [tasks.create_task(load_own_keys(empty_database, TEA, file, clock)) for _ in range(3)]
    again = await load_own_keys(empty_database, TEA, file, clock)

    assert {start.result().current.public_key for start in starts} == {again.current.public_key}
    assert again.old == {}
    assert set(again.verify_keys) == {again.current.key_id}


async def test_a_key_that_was_replaced_stays_good_for_what_it_signed(
    empty_database: Database, tmp_path: Path
) -> None:
    file, clock = tmp_path / "signing.key", MovableClock()
    first = await load_own_keys(empty_database, TEA, file, clock)
    clock.advance(1000)
    file.write_text(new_signing_key().to_text())
    second = await load_own_keys(empty_database, TEA, file, clock)
    clock.advance(1000)
    third = await load_own_keys(empty_database, TEA, file, clock)

    retired = {first.current.key_id: VerifyKey(first.current.public_key, clock() - 1000)}
    assert second.current.key_id != first.current.key_id
    assert second.old == third.old == retired
    assert set(third.verify_keys) == {first.current.key_id, second.current.key_id}


@pytest.mark.invariant("SEC-SUPPLY-1")
async def test_sec_supply_1_a_lost_key_is_not_replaced_silently(
    empty_database: Database, tmp_path: Path
) -> None:
    file, clock = tmp_path / "signing.key", MovableClock()
    first = await load_own_keys(empty_database, TEA, file, clock)
    content = file.read_text()
    file.unlink()
    with pytest.raises(SigningKeyLost, match=first.current.key_id):
        await load_own_keys(empty_database, TEA, file, clock)
    assert not file.exists()

    file.write_text(content)
    assert (await load_own_keys(empty_database, TEA, file, clock)).old == {}


async def test_two_keys_never_share_an_id(empty_database: Database, tmp_path: Path) -> None:
    file, clock = tmp_path / "signing.key", MovableClock()
    first = await load_own_keys(empty_database, TEA, file, clock)
    version = first.current.key_id.removeprefix("ed25519:")
    seed = new_signing_key().to_text().split()[2]
    file.write_text(f"ed25519 {version} {seed}\n")

    with pytest.raises(SigningKeyIdReused, match=first.current.key_id):
        await load_own_keys(empty_database, TEA, file, clock)
