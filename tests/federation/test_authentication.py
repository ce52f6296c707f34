"""Signed requests that other servers send us."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from yarl import URL

from federation.inbound.authentication import Origin, SignedContent
from federation.inbound.endpoints import federation_endpoints
from homeserver.config import Listener
from homeserver.http.application import HttpApplication
from homeserver.http.models import Path
from homeserver.http.rate_limit import RateLimiter
from homeserver.metrics import Metrics
from homeserver.protocol.signing import SigningKey, VerifyKey
from homeserver.services import Services
from homeserver.services.signing_key_file import new_signing_key
from storage.database import Database
from tests.clients import Response
from tests.federation.peers import KEY_LIST, Authority, Peer, json_answer, running_peer
from tests.http.conftest import talk
from tests.servers import RunningServer, running_server

TEA = "/_matrix/federation/v1/tea"

endpoints = federation_endpoints()


class TeaPath(Path):
    kind: str = ""


@endpoints.get(TEA, aliases=(f"{TEA}/{{kind*}}",))
async def get_tea(origin: Origin, path: TeaPath) -> dict[str, str]:
    """Say who asks."""
    return {"origin": origin.server_name}


@endpoints.put(TEA)
async def put_tea(origin: Origin, content: SignedContent) -> dict[str, Any]:
    """Say who asks for what."""
    return {"origin": origin.server_name, "keys": list(content)}


@dataclass(frozen=True)
class TeaServer:
    """A server with endpoints that take signed requests."""

    server: RunningServer
    url: str

    async def ask(
        self, method: str, uri: str, authorization: str | list[str] | None = None, body: bytes = b""
    ) -> Response:
        headers = [authorization] if isinstance(authorization, str) else authorization or []
        async with self.server.http.request(
            method,
            URL(self.url + uri, encoded=True),
            data=body or None,
            headers=[("Authorization", header) for header in headers],
        ) as answer:
            return Response(answer.status, await answer.json(), answer.headers)


@pytest.fixture
async def tea(database: Database, database_url: str, authority: Authority) -> AsyncIterator[TeaServer]:
    federation = {
        "trusted_ca_files": [str(authority.file)],
        "allowed_ip_ranges": ["127.0.0.0/8", "::1/128"],
        "deny_servers": ["denied.test"],
    }
    async with running_server(database_url, federation=federation) as server:
        http = HttpApplication[Services](
            [Listener(port=0, apis=("federation",))],
            [endpoints],
            server.services,
            metrics=Metrics(),
            rate_limiter=RateLimiter({}, enabled=False),
        )
        await http.start()
        try:
            yield TeaServer(server, f"http://127.0.0.1:{http.addresses[0].port}")
        finally:
            await http.stop(0)


@pytest.fixture(name="peer")
async def peer_of_the_tea_server(authority: Authority, tea: TeaServer) -> AsyncIterator[Peer]:
    async with running_peer(authority, tea.server.clock) as peer:
        yield peer


async def test_a_signed_request_tells_its_origin(tea: TeaServer, peer: Peer) -> None:
    asked = await tea.ask("GET", TEA, peer.sign("GET", TEA, "test"))
    put = await tea.ask("PUT", TEA, peer.sign("PUT", TEA, "test", b"{}"), b"{}")

    assert (asked.status, asked.body) == (200, {"origin": peer.name})
    assert (put.status, put.body) == (200, {"origin": peer.name, "keys": []})
    assert "Access-Control-Allow-Origin" not in asked.headers
    assert peer.asked(KEY_LIST) == 1


async def test_path_and_query_are_signed_as_they_are_sent(tea: TeaServer, peer: Peer) -> None:
    for uri in (f"{TEA}/%2Fa%2fb/%c3%A9/..;//x", f"{TEA}?b=%20+&a&a=1", f"{TEA}/!$'()*:@~"):
        assert (await tea.ask("GET", uri, peer.sign("GET", uri, "test"))).status == 200
    head = f"GET {TEA}? HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAuthorization: "
    signed = peer.sign("GET", f"{TEA}?", "test")
    answer = await talk(int(tea.url.rpartition(":")[2]), f"{head}{signed}\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"b":["\xc3\xa9\xf0\x9f\x8d\xb5",{"c":null}],"d":9007199254740991}',
        b'{"a":1.0,"b":1e+16,"c":-0,"d":0.10,"e":123456789012345678901234567890}',
    ],
)
async def test_a_body_is_signed_as_its_sender_writes_it(tea: TeaServer, peer: Peer, body: bytes) -> None:
    authorization = peer.sign("PUT", TEA, "test", body)
    canonical = await tea.ask("PUT", TEA, authorization, body)
    spaced = await tea.ask("PUT", TEA, authorization, body.replace(b",", b" ,\n").replace(b":", b": "))

    assert canonical.status == spaced.status == 200


@pytest.mark.invariant("SEC-FED-1")
async def test_sec_fed_1_every_form_of_the_header_is_taken(tea: TeaServer, peer: Peer) -> None:
    header = peer.sign("GET", TEA, "test")
    signature = header.rpartition('sig="')[2].rstrip('"')
    key_id = peer.keys[0].key_id
    for form in (
        header.replace("X-Matrix", "x-mAtRiX").replace("origin", "Origin"),
        header.replace(",", " \t, ").replace("X-Matrix ", "X-Matrix   "),
        header + ',extra="a,\\"b",more=1',
        f'X-Matrix sig="{signature}",key={key_id},destination=test,origin={peer.name}',
        f'X-Matrix origin="\\1{peer.name[1:]}",key="{key_id}",sig="{signature}",destination="\\test"',
        peer.sign("GET", TEA, "test", in_header=False),
    ):
        assert (await tea.ask("GET", TEA, form)).status == 200, form


@pytest.mark.invariant("SEC-FED-1")
async def test_sec_fed_1_other_authentication_is_401(tea: TeaServer, peer: Peer) -> None:
    header, body = peer.sign("GET", TEA, "test"), b'{"a":1}'
    stranger, key_id = new_signing_key(), peer.keys[0].key_id
    forged = SigningKey.from_seed(key_id.removeprefix("ed25519:"), bytes(32))
    refused = [
        await tea.ask("GET", TEA, authorization)
        for authorization in (
            None,
            "",
            "Bearer token",
            "X-Matrix",
            header.replace(",sig=", ",sig=,sig="),
            header + f',origin="{peer.name}"',
            header.replace(peer.name, "127.0.0.1:1"),
            header.replace('sig="', 'sig="A'),
            header.replace('sig="', 'sig="!'),
            header.replace(key_id, "ed25519:other"),
            header.replace(key_id, "rsa:1"),
            peer.sign("GET", TEA, "elsewhere.test"),
            peer.sign("GET", TEA, "TEST"),
            peer.sign("GET", TEA, "elsewhere.test", in_header=False),
            peer.sign("GET", TEA + "?", "test"),
            peer.sign("PUT", TEA, "test"),
            peer.sign("GET", TEA, "test", b"{}"),
            peer.sign("GET", TEA, "test", key=stranger),
            peer.sign("GET", TEA, "test", key=forged),
            peer.sign("GET", TEA, "test", origin="test"),
            peer.sign("GET", TEA, "test", origin="[::1]:1"),
        )
    ]
    refused += [
        await tea.ask("PUT", TEA, peer.sign("PUT", TEA, "test", b'{"a":2}'), body),
        await tea.ask("PUT", TEA, peer.sign("PUT", TEA, "test"), body),
        await tea.ask("PUT", TEA, None, b"tea"),
    ]

    assert [answer.error for answer in refused] == [(401, "M_UNAUTHORIZED")] * len(refused)


@pytest.mark.invariant("SEC-FED-1")
async def test_sec_fed_1_one_of_several_keys_is_enough_but_none_may_be_wrong(
    tea: TeaServer, peer: Peer
) -> None:
    peer.keys.append(new_signing_key())
    unknown = peer.sign("GET", TEA, "test", key=new_signing_key())
    first, second = (peer.sign("GET", TEA, "test", key=key) for key in peer.keys)
    wrong = peer.sign("GET", TEA + "?", "test", key=peer.keys[1])
    evil = peer.sign("GET", TEA, "test", key=peer.keys[1], origin="evil.test")

    assert (await tea.ask("GET", TEA, [unknown, first, second])).status == 200
    assert (await tea.ask("GET", TEA, [first, wrong])).error == (401, "M_UNAUTHORIZED")
    assert (await tea.ask("GET", TEA, [first, evil])).error == (401, "M_UNAUTHORIZED")


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_an_old_or_expired_key_signs_no_request(tea: TeaServer, peer: Peer) -> None:
    old, clock = new_signing_key(), tea.server.clock
    peer.old_keys = {old.key_id: VerifyKey(old.public_key, clock() + 10**9)}
    header = peer.sign("GET", TEA, "test")
    by_old = await tea.ask("GET", TEA, peer.sign("GET", TEA, "test", key=old))
    valid = await tea.ask("GET", TEA, header)
    peer.answers[KEY_LIST] = lambda: json_answer({}, 500)
    clock.advance(3600_000)
    just_valid = await tea.ask("GET", TEA, header)
    clock.advance(1)
    expired = await tea.ask("GET", TEA, header)
    del peer.answers[KEY_LIST]
    clock.advance(60_000)
    renewed = await tea.ask("GET", TEA, header)

    assert (by_old.status, valid.status, just_valid.status, expired.status, renewed.status) == (
        401, 200, 200, 401, 200,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"tea", "M_NOT_JSON"),
        (b'{"a":NaN}', "M_NOT_JSON"),
        (b'{"a":1,"a":1}', "M_BAD_JSON"),
        (b'{"a":"\\ud800"}', "M_BAD_JSON"),
    ],
)
async def test_a_body_that_is_no_json_is_400(tea: TeaServer, peer: Peer, body: bytes, errcode: str) -> None:
    answer = await tea.ask("PUT", TEA, peer.sign("PUT", TEA, "test", b"{}"), body)

    assert answer.error == (400, errcode)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"tea"', b""])
async def test_a_signed_body_has_to_be_an_object(tea: TeaServer, peer: Peer, body: bytes) -> None:
    answer = await tea.ask("PUT", TEA, peer.sign("PUT", TEA, "test", body), body)

    assert answer.error == (400, "M_BAD_JSON")


async def test_unknown_paths_and_methods_are_told_to_everybody(tea: TeaServer) -> None:
    assert (await tea.ask("GET", "/_matrix/federation/v1/coffee")).error == (404, "M_UNRECOGNIZED")
    assert (await tea.ask("POST", TEA)).error == (405, "M_UNRECOGNIZED")


async def test_a_denied_server_is_refused_before_its_keys_are_fetched(tea: TeaServer, peer: Peer) -> None:
    for name in ("denied.test", "DENIED.test:8448", "denied.test."):
        answer = await tea.ask("GET", TEA, peer.sign("GET", TEA, "test", origin=name))
        assert answer.error == (403, "M_FORBIDDEN")


async def test_a_server_that_is_heard_from_may_be_asked_again(tea: TeaServer, peer: Peer) -> None:
    destinations = tea.server.services.destinations
    await destinations.failed(peer.name, 0)
    await tea.ask("GET", TEA, peer.sign("GET", TEA + "?", "test"))
    still_failing = destinations.retry_ts(peer.name)
    await tea.ask("GET", TEA, peer.sign("GET", TEA, "test"))

    assert still_failing is not None
    assert destinations.retry_ts(peer.name) is None


async def test_without_federation_nothing_of_it_is_served(database: Database, database_url: str) -> None:
    async with running_server(database_url, federation={"enabled": False}) as server:
        for path in (KEY_LIST, "/_matrix/federation/v1/version", "/.well-known/matrix/server"):
            assert (await server.nobody.get(path)).error == (404, "M_UNRECOGNIZED")
