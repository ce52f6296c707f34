"""Sessions and their tokens: who keeps what, and how soon a revoked one is refused."""

from __future__ import annotations

import asyncio
import hashlib

import jwt
import pytest

from homeserver.services import access_tokens
from homeserver.workers.session_watch import SessionWatch
from storage.database import Database
from tests.clients import LOGIN, REGISTER, Client, password_auth, password_login
from tests.servers import RunningServer, StartServer, unique_name

WHOAMI = "/_matrix/client/v3/account/whoami"
PASSWORD = "/_matrix/client/v3/account/password"
DEACTIVATE = "/_matrix/client/v3/account/deactivate"
LOGOUT = "/_matrix/client/v3/logout"
LOGOUT_ALL = "/_matrix/client/v3/logout/all"
REFRESH = "/_matrix/client/v3/refresh"


async def refused_within_a_second(client: Client) -> None:
    """Wait until a token is refused that was valid before."""
    async with asyncio.timeout(1):
        while (answer := await client.get(WHOAMI)).status == 200:
            pass
    assert answer.error == (401, "M_UNKNOWN_TOKEN")


async def everything_stored(database: Database) -> str:
    """The text of every row of the tables that hold accounts and their secrets."""
    tables = ("users", "devices", "sessions", "refresh_tokens", "registration_tokens", "ui_auth_sessions")
    async with database.connection() as tx:
        return "\n".join(
            [
                row["text"].lower()
                for table in tables
                for row in await tx.fetch(f"SELECT {table}::text AS text FROM {table}")
            ]
        )


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_no_secret_is_stored_as_it_is(start_server: StartServer, database: Database) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"), "a password nobody guesses")
    login = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password, refresh_token=True))
    registration_token = await server.services.registration_tokens.create()
    waiting = {"username": unique_name(), "password": "another password nobody guesses"}
    session = (await server.nobody.post(REGISTER, waiting)).body["session"]
    new_password = {"new_password": "one more password nobody guesses"}
    second_session = (await alice.post(PASSWORD, new_password)).body["session"]
    stored = await everything_stored(database)

    secrets = [
        alice.access_token,
        login.body["access_token"],
        login.body["refresh_token"],
        registration_token,
        session,
        second_session,
        "password nobody guesses",
    ]
    for secret in secrets:
        assert secret is not None
        assert secret.lower() not in stored
        assert secret.encode().hex() not in stored
    assert hashlib.sha256(login.body["refresh_token"].encode()).hexdigest() in stored


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_secrets_have_256_bits_and_never_repeat(
    server: RunningServer, alice: Client
) -> None:
    body = password_login(alice.user_id, alice.password, refresh_token=True)
    refresh_tokens = {(await server.nobody.post(LOGIN, body)).body["refresh_token"] for _ in range(5)}
    sessions = {(await server.nobody.post(REGISTER, {})).body["session"] for _ in range(5)}
    tokens = {await server.services.registration_tokens.create() for _ in range(5)}

    for secrets in (refresh_tokens, sessions, tokens):
        assert len(secrets) == 5
        assert all(len(secret.removeprefix("lrt_")) == 43 for secret in secrets)


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_an_access_token_is_a_signed_name_of_a_session(
    server: RunningServer, alice: Client, database: Database
) -> None:
    assert alice.access_token is not None
    async with database.connection() as tx:
        key = await tx.fetchval("SELECT access_token_key FROM server")
    claims = jwt.decode(alice.access_token, key, ["HS256"])
    forged = jwt.encode(claims, bytes(32), "HS256")
    no_session = jwt.encode({"sid": 1}, key, "HS256")

    assert claims.keys() == {"sid"}
    for token in (forged, no_session):
        assert (await alice.with_token(token).get(WHOAMI)).error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_the_row_of_the_session_is_the_truth(
    server: RunningServer, alice: Client, database: Database
) -> None:
    assert (await alice.get(WHOAMI)).status == 200
    async with database.transaction() as tx:
        [session_id] = [
            row["session_id"]
            for row in await tx.fetch(
                """
                DELETE FROM sessions USING devices, atoms
                WHERE devices.device_nid = sessions.device_nid AND nid = user_nid AND s = $1
                RETURNING session_id
                """,
                alice.user_id.encode(),
            )
        ]
    server.services.access_tokens.forget([session_id])

    assert (await alice.get(WHOAMI)).error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
