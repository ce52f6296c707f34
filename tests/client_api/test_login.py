"""Client-Server API, "Login": logging in and out."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.protocol.identifiers import UserId
from tests.clients import LOGIN, Client, password_auth, password_login
from tests.servers import RunningServer, StartServer, unique_name

LOGOUT = "/_matrix/client/v3/logout"
LOGOUT_ALL = "/_matrix/client/v3/logout/all"
WHOAMI = "/_matrix/client/v3/account/whoami"
DEACTIVATE = "/_matrix/client/v3/account/deactivate"


async def test_the_ways_to_log_in_are_listed(server: RunningServer) -> None:
    answer = await server.nobody.get(LOGIN)

    assert (answer.status, answer.body) == (200, {"flows": [{"type": "m.login.password"}]})


@pytest.mark.parametrize("form", ["{}", "@{}:test", "@{}:TEST"])
@pytest.mark.parametrize("capitals", [False, True])
async def test_a_user_logs_in_by_name_or_user_id(
    server: RunningServer, alice: Client, form: str, capitals: bool
) -> None:
    username = alice.user_id[1:].partition(":")[0]
    user = form.format(username.upper() if capitals else username)
    answer = await server.nobody.post(LOGIN, password_login(user, alice.password))

    assert answer.status == 200
    assert answer.body["user_id"] == alice.user_id
    assert answer.body["home_server"] == "test"
    who = await server.nobody.with_token(answer.body["access_token"]).get(WHOAMI)
    assert who.body["device_id"] == answer.body["device_id"]


async def test_the_old_form_without_an_identifier_still_works(server: RunningServer, alice: Client) -> None:
    body = {"type": "m.login.password", "user": alice.user_id, "password": alice.password}

    assert (await server.nobody.post(LOGIN, body)).status == 200


async def test_a_wrong_password_and_an_unknown_user_look_the_same(
    server: RunningServer, alice: Client
) -> None:
    wrong = await server.nobody.post(LOGIN, password_login(alice.user_id, "coffee"))
    others = [
        await server.nobody.post(LOGIN, password_login(user, alice.password))
        for user in (unique_name(), f"@{unique_name()}:test", "@alice:elsewhere", "@:test", "é", "a" * 300)
    ]

    assert wrong.error == (403, "M_FORBIDDEN")
    assert all((other.status, other.body) == (wrong.status, wrong.body) for other in others)


@pytest.mark.parametrize(
    "identifier",
    [
        {"type": "m.id.thirdparty", "medium": "email", "address": "tea@example.org"},
        {"type": "m.id.phone", "country": "GB", "phone": "07700900001"},
        {"type": "m.id.phone", "country": "GB", "number": "07700900001"},
    ],
)
async def test_addresses_that_nobody_has_are_refused(
    server: RunningServer, identifier: dict[str, str]
) -> None:
    body = {"type": "m.login.password", "identifier": identifier, "password": "tea"}

    assert (await server.nobody.post(LOGIN, body)).error == (403, "M_FORBIDDEN")


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"type": "m.login.tea"}, "M_UNKNOWN"),
        ({"type": 1}, "M_BAD_JSON"),
        ({"type": "m.login.password"}, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": "alice"}, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "identifier": {"user": "alice"}, "password": "x"}, "M_MISSING_PARAM"),
        (
            {"type": "m.login.password", "identifier": {"type": "m.id.user"}, "password": "x"},
            "M_MISSING_PARAM",
        ),
        ({"type": "m.login.password", "identifier": {"type": "tea"}, "password": "x"}, "M_UNKNOWN"),
        ({"type": "m.login.password", "identifier": "alice", "password": "x"}, "M_BAD_JSON"),
        ({"type": "m.login.password", "user": "alice", "password": 5}, "M_BAD_JSON"),
        ({"type": "m.login.password", "user": "alice", "password": "x", "refresh_token": 1}, "M_BAD_JSON"),
        (
            {"type": "m.login.password", "user": "alice", "password": "x", "device_id": "d" * 256},
            "M_INVALID_PARAM",
        ),
        (b"no json", "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
    ],
)
async def test_logins_that_make_no_sense_are_refused(server: RunningServer, body: Any, errcode: str) -> None:
    assert (await server.nobody.post(LOGIN, body)).error == (400, errcode)


async def test_logging_in_on_a_known_device_replaces_its_session(
    server: RunningServer, alice: Client
) -> None:
    first = await server.nobody.log_in(alice, device_id="TEAPOT")
    second = await server.nobody.log_in(alice, device_id="TEAPOT")
    other_user = await server.nobody.register(unique_name(), device_id="TEAPOT")

    assert first.device_id == second.device_id == other_user.device_id == "TEAPOT"
    assert (await first.get(WHOAMI)).error == (401, "M_UNKNOWN_TOKEN")
    for client in (alice, second, other_user):
        assert (await client.get(WHOAMI)).status == 200


async def test_logging_out_ends_the_device_and_only_it(server: RunningServer, alice: Client) -> None:
    other = await server.nobody.log_in(alice)
    answer = await alice.post(LOGOUT)
    after = await alice.get(WHOAMI)

    assert (answer.status, answer.body) == (200, {})
    assert after.error == (401, "M_UNKNOWN_TOKEN")
    assert not after.body.get("soft_logout", False)
    assert (await other.get(WHOAMI)).status == 200


async def test_logging_out_everywhere_ends_all_devices(
    server: RunningServer, alice: Client, bob: Client
) -> None:
    other = await server.nobody.log_in(alice)
    answer = await alice.post(LOGOUT_ALL)

    assert (answer.status, answer.body) == (200, {})
    assert (await alice.get(WHOAMI)).error == (await other.get(WHOAMI)).error == (401, "M_UNKNOWN_TOKEN")
    assert (await bob.get(WHOAMI)).status == 200


async def test_logging_out_needs_a_token(server: RunningServer) -> None:
    assert (await server.nobody.post(LOGOUT)).error == (401, "M_MISSING_TOKEN")
    assert (await server.nobody.post(LOGOUT_ALL)).error == (401, "M_MISSING_TOKEN")
    assert (await server.nobody.with_token("tea").post(LOGOUT)).error == (401, "M_UNKNOWN_TOKEN")


async def test_the_answer_says_where_the_server_is(start_server: StartServer) -> None:
    server = await start_server(public_base_url="https://chat.example.org")
    user = await server.nobody.register(unique_name())
    answer = await server.nobody.post(LOGIN, password_login(user.user_id, user.password))

    assert answer.body["well_known"] == {"m.homeserver": {"base_url": "https://chat.example.org"}}


async def test_a_token_may_stand_in_the_query_where_that_is_allowed(
    server: RunningServer, start_server: StartServer, alice: Client
) -> None:
    assert alice.access_token is not None
    query = {"access_token": alice.access_token}
    strict = await start_server(access_tokens={"allow_in_query": False})

    assert (await server.nobody.get(WHOAMI, query)).status == 200
    assert (await strict.nobody.get(WHOAMI, query)).error == (401, "M_MISSING_TOKEN")


async def test_a_deactivated_user_is_told_so(server: RunningServer, alice: Client) -> None:
    await alice.post(DEACTIVATE, {"auth": password_auth(alice)})
    answer = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password))

    assert answer.error == (403, "M_USER_DEACTIVATED")


async def test_a_login_renews_a_hash_that_was_made_with_other_costs(
    server: RunningServer, start_server: StartServer, alice: Client
) -> None:
    costlier = await start_server(passwords={"argon2_memory_kib": 128, "argon2_iterations": 2})
    logins = [await costlier.nobody.log_in(alice) for _ in range(2)]
    account = await server.services.accounts.find(UserId(alice.user_id))

    assert len(logins) == 2
    assert account is not None
    assert account.password_hash is not None
    assert account.password_hash.startswith("$argon2id$v=19$m=128,t=2,p=1$")
    assert (await server.nobody.log_in(alice)).user_id == alice.user_id


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_logins_are_limited_for_a_user(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "login": {"per_second": 0.01, "burst": 2}})
    user = await server.nobody.register(unique_name())
    answers = [
        await server.nobody.post(LOGIN, password_login(name, "coffee"))
        for name in (user.user_id, user.user_id[1:].upper().partition(":")[0], user.user_id)
    ]

    assert [answer.status for answer in answers] == [403, 403, 429]
