"""Client-Server API, "Refreshing access tokens", "Soft logout"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients import LOGIN, Client, Response, password_login
from tests.servers import RunningServer, StartServer, unique_name

REFRESH = "/_matrix/client/v3/refresh"
LOGOUT = "/_matrix/client/v3/logout"
WHOAMI = "/_matrix/client/v3/account/whoami"
MINUTE_MS = 60_000
WEEK_MS = 7 * 24 * 60 * MINUTE_MS


@dataclass(frozen=True)
class Tokens:
    """A pair of tokens, and a client that uses the access token."""

    client: Client
    refresh_token: str

    @classmethod
    def of(cls, client: Client, answer: Response) -> Tokens:
        assert answer.status == 200, answer.body
        assert answer.body["expires_in_ms"] == 15 * MINUTE_MS
        return cls(client.with_token(answer.body["access_token"]), answer.body["refresh_token"])

    async def refresh(self) -> Response:
        return await self.client.with_token(None).post(REFRESH, {"refresh_token": self.refresh_token})

    async def next(self) -> Tokens:
        return Tokens.of(self.client, await self.refresh())

    async def whoami(self) -> Response:
        return await self.client.get(WHOAMI)


@pytest.fixture
async def mortal(start_server: StartServer) -> RunningServer:
    """A server whose clock this test may move."""
    return await start_server()


async def logged_in(server: RunningServer, user: Client, **wanted: Any) -> Tokens:
    body = password_login(user.user_id, user.password, refresh_token=True, **wanted)
    return Tokens.of(server.nobody, await server.nobody.post(LOGIN, body))


async def test_without_being_asked_no_refresh_token_is_given(server: RunningServer, alice: Client) -> None:
    answer = await server.nobody.post(LOGIN, password_login(alice.user_id, alice.password))

    assert "refresh_token" not in answer.body
    assert "expires_in_ms" not in answer.body


async def test_a_refresh_gives_a_new_pair_of_the_same_device(server: RunningServer, alice: Client) -> None:
    first = await logged_in(server, alice)
    second = await first.next()
    third = await second.next()

    assert first.client.access_token != second.client.access_token != third.client.access_token
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    before, after = await first.whoami(), await third.whoami()
    assert before.error == (401, "M_UNKNOWN_TOKEN")
    assert after.body["user_id"] == alice.user_id


async def test_the_old_tokens_live_until_the_new_access_token_is_used(
    server: RunningServer, alice: Client
) -> None:
    old = await logged_in(server, alice)
    assert (await old.whoami()).status == 200
    lost = await old.next()
    new = await old.next()
    still = await old.whoami()
    used = await new.whoami()
    replaced = await old.whoami()

    assert (still.status, used.status) == (200, 200)
    assert replaced.error == (401, "M_UNKNOWN_TOKEN")
    assert replaced.body["soft_logout"] is True
    assert (await lost.whoami()).error == (401, "M_UNKNOWN_TOKEN")
    assert (await new.whoami()).status == 200


async def test_the_old_access_token_dies_when_the_new_refresh_token_is_used(
    server: RunningServer, alice: Client
) -> None:
    old = await logged_in(server, alice)
    assert (await old.whoami()).status == 200
    new = await old.next()
    newest = await new.next()

    assert (await old.whoami()).error == (401, "M_UNKNOWN_TOKEN")
    assert (await new.whoami()).status == 200
    assert (await newest.whoami()).status == 200
    assert (await new.whoami()).error == (401, "M_UNKNOWN_TOKEN")


async def test_an_access_token_expires_and_is_refreshed(mortal: RunningServer) -> None:
    alice = await mortal.nobody.register(unique_name("alice"))
    tokens = await logged_in(mortal, alice)
    unused = await logged_in(mortal, alice)
    assert (await tokens.whoami()).status == 200
    mortal.clock.advance(15 * MINUTE_MS)
    expired = await tokens.whoami()

    assert expired.error == (await unused.whoami()).error == (401, "M_UNKNOWN_TOKEN")
    assert expired.body["soft_logout"] is True
    assert (await (await tokens.next()).whoami()).status == 200
    assert (await alice.get(WHOAMI)).status == 200


async def test_a_refresh_token_expires_and_the_device_logs_in_again(mortal: RunningServer) -> None:
    alice = await mortal.nobody.register(unique_name("alice"))
    tokens = await logged_in(mortal, alice, device_id="TEAPOT")
    mortal.clock.advance(WEEK_MS)
    expired = await tokens.refresh()
    again = await logged_in(mortal, alice, device_id="TEAPOT")

    assert expired.error == (401, "M_UNKNOWN_TOKEN")
    assert expired.body["soft_logout"] is True
    assert (await again.whoami()).body["device_id"] == "TEAPOT"
    assert (await tokens.refresh()).body.get("soft_logout") is None


async def test_a_session_that_goes_on_keeps_no_expired_tokens(mortal: RunningServer) -> None:
    alice = await mortal.nobody.register(unique_name("alice"))
    first = await logged_in(mortal, alice)
    tokens = first
    for _ in range(3):
        mortal.clock.advance(WEEK_MS // 2)
        tokens = await tokens.next()
    forgotten = await first.refresh()

    assert forgotten.error == (401, "M_UNKNOWN_TOKEN")
    assert (await tokens.whoami()).status == 200


async def test_refresh_tokens_that_are_none_are_refused(server: RunningServer, alice: Client) -> None:
    unknown = await server.nobody.post(REFRESH, {"refresh_token": "tea"})
    access = await server.nobody.post(REFRESH, {"refresh_token": alice.access_token})
    missing = await server.nobody.post(REFRESH, {})
    odd = await server.nobody.post(REFRESH, {"refresh_token": 1})

    assert unknown.error == access.error == (401, "M_UNKNOWN_TOKEN")
    assert missing.error == (400, "M_MISSING_PARAM")
    assert odd.error == (400, "M_BAD_JSON")


async def test_a_login_on_a_known_device_ends_its_refresh_tokens(
    server: RunningServer, alice: Client
) -> None:
    first = await logged_in(server, alice, device_id="TEAPOT")
    second = await logged_in(server, alice, device_id="TEAPOT")

    assert (await first.refresh()).error == (401, "M_UNKNOWN_TOKEN")
    assert (await second.refresh()).status == 200


async def test_logging_out_ends_the_refresh_token(server: RunningServer, alice: Client) -> None:
    tokens = await logged_in(server, alice)
    await tokens.client.post(LOGOUT)

    assert (await tokens.refresh()).error == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_the_reuse_of_a_refresh_token_ends_the_session(
    server: RunningServer, alice: Client
) -> None:
    stolen = await logged_in(server, alice)
    second = await stolen.next()
    assert (await second.whoami()).status == 200
    third = await second.next()
    reuse = await stolen.refresh()

    assert reuse.error == (401, "M_UNKNOWN_TOKEN")
    for tokens in (second, third):
        assert (await tokens.whoami()).error == (401, "M_UNKNOWN_TOKEN")
        assert (await tokens.refresh()).error == (401, "M_UNKNOWN_TOKEN")
    assert (await alice.get(WHOAMI)).status == 200


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_of_two_pairs_from_one_refresh_token_only_one_can_be_used(
    server: RunningServer, alice: Client
) -> None:
    stolen = await logged_in(server, alice)
    of_thief, of_owner = await stolen.next(), await stolen.next()
    assert (await of_owner.whoami()).status == 200
    thief = await of_thief.refresh()

    assert thief.error == (401, "M_UNKNOWN_TOKEN")
    assert (await of_owner.whoami()).error == (401, "M_UNKNOWN_TOKEN")
