"""Client-Server API, "Account registration", "Token-authenticated registration", "Guest Access"."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.clients import LOGIN, REGISTER, Client, password_login
from tests.servers import RunningServer, StartServer, unique_name

AVAILABLE = "/_matrix/client/v3/register/available"
VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"
WHOAMI = "/_matrix/client/v3/account/whoami"
DUMMY = {"type": "m.login.dummy"}


def wanted(username: str | None = None, **more: Any) -> dict[str, Any]:
    return {"username": username or unique_name(), "password": "tea for two", **more}


@pytest.fixture
async def closed(start_server: StartServer) -> RunningServer:
    return await start_server(registration={"enabled": False})


@pytest.fixture
async def with_tokens(start_server: StartServer) -> RunningServer:
    return await start_server(registration={"enabled": True, "require_token": True})


async def test_registering_asks_for_authentication_first(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, {})

    assert answer.status == 401
    assert answer.body == {
        "flows": [{"stages": ["m.login.dummy"]}],
        "params": {},
        "session": answer.body["session"],
    }
    assert isinstance(answer.body["session"], str)


@pytest.mark.parametrize("auth", [None, {}])
async def test_an_empty_auth_is_none(server: RunningServer, auth: Any) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth=auth))

    assert (answer.status, set(answer.body)) == (401, {"flows", "params", "session"})


async def test_a_session_that_is_completed_makes_the_account(server: RunningServer) -> None:
    username = unique_name()
    challenge = await server.nobody.post(REGISTER, {})
    auth = {**DUMMY, "session": challenge.body["session"]}
    answer = await server.nobody.post(REGISTER, wanted(username, auth=auth))

    assert answer.status == 200
    assert answer.body["user_id"] == f"@{username}:test"
    assert answer.body["home_server"] == "test"
    who = await server.nobody.with_token(answer.body["access_token"]).get(WHOAMI)
    assert who.body == {
        "user_id": f"@{username}:test",
        "device_id": answer.body["device_id"],
        "is_guest": False,
    }


async def test_the_first_request_may_already_hold_the_only_stage(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth=DUMMY))

    assert answer.status == 200


async def test_a_last_request_of_only_auth_uses_the_parameters_from_before(server: RunningServer) -> None:
    body = wanted(device_id="TEAPOT", initial_device_display_name="teapot", refresh_token=True)
    challenge = await server.nobody.post(REGISTER, body)
    answer = await server.nobody.post(REGISTER, {"auth": {**DUMMY, "session": challenge.body["session"]}})
    login = await server.nobody.post(LOGIN, password_login(body["username"], body["password"]))

    assert answer.status == login.status == 200
    assert answer.body["user_id"] == f"@{body['username']}:test"
    assert answer.body["device_id"] == "TEAPOT"
    assert "refresh_token" in answer.body


async def test_a_session_makes_one_account(server: RunningServer) -> None:
    challenge = await server.nobody.post(REGISTER, {})
    auth = {**DUMMY, "session": challenge.body["session"]}
    answers = await asyncio.gather(*(server.nobody.post(REGISTER, wanted(auth=auth)) for _ in range(4)))

    assert [answer.status for answer in answers].count(200) == 1
    assert all(answer.status in {200, 400, 401} for answer in answers)


async def test_a_session_that_does_not_exist_is_refused(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth={**DUMMY, "session": "no such session"}))

    assert answer.error == (400, "M_UNKNOWN")


async def test_auth_of_another_stage_is_not_accepted(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth={"type": "m.login.password"}))

    assert answer.error == (401, "M_FORBIDDEN")
    assert answer.body["flows"] == [{"stages": ["m.login.dummy"]}]
    assert "completed" not in answer.body


@pytest.mark.parametrize(
    ("auth", "errcode"),
    [
        ({"type": None}, "M_MISSING_PARAM"),
        ({"type": 1}, "M_BAD_JSON"),
        ({"session": []}, "M_BAD_JSON"),
        ("x", "M_BAD_JSON"),
    ],
)
async def test_auth_that_makes_no_sense_is_refused(server: RunningServer, auth: Any, errcode: str) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth=auth))

    assert answer.error == (400, errcode)


async def test_capitals_in_a_user_name_become_small(server: RunningServer) -> None:
    username = unique_name()
    answer = await server.nobody.post(REGISTER, wanted(username.upper(), auth=DUMMY))

    assert answer.body["user_id"] == f"@{username}:test"


@pytest.mark.parametrize(
    "username",
    [
        "",
        "a'b",
        'a"b',
        "a@b",
        "a:b",
        "a[b",
        "a{b",
        "a|b",
        "a\\b",
        "a\nb",
        "a£b",
        "aéb",
        "\u212a",
        " a",
        "x" * 250,
    ],
)
async def test_user_names_that_cannot_be_user_ids_are_refused_before_anything_else(
    server: RunningServer, username: str
) -> None:
    answer = await server.nobody.post(REGISTER, {"username": username, "password": "tea"})
    available = await server.nobody.get(AVAILABLE, {"username": username})

    assert answer.error == available.error == (400, "M_INVALID_USERNAME")


@pytest.mark.parametrize("character", "._=-/+")
async def test_the_longest_user_id_has_255_bytes(server: RunningServer, character: str) -> None:
    longest = uuid4().hex.ljust(255 - len("@:test"), character)
    refused = await server.nobody.post(REGISTER, wanted(longest + character, auth=DUMMY))
    answer = await server.nobody.post(REGISTER, wanted(longest, auth=DUMMY))

    assert refused.error == (400, "M_INVALID_USERNAME")
    assert answer.status == 200


async def test_a_user_id_is_taken_only_once(server: RunningServer, alice: Client) -> None:
    username = alice.user_id[1:].partition(":")[0]
    before = await server.nobody.post(REGISTER, wanted(username))
    with_auth = await server.nobody.post(REGISTER, wanted(username.upper(), auth=DUMMY))

    assert before.error == with_auth.error == (400, "M_USER_IN_USE")


async def test_a_user_id_taken_while_the_session_went_on_leaves_the_session_usable(
    server: RunningServer,
) -> None:
    username = unique_name()
    challenge = await server.nobody.post(REGISTER, wanted(username))
    auth = {"session": challenge.body["session"]}
    await server.nobody.register(username)
    taken = await server.nobody.post(REGISTER, {"auth": {**auth, **DUMMY}})
    another = await server.nobody.post(REGISTER, wanted(auth=auth))

    assert taken.error == (400, "M_USER_IN_USE")
    assert another.status == 200


async def test_without_a_user_name_the_server_chooses_one(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, {"password": "tea", "auth": DUMMY})

    assert answer.status == 200
    assert answer.body["user_id"].endswith(":test")


@pytest.mark.parametrize("password", ["pässwörter ☕", "x" * 1000, "🫖" * 20])
async def test_any_password_works(server: RunningServer, password: str) -> None:
    user = await server.nobody.register(unique_name(), password)
    login = await server.nobody.post(LOGIN, password_login(user.user_id, password))
    shorter = await server.nobody.post(LOGIN, password_login(user.user_id, password[:-1]))

    assert login.status == 200
    assert shorter.error == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("password", ["", "x" * 5000])
async def test_passwords_without_sense_are_refused(server: RunningServer, password: str) -> None:
    answer = await server.nobody.post(
        REGISTER, {"username": unique_name(), "password": password, "auth": DUMMY}
    )

    assert answer.error == (400, "M_INVALID_PARAM")


async def test_an_account_without_password_is_not_logged_in_to(server: RunningServer) -> None:
    username = unique_name()
    answer = await server.nobody.post(REGISTER, {"username": username, "auth": DUMMY})
    login = await server.nobody.post(LOGIN, password_login(username, ""))

    assert answer.status == 200
    assert login.error == (403, "M_FORBIDDEN")


async def test_inhibit_login_makes_the_account_alone(server: RunningServer) -> None:
    body = wanted(auth=DUMMY, inhibit_login=True, refresh_token=True, device_id="TEAPOT")
    answer = await server.nobody.post(REGISTER, body)

    assert (answer.status, answer.body.keys()) == (200, {"user_id", "home_server"})


async def test_the_device_is_the_one_asked_for(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth=DUMMY, device_id="TEA pot/1"))

    assert answer.body["device_id"] == "TEA pot/1"
    assert "refresh_token" not in answer.body
    assert "expires_in_ms" not in answer.body


async def test_a_refresh_token_is_given_to_those_who_ask(server: RunningServer) -> None:
    answer = await server.nobody.post(REGISTER, wanted(auth=DUMMY, refresh_token=True))
    odd = await server.nobody.post(REGISTER, wanted(auth=DUMMY, refresh_token="true"))

    assert answer.body["expires_in_ms"] == 900_000
    assert isinstance(answer.body["refresh_token"], str)
    assert odd.error == (400, "M_BAD_JSON")


async def test_availability_is_told(server: RunningServer, alice: Client) -> None:
    username = alice.user_id[1:].partition(":")[0]
    free = await server.nobody.get(AVAILABLE, {"username": unique_name()})
    taken = await server.nobody.get(AVAILABLE, {"username": username})
    nothing = await server.nobody.get(AVAILABLE)

    assert (free.status, free.body) == (200, {"available": True})
    assert taken.error == (400, "M_USER_IN_USE")
    assert nothing.error == (400, "M_MISSING_PARAM")


async def test_closed_registration_refuses_everyone(closed: RunningServer) -> None:
    register = await closed.nobody.post(REGISTER, wanted(auth=DUMMY))
    validity = await closed.nobody.get(VALIDITY, {"token": "tea"})
    available = await closed.nobody.get(AVAILABLE, {"username": unique_name()})

    assert register.error == validity.error == available.error == (403, "M_FORBIDDEN")


async def test_registration_is_closed_unless_opened(start_server: StartServer) -> None:
    server = await start_server(registration={})

    assert (await server.nobody.post(REGISTER, {})).error == (403, "M_FORBIDDEN")


async def test_guests_need_no_authentication(start_server: StartServer) -> None:
    server = await start_server(registration={"guests": True})
    body = wanted(device_id="TEAPOT", initial_device_display_name="teapot", refresh_token=True)
    answer = await server.nobody.post(REGISTER, body, {"kind": "guest"})
    who = await server.nobody.with_token(answer.body["access_token"]).get(WHOAMI)

    assert answer.status == 200
    assert "refresh_token" not in answer.body
    assert body["username"] not in answer.body["user_id"]
    assert answer.body["device_id"] != "TEAPOT"
    assert who.body["is_guest"] is True


async def test_guests_are_refused_unless_allowed(server: RunningServer) -> None:
    guest = await server.nobody.post(REGISTER, {}, {"kind": "guest"})
    other = await server.nobody.post(REGISTER, {}, {"kind": "robot"})

    assert guest.error == (403, "M_FORBIDDEN")
    assert other.error == (400, "M_INVALID_PARAM")


async def test_a_registration_token_opens_the_door_as_often_as_it_says(with_tokens: RunningServer) -> None:
    token = await with_tokens.services.registration_tokens.create(uses_allowed=1)
    auth = {"type": "m.login.registration_token", "token": token}
    challenge = await with_tokens.nobody.post(REGISTER, {})
    before = await with_tokens.nobody.get(VALIDITY, {"token": token})
    first = await with_tokens.nobody.post(REGISTER, wanted(auth=auth))
    after = await with_tokens.nobody.get(VALIDITY, {"token": token})
    second = await with_tokens.nobody.post(REGISTER, wanted(auth=auth))

    assert challenge.body["flows"] == [{"stages": ["m.login.registration_token"]}]
    assert (before.status, before.body) == (200, {"valid": True})
    assert first.status == 200
    assert (after.status, after.body) == (200, {"valid": False})
    assert second.error == (401, "M_UNAUTHORIZED")
    assert second.body["flows"] == [{"stages": ["m.login.registration_token"]}]


async def test_a_use_counts_only_when_the_account_is_made(with_tokens: RunningServer) -> None:
    token = await with_tokens.services.registration_tokens.create(uses_allowed=1)
    auth = {"type": "m.login.registration_token", "token": token}
    username = unique_name()
    failed = await with_tokens.nobody.post(REGISTER, {"username": username, "password": "", "auth": auth})
    valid = await with_tokens.nobody.get(VALIDITY, {"token": token})

    assert failed.error == (400, "M_INVALID_PARAM")
    assert valid.body == {"valid": True}


async def test_a_token_for_one_use_makes_one_account_of_several_at_once(with_tokens: RunningServer) -> None:
    token = await with_tokens.services.registration_tokens.create(uses_allowed=1)
    auth = {"type": "m.login.registration_token", "token": token}
    answers = await asyncio.gather(*(with_tokens.nobody.post(REGISTER, wanted(auth=auth)) for _ in range(4)))

    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401]


async def test_tokens_that_are_unknown_expired_or_revoked_are_not_valid(with_tokens: RunningServer) -> None:
    tokens = with_tokens.services.registration_tokens
    expired = await tokens.create(lifetime_ms=1000)
    revoked = await tokens.create()
    with_tokens.clock.advance(1000)
    await tokens.revoke(revoked)
    answers = [
        await with_tokens.nobody.get(VALIDITY, {"token": token}) for token in (expired, revoked, "tea", "")
    ]

    assert [(answer.status, answer.body) for answer in answers] == [(200, {"valid": False})] * 4


async def test_the_stage_of_registration_tokens_needs_a_token(with_tokens: RunningServer) -> None:
    auth = {"type": "m.login.registration_token"}
    missing = await with_tokens.nobody.post(REGISTER, wanted(auth=auth))
    odd = await with_tokens.nobody.post(REGISTER, wanted(auth={**auth, "token": 1}))

    assert missing.error == (400, "M_MISSING_PARAM")
    assert odd.error == (400, "M_BAD_JSON")


async def test_who_asks_how_to_register_pays_once_for_an_account(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "register": {"per_second": 0.01, "burst": 3}})
    asked, made = [], []
    for _ in range(4):
        challenge = await server.nobody.post(REGISTER, wanted())
        asked.append(challenge.status)
        auth = {**DUMMY, "session": challenge.body["session"]}
        made.append((await server.nobody.post(REGISTER, {"auth": auth})).status)

    assert asked == [401] * 4
    assert made == [200, 200, 200, 429]


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_asking_how_to_register_is_limited_too(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "message": {"per_second": 0.01, "burst": 3}})
    answers = [await server.nobody.post(REGISTER, wanted()) for _ in range(4)]

    assert [answer.status for answer in answers] == [401, 401, 401, 429]


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_every_guest_counts_as_a_registration(start_server: StartServer) -> None:
    server = await start_server(
        registration={"guests": True},
        rate_limits={"enabled": True, "register": {"per_second": 0.01, "burst": 3}},
    )
    answers = [await server.nobody.post(REGISTER, {}, {"kind": "guest"}) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429]


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_registrations_of_one_address_are_limited(start_server: StartServer) -> None:
    server = await start_server(rate_limits={"enabled": True, "register": {"per_second": 0.01, "burst": 3}})
    answers = [await server.nobody.post(REGISTER, wanted(auth=DUMMY)) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[3].body["errcode"] == "M_LIMIT_EXCEEDED"
    assert answers[3].body["retry_after_ms"] > 0
