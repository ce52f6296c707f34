"""lair-chat user and lair-chat token, on the database of a server that runs."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from homeserver.__main__ import main
from storage.database import Database
from tests.clients import LOGIN, Response, password_login
from tests.servers import RunningServer, running_server, unique_name

WHOAMI = "/_matrix/client/v3/account/whoami"


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def run(database: Database, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs lair-chat with a configuration for the migrated database, beside the event loop."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"server_name: test\ndatabase: {{url: '{database_url}', pool_size: 2}}\n"
        "passwords: {argon2_memory_kib: 64, argon2_iterations: 1}\n"
    )

    async def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*arguments, "--config", str(config)])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    """A file with the password "tea for two"."""
    file = tmp_path / "password"
    file.write_text("tea for two\n")
    return str(file)


async def log_in(server: RunningServer, username: str, password: str) -> Response:
    return await server.nobody.post(LOGIN, password_login(username, password))


async def test_an_account_is_made(database_url: str, run: Run, password_file: str) -> None:
    name = unique_name()
    created = await run("user", "create", name.upper(), "--password-file", password_file)
    async with running_server(database_url) as server:
        login = await log_in(server, name, "tea for two")
        requester = await server.services.access_tokens.authenticate(login.body["access_token"])

    assert (created.code, created.out) == (0, f"created @{name}:test\n")
    assert not requester.is_admin


async def test_an_admin_is_made(database_url: str, run: Run, password_file: str) -> None:
    name = unique_name()
    created = await run("user", "create", name, "--admin", "--password-file", password_file)
    async with running_server(database_url) as server:
        login = await log_in(server, name, "tea for two")
        requester = await server.services.access_tokens.authenticate(login.body["access_token"])

    assert created.code == 0
    assert requester.is_admin


@pytest.mark.parametrize("name", ["a b", "", "é", "x" * 300])
async def test_a_name_that_cannot_be_is_refused(run: Run, password_file: str, name: str) -> None:
    created = await run("user", "create", name, "--password-file", password_file)

    assert created.code == 1
    assert created.err.startswith("lair-chat: a user ")


async def test_a_name_is_taken_only_once(run: Run, password_file: str) -> None:
    name = unique_name()
    await run("user", "create", name, "--password-file", password_file)
    again = await run("user", "create", name, "--password-file", password_file)

    assert (again.code, again.err) == (1, f"lair-chat: @{name}:test is taken\n")


async def test_without_a_file_the_password_is_asked_for_twice(
    database_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique_name()
    answers = iter(["tea", "milk", "tea", "tea"])
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: next(answers))
    differing = await run("user", "create", name)
    same = await run("user", "create", name)
    async with running_server(database_url) as server:
        login = await log_in(server, name, "tea")

    assert differing.code == 1
    assert "differ" in differing.err
    assert same.code == 0
    assert login.status == 200


async def test_a_password_file_that_cannot_be_read_is_named(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    created = await run("user", "create", unique_name(), "--password-file", missing)

    assert created.code == 1
    assert missing in created.err


async def test_a_new_password_logs_the_user_out(database_url: str, run: Run, password_file: str) -> None:
    async with running_server(database_url) as server:
        alice = await server.nobody.register(unique_name("alice"), "milk")
        changed = await run("user", "password", alice.user_id, "--password-file", password_file)
        old, new = [await log_in(server, alice.user_id, password) for password in ("milk", "tea for two")]
    async with running_server(database_url) as server:
        who = await server.nobody.as_user(alice).get(WHOAMI)

    assert changed.code == 0
    assert old.error == (403, "M_FORBIDDEN")
    assert new.status == 200
    assert who.error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
@pytest.mark.parametrize("command", ["password", "deactivate"])
async def test_sec_sess_1_a_running_server_refuses_within_a_second_who_was_logged_out_beside_it(
    database_url: str, run: Run, password_file: str, command: str
) -> None:
    options = ["--password-file", password_file] if command == "password" else []
    async with running_server(database_url) as server:
        alice = await server.nobody.register(unique_name("alice"), "milk")
        before = await alice.get(WHOAMI)
        done = await run("user", command, alice.user_id, *options)
        async with asyncio.timeout(1):
            while (answer := await alice.get(WHOAMI)).status == 200:
                pass

    assert before.status == 200
    assert done.code == 0
    assert answer.error == (401, "M_UNKNOWN_TOKEN")


async def test_an_account_is_deactivated(database_url: str, run: Run, password_file: str) -> None:
    name = unique_name()
    await run("user", "create", name, "--password-file", password_file)
    deactivated = await run("user", "deactivate", name)
    password = await run("user", "password", name, "--password-file", password_file)
    async with running_server(database_url) as server:
        login = await log_in(server, name, "tea for two")

    assert (deactivated.code, deactivated.out) == (0, f"deactivated @{name}:test\n")
    assert (password.code, password.err) == (1, "lair-chat: this account has been deactivated\n")
    assert login.error == (403, "M_USER_DEACTIVATED")


@pytest.mark.parametrize("name", ["nobody-has-this-name", "@alice:elsewhere"])
async def test_a_user_who_does_not_exist_cannot_be_deactivated(run: Run, name: str) -> None:
    deactivated = await run("user", "deactivate", name)

    assert deactivated.code == 1
    assert name in deactivated.err


async def test_a_registration_token_is_made_listed_and_revoked(database_url: str, run: Run) -> None:
    token = (await run("token", "create", "--uses", "2", "--expires", "7d")).out.strip()
    listed = (await run("token", "list")).out
    revoked = await run("token", "revoke", token)
    again = await run("token", "revoke", token)

    assert len(token) == 43
    assert token not in listed
    assert any("usable" in line and "0 of 2 used" in line for line in listed.splitlines())
    assert revoked.code == 0
    assert again.code == 1
    assert "no such registration token" in again.err


async def test_a_token_is_revoked_by_its_fingerprint(database_url: str, run: Run) -> None:
    before = set((await run("token", "list")).out.splitlines())
    token = (await run("token", "create")).out.strip()
    [line] = set((await run("token", "list")).out.splitlines()) - before
    async with running_server(database_url) as server:
        valid = await server.services.registration_tokens.is_usable(token)
        revoked = await run("token", "revoke", line.split()[0])
        invalid = await server.services.registration_tokens.is_usable(token)

    assert "any number" in line
    assert "never expires" in line
    assert revoked.code == 0
    assert (valid, invalid) == (True, False)


@pytest.mark.parametrize(
    "arguments", [("--uses", "0"), ("--uses", "many"), ("--expires", "7"), ("--expires", "0d")]
)
async def test_limits_without_sense_are_wrong_usage(run: Run, arguments: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        await run("token", "create", *arguments)
