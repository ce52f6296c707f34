"""Client-Server API, "Account management", "User-Interactive Authentication API"."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients import LOGIN, REGISTER, Client, password_auth, password_login
from tests.servers import RunningServer, StartServer, unique_name

PASSWORD = "/_matrix/client/v3/account/password"
DEACTIVATE = "/_matrix/client/v3/account/deactivate"
WHOAMI = "/_matrix/client/v3/account/whoami"
HOUR_MS = 3_600_000


async def test_whoami_tells_user_and_device(alice: Client) -> None:
    answer = await alice.get(WHOAMI)

    assert (answer.status, answer.body) == (
        200,
        {"user_id": alice.user_id, "device_id": alice.device_id, "is_guest": False},
    )


async def test_whoami_needs_a_valid_token(server: RunningServer, alice: Client) -> None:
    assert alice.access_token is not None
    altered = alice.access_token[:-2] + ("AA" if alice.access_token[-2:] != "AA" else "BB")
    unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzaWQiOjF9."

    assert (await server.nobody.get(WHOAMI)).error == (401, "M_MISSING_TOKEN")
    for token in (altered, unsigned, "tea", "x" * 2000):
        answer = await alice.with_token(token).get(WHOAMI)
        assert answer.error == (401, "M_UNKNOWN_TOKEN")
        assert not answer.body.get("soft_logout", False)


async def test_another_scheme_of_authorization_is_no_token(server: RunningServer, alice: Client) -> None:
    async with server.http.get(
        server.url + WHOAMI, headers={"Authorization": f"Basic {alice.access_token}"}
    ) as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_a_new_password_needs_the_old_one(server: RunningServer, alice: Client) -> None:
    body = {"new_password": "coffee"}
    challenge = await alice.post(PASSWORD, body)
    session = challenge.body["session"]
    wrong = await alice.post(
        PASSWORD, {**body, "auth": {**password_auth(alice, session), "password": "milk"}}
    )
    answer = await alice.post(PASSWORD, {**body, "auth": password_auth(alice, session)})

    assert challenge.status == 401
    assert challenge.body == {
        "flows": [{"stages": ["m.login.password"]}],
        "params": {},
        "session": session,
    }
    assert wrong.error == (401, "M_FORBIDDEN")
    assert (wrong.body["flows"], wrong.body["session"]) == (challenge.body["flows"], session)
    assert (answer.status, answer.body) == (200, {})
    old = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password))
    new = await server.nobody.post(LOGIN, password_login(alice.user_id, "coffee"))
    assert old.error == (403, "M_FORBIDDEN")
    assert new.status == 200


async def test_a_last_request_of_only_auth_changes_the_password(server: RunningServer, alice: Client) -> None:
    other = await server.nobody.log_in(alice)
    challenge = await alice.post(PASSWORD, {"new_password": "coffee", "logout_devices": False})
    answer = await alice.post(PASSWORD, {"auth": password_auth(alice, challenge.body["session"])})

    assert answer.status == 200
    assert (await server.nobody.post(LOGIN, password_login(alice.user_id, "coffee"))).status == 200
    assert (await other.get(WHOAMI)).status == 200


@pytest.mark.parametrize(
    ("more", "others_stay"),
    [({}, False), ({"logout_devices": True}, False), ({"logout_devices": False}, True)],
)
async def test_a_new_password_logs_other_devices_out_unless_told_not_to(
    server: RunningServer, alice: Client, more: dict[str, Any], others_stay: bool
) -> None:
    other = await server.nobody.log_in(alice)
    await alice.post(PASSWORD, {"new_password": "coffee", "auth": password_auth(alice), **more})

    assert (await alice.get(WHOAMI)).status == 200
    assert (await other.get(WHOAMI)).status == (200 if others_stay else 401)


async def test_the_old_form_of_the_password_stage_still_works(alice: Client) -> None:
    auth = {"type": "m.login.password", "user": alice.user_id, "password": alice.password}

    assert (await alice.post(PASSWORD, {"new_password": "coffee", "auth": auth})).status == 200


@pytest.mark.parametrize("new_password", ["", "x" * 5000])
async def test_new_passwords_without_sense_are_refused(
    server: RunningServer, alice: Client, new_password: str
) -> None:
    answer = await alice.post(PASSWORD, {"new_password": new_password, "auth": password_auth(alice)})

    assert answer.error == (400, "M_INVALID_PARAM")
    assert (await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password))).status == 200


async def test_a_new_password_has_to_be_given(alice: Client) -> None:
    answer = await alice.post(PASSWORD, {"auth": password_auth(alice)})

    assert answer.error == (400, "M_MISSING_PARAM")


async def test_the_credentials_of_another_user_are_refused(
    server: RunningServer, alice: Client, bob: Client
) -> None:
    by_address = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "alice@example.org"},
        "password": alice.password,
    }
    for auth in (password_auth(bob), by_address):
        assert (await alice.post(DEACTIVATE, {"auth": auth})).error == (403, "M_FORBIDDEN")
    assert (await alice.get(WHOAMI)).status == (await bob.get(WHOAMI)).status == 200


async def test_account_management_needs_a_token(server: RunningServer) -> None:
    for path in (PASSWORD, DEACTIVATE):
        assert (await server.nobody.post(path, {})).error == (401, "M_MISSING_TOKEN")


async def test_an_account_without_password_cannot_confirm_anything(server: RunningServer) -> None:
    answer = await server.nobody.post(
        REGISTER, {"username": unique_name(), "auth": {"type": "m.login.dummy"}}
    )
    user = server.nobody.with_token(answer.body["access_token"])

    assert (await user.post(PASSWORD, {"new_password": "tea"})).error == (403, "M_FORBIDDEN")


async def test_a_deactivated_account_is_gone_for_ever(server: RunningServer, alice: Client) -> None:
    other = await server.nobody.log_in(alice)
    wrong = await alice.post(DEACTIVATE, {"auth": {**password_auth(alice), "password": "milk"}})
    still = await alice.get(WHOAMI)
    answer = await alice.post(DEACTIVATE, {"auth": password_auth(alice), "erase": True})
    username = alice.user_id[1:].partition(":")[0]
    again = await server.nobody.post(REGISTER, {"username": username, "auth": {"type": "m.login.dummy"}})

    assert wrong.error == (401, "M_FORBIDDEN")
    assert still.status == 200
    assert (answer.status, answer.body) == (200, {"id_server_unbind_result": "success"})
    for client in (alice, other):
        assert (await client.get(WHOAMI)).error == (401, "M_UNKNOWN_TOKEN")
    assert again.error == (400, "M_USER_IN_USE")


async def test_a_deactivation_without_body_asks_for_authentication(alice: Client) -> None:
    challenge = await alice.post(DEACTIVATE)
    auth = password_auth(alice, challenge.body["session"])
    answer = await alice.post(DEACTIVATE, {"auth": auth})

    assert challenge.body["flows"] == [{"stages": ["m.login.password"]}]
    assert answer.status == 200


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_session_is_bound_to_its_user_and_request(
    server: RunningServer, alice: Client, bob: Client
) -> None:
    body = {"new_password": "coffee"}
    of_alice = (await alice.post(PASSWORD, body)).body["session"]
    of_nobody = (await server.nobody.post(REGISTER, {})).body["session"]
    other_path = await alice.post(DEACTIVATE, {"auth": password_auth(alice, of_alice)})
    other_user = await bob.post(PASSWORD, {**body, "auth": password_auth(bob, of_alice)})
    not_logged_in = await alice.post(PASSWORD, {**body, "auth": password_auth(alice, of_nobody)})

    assert other_path.error == other_user.error == not_logged_in.error == (403, "M_FORBIDDEN")
    assert (await alice.post(PASSWORD, {**body, "auth": password_auth(alice, of_alice)})).status == 200


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_session_is_good_for_one_call(alice: Client) -> None:
    session = (await alice.post(PASSWORD, {"new_password": "coffee"})).body["session"]
    auth = password_auth(alice, session)
    first = await alice.post(PASSWORD, {"new_password": "coffee", "auth": auth})
    second = await alice.post(PASSWORD, {"new_password": "milk", "auth": {**auth, "password": "coffee"}})

    assert first.status == 200
    assert second.error == (400, "M_UNKNOWN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_session_ends_by_itself(start_server: StartServer) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    session = (await alice.post(PASSWORD, {"new_password": "coffee"})).body["session"]
    server.clock.advance(HOUR_MS)
    answer = await alice.post(PASSWORD, {"new_password": "coffee", "auth": password_auth(alice, session)})

    assert answer.error == (400, "M_UNKNOWN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_only_the_newest_sessions_of_a_user_are_kept(start_server: StartServer) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    sessions = []
    for _ in range(21):
        server.clock.advance(1)
        sessions.append((await alice.post(DEACTIVATE)).body["session"])
    oldest = await alice.post(DEACTIVATE, {"auth": {"session": sessions[0]}})
    newer = await alice.post(DEACTIVATE, {"auth": {"session": sessions[1]}})

    assert oldest.error == (400, "M_UNKNOWN")
    assert newer.status == 401
    assert newer.body["session"] == sessions[1]


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_new_password_ends_what_the_old_one_could_prove(
    server: RunningServer, alice: Client
) -> None:
    waiting = (await alice.post(DEACTIVATE)).body["session"]
    await alice.post(PASSWORD, {"new_password": "coffee", "auth": password_auth(alice)})
    answer = await alice.post(DEACTIVATE, {"auth": password_auth(alice, waiting)})

    assert answer.error == (400, "M_UNKNOWN")
    assert (await alice.get(WHOAMI)).status == 200


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_guesses_of_a_password_are_limited_by_user(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "login": {"per_second": 0.01, "burst": 2}})
    alice = await server.nobody.register(unique_name("alice"))
    auth = {**password_auth(alice), "password": "milk"}
    answers = [await alice.post(path, {"auth": auth}) for path in (PASSWORD, DEACTIVATE, PASSWORD)]

    assert [answer.status for answer in answers] == [401, 401, 429]
