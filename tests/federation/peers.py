"""Other homeservers, which do as a test says, and what our side needs to meet them."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from random import randint
from typing import Any, Final
from urllib.parse import unquote

import orjson
import trustme
from aiohttp import web
from multidict import MultiMapping

from federation.outbound.server_discovery import ServerDiscovery
from federation.outbound.signed_client import SignedClient
from federation.outbound.srv_records import SrvRecords
from homeserver.http_client import HttpClient
from homeserver.protocol.canonical_json import canonical_json, read_json, write_json
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import XMatrix, signed_request
from homeserver.protocol.server_key_responses import make_key_response
from homeserver.protocol.signing import SigningKey, VerifyKey, sign_json
from homeserver.protocol.unpadded_base64 import encode_base64
from homeserver.server_policy import ServerPolicy
from homeserver.services.destinations import Destinations
from homeserver.services.own_keys import OwnKeys
from homeserver.services.pdu_gate import PduGate
from homeserver.services.server_keys import KeyRing
from homeserver.services.signing_key_file import new_signing_key
from storage.database import Database
from tests.servers import MovableClock

LOOPBACK: Final = [ip_network("127.0.0.0/8"), ip_network("::1/128")]

Answer = web.StreamResponse
Handler = Callable[[web.BaseRequest], Awaitable[Answer]]

KEY_LIST: Final = "/_matrix/key/v2/server"
KEY_QUERY: Final = "/_matrix/key/v2/query"
SEND: Final = "/_matrix/federation/v1/send/{txn_id}"


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own, and the file that makes others trust it."""

    ca: trustme.CA
    file: Path

    @classmethod
    def new(cls, folder: Path) -> Authority:
        ca = trustme.CA()
        file = folder / "ca.pem"
        ca.cert_pem.write_to_path(str(file))
        return cls(ca, file)

    def server_context(self, *names: str) -> ssl.SSLContext:
        """The TLS settings of a server with a certificate for names and addresses."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*names).configure_cert(context)
        return context


@dataclass(frozen=True)
class Received:
    """A request that came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    tls_name: str | None


@dataclass
class HttpsServer:
    """A web server of one handler on a loopback address."""

    port: int
    received: list[Received] = field(default_factory=list)


@asynccontextmanager
async def https_server(
    context: ssl.SSLContext | None, handler: Handler, *, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[HttpsServer]:
    """Serve while the block lasts; without `context` over plain HTTP."""
    names: list[str | None] = []
    if context is not None:
        context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = HttpsServer(0)

    async def answer(request: web.BaseRequest) -> Answer:
        received = Received(
            request.method,
            request.raw_path,
            request.headers.copy(),
            await request.read(),
            names[-1] if names else None,
        )
        server.received.append(received)
        return await handler(request)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address, port, ssl_context=context)
        await site.start()
        server.port = site.port
        yield server
    finally:
        await runner.cleanup()


def json_answer(content: Any, status: int = 200, **headers: str) -> web.Response:
    headers = {"Content-Type": "application/json", **headers}
    return web.Response(body=write_json(content), status=status, headers=headers)


def error_answer(status: int, errcode: str) -> web.Response:
    return json_answer({"errcode": errcode, "error": "?"}, status)


async def _finished(answer: Answer | Awaitable[Answer]) -> Answer:
    return answer if isinstance(answer, web.StreamResponse) else await answer


@dataclass(frozen=True)
class Asked:
    """A request that a route leads to. `names`: what stands where its path has names, decoded."""

    peer: Peer
    names: Mapping[str, str]
    query: MultiMapping[str]
    content: Any
    """The JSON of the body; None where there is none."""


RouteHandler = Callable[[Asked], Answer | Awaitable[Answer] | None]
"""Answers a request, or returns None: then it is none of its business, and other routes are looked at."""


@dataclass(frozen=True)
class Transaction:
    """What came in a transaction."""

    txn_id: str
    content: dict[str, Any]


