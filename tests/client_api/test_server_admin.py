"""Registration with a shared secret, in the form that tools for Synapse call."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from tests.clients import LOGIN, password_login
from tests.servers import RunningServer, StartServer, unique_name

ADMIN_REGISTER = "/_synapse/admin/v1/register"
WHOAMI = "/_matrix/client/v3/account/whoami"
SECRET = "a secret of tea leaves"


@pytest.fixture
async def sharing(start_server: StartServer) -> RunningServer:
    return await start_server(registration={"shared_secret": SECRET})


async def nonce_of(server: RunningServer) -> str:
    answer = await server.nobody.get(ADMIN_REGISTER)
    assert answer.status == 200
    nonce: str = answer.body["nonce"]
    return nonce


def signed(nonce: str, *, secret: str = SECRET, **account: Any) -> dict[str, Any]:
    body = {"username": unique_name(), "password": "tea für two", "admin": False, **account}
    parts = [nonce, body["username"], body["password"], "admin" if body["admin"] else "notadmin"]
    if "user_type" in body:
        parts.append(body["user_type"])
    mac = hmac.new(secret.encode(), "\0".join(parts).encode(), hashlib.sha1).hexdigest()
    return {**body, "nonce": nonce, "mac": mac}


async def test_an_account_is_made_for_who_knows_the_secret(sharing: RunningServer) -> None:
    body = signed(await nonce_of(sharing))
    answer = await sharing.nobody.post(ADMIN_REGISTER, body)
    login = await sharing.nobody.post(LOGIN, password_login(body["username"], body["password"]))
    who = await sharing.nobody.with_token(answer.body["access_token"]).get(WHOAMI)

    assert answer.status == login.status == 200
    assert answer.body == {
        "user_id": f"@{body['username']}:test",
        "home_server": "test",
        "access_token": answer.body["access_token"],
        "device_id": answer.body["device_id"],
    }
    assert who.body["device_id"] == answer.body["device_id"]


@pytest.mark.parametrize("admin", [True, False])
async def test_the_account_may_be_an_admins(sharing: RunningServer, admin: bool) -> None:
    answer = await sharing.nobody.post(ADMIN_REGISTER, signed(await nonce_of(sharing), admin=admin))
    requester = await sharing.services.access_tokens.authenticate(answer.body["access_token"])

    assert requester.is_admin is admin


async def test_the_user_type_is_part_of_the_mac(sharing: RunningServer) -> None:
    bot = await sharing.nobody.post(ADMIN_REGISTER, signed(await nonce_of(sharing), user_type="bot"))
    body = {**signed(await nonce_of(sharing)), "user_type": "bot"}
    odd = await sharing.nobody.post(ADMIN_REGISTER, signed(await nonce_of(sharing), user_type="pot"))

    assert bot.status == 200
    assert (await sharing.nobody.post(ADMIN_REGISTER, body)).error == (403, "M_UNKNOWN")
    assert odd.error == (400, "M_INVALID_PARAM")


async def test_capitals_in_the_user_name_become_small(sharing: RunningServer) -> None:
    username = unique_name()
    body = signed(await nonce_of(sharing), username=username.upper())
    answer = await sharing.nobody.post(ADMIN_REGISTER, body)

    assert answer.body["user_id"] == f"@{username}:test"


async def test_a_nonce_serves_once_even_when_the_mac_is_wrong(sharing: RunningServer) -> None:
    used, wasted = signed(await nonce_of(sharing)), signed(await nonce_of(sharing))
    first = await sharing.nobody.post(ADMIN_REGISTER, used)
    again = await sharing.nobody.post(ADMIN_REGISTER, signed(used["nonce"]))
    wrong = await sharing.nobody.post(ADMIN_REGISTER, {**wasted, "mac": "00" * 20})
    right = await sharing.nobody.post(ADMIN_REGISTER, wasted)
    unknown = await sharing.nobody.post(ADMIN_REGISTER, signed("tea"))

    assert first.status == 200
    assert wrong.error == (403, "M_UNKNOWN")
    assert again.error == right.error == unknown.error == (400, "M_UNKNOWN")


async def test_a_nonce_lasts_a_minute(sharing: RunningServer) -> None:
    kept, late = signed(await nonce_of(sharing)), signed(await nonce_of(sharing))
    sharing.clock.advance(59_999)
    in_time = await sharing.nobody.post(ADMIN_REGISTER, kept)
    sharing.clock.advance(1)

    assert in_time.status == 200
    assert (await sharing.nobody.post(ADMIN_REGISTER, late)).error == (400, "M_UNKNOWN")


async def test_the_mac_of_another_secret_is_refused(sharing: RunningServer) -> None:
    body = signed(await nonce_of(sharing), secret="coffee")
    odd = {**signed(await nonce_of(sharing)), "mac": "é"}

    assert (await sharing.nobody.post(ADMIN_REGISTER, body)).error == (403, "M_UNKNOWN")
    assert (await sharing.nobody.post(ADMIN_REGISTER, odd)).error == (403, "M_UNKNOWN")


@pytest.mark.parametrize("key", ["nonce", "username", "password", "mac"])
async def test_every_key_is_needed(sharing: RunningServer, key: str) -> None:
    body = signed(await nonce_of(sharing))
    del body[key]

    assert (await sharing.nobody.post(ADMIN_REGISTER, body)).error == (400, "M_MISSING_PARAM")


async def test_a_user_id_that_is_taken_or_invalid_is_refused(sharing: RunningServer) -> None:
    body = signed(await nonce_of(sharing))
    await sharing.nobody.post(ADMIN_REGISTER, body)
    same = signed(await nonce_of(sharing), username=body["username"])
    invalid = signed(await nonce_of(sharing), username="a b")

    assert (await sharing.nobody.post(ADMIN_REGISTER, same)).error == (400, "M_USER_IN_USE")
    assert (await sharing.nobody.post(ADMIN_REGISTER, invalid)).error == (400, "M_INVALID_USERNAME")


async def test_without_a_secret_nobody_registers(server: RunningServer) -> None:
    nonce = await server.nobody.get(ADMIN_REGISTER)
    register = await server.nobody.post(ADMIN_REGISTER, signed("tea", secret=""))

    assert nonce.error == register.error == (400, "M_UNKNOWN")