@pytest.mark.parametrize("path", [LOGOUT, LOGOUT_ALL, PASSWORD, DEACTIVATE])
async def test_sec_sess_1_a_revoked_session_is_refused_at_once_here_and_within_a_second_elsewhere(
    start_server: StartServer, path: str
) -> None:
    here, elsewhere = await start_server(), await start_server()
    alice = await here.nobody.register(unique_name("alice"))
    phone = await here.nobody.log_in(alice)
    revoked = alice if path == LOGOUT else phone
    for server in (here, elsewhere):
        assert (await server.nobody.as_user(revoked).get(WHOAMI)).status == 200
    answer = await alice.post(path, {"auth": password_auth(alice), "new_password": "coffee"})
    at_once = await revoked.get(WHOAMI)
    await refused_within_a_second(elsewhere.nobody.as_user(revoked))

    assert answer.status == 200
    assert at_once.error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_deactivated_user_has_no_way_back(server: RunningServer, alice: Client) -> None:
    login = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password, refresh_token=True))
    waiting = (await alice.post(PASSWORD, {"new_password": "coffee"})).body["session"]
    await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    refresh = await server.nobody.post(REFRESH, {"refresh_token": login.body["refresh_token"]})
    again = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password))
    auth = password_auth(alice, waiting)
    confirmed = await alice.post(PASSWORD, {"new_password": "coffee", "auth": auth})

    assert refresh.error == (401, "M_UNKNOWN_TOKEN")
    assert again.error == (403, "M_USER_DEACTIVATED")
    assert confirmed.error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_reused_refresh_token_ends_the_session_elsewhere_too(
    start_server: StartServer,
) -> None:
    here, elsewhere = await start_server(), await start_server()
    alice = await here.nobody.register(unique_name("alice"))
    body = password_login(alice.user_id, alice.password, refresh_token=True)
    first = (await here.nobody.post(LOGIN, body)).body
    second = (await here.nobody.post(REFRESH, {"refresh_token": first["refresh_token"]})).body
    newest = elsewhere.nobody.with_token(second["access_token"])
    used = await newest.get(WHOAMI)
    reuse = await here.nobody.post(REFRESH, {"refresh_token": first["refresh_token"]})
    await refused_within_a_second(newest)

    assert used.status == 200
    assert reuse.error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_replaced_access_token_is_refused_elsewhere_too(start_server: StartServer) -> None:
    here, elsewhere = await start_server(), await start_server()
    alice = await here.nobody.register(unique_name("alice"))
    body = password_login(alice.user_id, alice.password, refresh_token=True)
    first = (await here.nobody.post(LOGIN, body)).body
    old = elsewhere.nobody.with_token(first["access_token"])
    before = await old.get(WHOAMI)
    second = (await here.nobody.post(REFRESH, {"refresh_token": first["refresh_token"]})).body
    new = await here.nobody.with_token(second["access_token"]).get(WHOAMI)
    await refused_within_a_second(old)

    assert before.status == new.status == 200


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_session_whose_row_goes_by_any_means_is_refused(
    server: RunningServer, alice: Client, database: Database
) -> None:
    assert (await alice.get(WHOAMI)).status == 200
    async with database.connection() as tx:
        await tx.execute("DELETE FROM devices WHERE device_id = $1", alice.device_id)
    await refused_within_a_second(alice)


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_rights_that_were_taken_are_gone_everywhere(
    server: RunningServer, alice: Client, database: Database
) -> None:
    set_admin = "UPDATE users SET is_admin = $2 FROM atoms WHERE nid = user_nid AND s = $1"
    access_tokens = server.services.access_tokens
    token = alice.access_token or ""
    for is_admin in (True, False):
        async with database.connection() as tx:
            await tx.execute(set_admin, alice.user_id.encode(), is_admin)
        async with asyncio.timeout(1):
            while (await access_tokens.authenticate(token)).is_admin is not is_admin:
                await alice.get(WHOAMI)


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_without_the_database_no_token_is_remembered(
    server: RunningServer, alice: Client, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    access_tokens = server.services.access_tokens
    token = alice.access_token or ""
    lost = await Database.open(database_url, pool_size=1)
    watch = SessionWatch(lost, access_tokens)
    await watch.look()
    async with asyncio.timeout(1):
        while access_tokens.remembered(token) is None:
            await alice.get(WHOAMI)
            await watch.look()
    await lost.close()
    for _ in range(2):
        await alice.get(WHOAMI)
        await watch.look()

        assert access_tokens.remembered(token) is None
    assert caplog.text.count("cannot read which sessions have ended") == 1


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_sessions_are_revoked_also_when_more_are_open_than_remembered(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_tokens, "CACHE_SIZE", 2)
    server = await start_server()
    users = [await server.nobody.register(unique_name()) for _ in range(4)]
    for _ in range(2):
        assert [(await user.get(WHOAMI)).status for user in users] == [200] * 4
    for user in users:
        await user.post(LOGOUT)

    assert [(await user.get(WHOAMI)).status for user in users] == [401] * 4


async def test_a_device_keeps_its_number_when_it_refreshes_or_logs_in_again(
    server: RunningServer, alice: Client
) -> None:
    body = password_login(alice.user_id, alice.password, refresh_token=True, device_id="TEAPOT")
    first = await server.nobody.post(LOGIN, body)
    at_first = await server.services.access_tokens.authenticate(first.body["access_token"])
    refreshed = await server.nobody.post(REFRESH, {"refresh_token": first.body["refresh_token"]})
    at_refresh = await server.services.access_tokens.authenticate(refreshed.body["access_token"])
    again = await server.nobody.post(LOGIN, body)
    at_login = await server.services.access_tokens.authenticate(again.body["access_token"])

    assert at_first.device_nid == at_refresh.device_nid == at_login.device_nid