@dataclass
class Peer:
    """Another homeserver. `keys`: those in use; `old_keys` and `valid_until_ts`: what its list says.

    `answers`: to requests of a path; all other requests go to the routes, the newest first.
    """

    name: ServerName
    clock: MovableClock
    keys: list[SigningKey]
    server: HttpsServer
    old_keys: dict[str, VerifyKey] = field(default_factory=dict)
    valid_until_ts: int | None = None
    answers: dict[str, Callable[[], Answer | Awaitable[Answer]]] = field(default_factory=dict)
    transactions: list[Transaction] = field(default_factory=list)
    """Those that it took, in their order."""
    _routes: list[tuple[str, re.Pattern[str], RouteHandler]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.route("GET", KEY_LIST, lambda _asked: json_answer(self.response()))
        self.route("PUT", SEND, self._take)

    def route(self, method: str, path: str, handler: RouteHandler) -> None:
        """Let a handler answer requests of a path, whose segments may be `{name}`: any text, but no slash."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))
        self._routes.insert(0, (method, re.compile(pattern), handler))

    async def answer(self, request: web.BaseRequest) -> Answer:
        """What it answers; M_UNRECOGNIZED to what it does not know."""
        if (known := self.answers.get(request.path)) is not None:
            return await _finished(known())
        path, body = request.raw_path.partition("?")[0], await request.read()
        for method, pattern, handler in self._routes:
            if method == request.method and (match := pattern.fullmatch(path)) is not None:
                names = {name: unquote(text) for name, text in match.groupdict().items()}
                given = handler(Asked(self, names, request.query, read_json(body) if body else None))
                if given is not None:
                    return await _finished(given)
        return error_answer(404, "M_UNRECOGNIZED")

    def _take(self, asked: Asked) -> Answer:
        self.transactions.append(Transaction(asked.names["txn_id"], asked.content))
        return json_answer({"pdus": {}})

    def response(self) -> dict[str, Any]:
        """The list of its keys."""
        valid_until_ts = self.clock() + 3600_000 if self.valid_until_ts is None else self.valid_until_ts
        return make_key_response(self.name, self.keys, self.old_keys, valid_until_ts)

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(received.target == path for received in self.server.received)

    def sign(
        self,
        method: str,
        uri: str,
        destination: str | None,
        body: bytes = b"",
        *,
        key: SigningKey | None = None,
        origin: str | None = None,
        in_header: bool = True,
    ) -> str:
        """The Authorization header of a request of this server's. `body`: canonical JSON."""
        key = key or self.keys[0]
        by = ServerName(origin or self.name)
        to = None if destination is None else ServerName(destination)
        bare = XMatrix(by, to, key.key_id, "")
        signed = signed_request([bare], to or ServerName(""), method, uri)
        del signed["signatures"]
        if body:
            signed["content"] = orjson.Fragment(body)
        signature = encode_base64(key.sign(canonical_json(signed)))
        return XMatrix(by, to if in_header else None, key.key_id, signature).to_header()

    def attest(self, response: dict[str, Any]) -> dict[str, Any]:
        """A list of keys with a signature of this server's."""
        return sign_json(response, self.name, self.keys[0])


@asynccontextmanager
async def running_peer(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """A homeserver on a loopback address of its own, named by it."""
    address = f"127.{randint(1, 254)}.{randint(1, 254)}.{randint(1, 254)}"

    async def handler(request: web.BaseRequest) -> Answer:
        return await peer.answer(request)

    async with https_server(authority.server_context(address), handler, address=address) as server:
        peer = Peer(ServerName(f"{address}:{server.port}"), clock, [new_signing_key()], server)
        yield peer


def resolver(names: Mapping[str, Sequence[str]]) -> Callable[[str], Awaitable[Sequence[str]]]:
    """A resolver that knows some names, and counts nothing else as one."""

    async def resolve(host: str) -> Sequence[str]:
        try:
            return names[host]
        except KeyError:
            raise OSError(f"{host} is unknown") from None

    return resolve


@dataclass(frozen=True)
class OurSide:
    """A homeserver's services for federation, without the server."""

    name: ServerName
    clock: MovableClock
    http: HttpClient
    client: SignedClient
    destinations: Destinations
    key_ring: KeyRing
    key: SigningKey
    database: Database

    @property
    def gate(self) -> PduGate:
        return PduGate(self.key_ring, self.database)


@asynccontextmanager
async def our_side(
    database: Database,
    authority: Authority,
    clock: MovableClock,
    *,
    notaries: Sequence[ServerName] = (),
    denied: Sequence[str] = (),
    name: str = "our.test",
) -> AsyncIterator[OurSide]:
    """The services of one process."""
    server_name = ServerName(name)
    key = new_signing_key()
    destinations = Destinations(database, clock)
    await destinations.load()
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            HttpClient(allowed_ranges=LOOPBACK, ca_files=[authority.file], resolve=resolver({}))
        )
        client = SignedClient(
            http,
            ServerDiscovery(http, SrvRecords(clock, None), clock),
            server_name,
            key,
            ServerPolicy(server_name, None, frozenset(denied)),
            destinations,
            clock,
        )
        key_ring = KeyRing(database, OwnKeys(server_name, key, {}), client, notaries, clock)
        yield OurSide(server_name, clock, http, client, destinations, key_ring, key, database)
