"""Real servers that reach each other over TLS, each with an address and a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import randint
from typing import Any, Final
from uuid import uuid4

from canonicaljson import encode_canonical_json
from yarl import URL

from homeserver.protocol.identifiers import ServerName
from tests.clients import Response
from tests.databases import new_database
from tests.federation.peers import Authority, Peer
from tests.server_process import ServerProcess
from tests.servers import RunningServer, running_server

DENIED: Final = ServerName("denied.test")
"""A server that no server of the tests talks to."""

NOBODY_THERE: Final = ServerName("127.0.0.1:1")
"""A server that cannot be reached."""


def federation_settings(authority: Authority) -> dict[str, Any]:
    """What a server needs to reach others on loopback addresses."""
    return {
        "trusted_ca_files": [str(authority.file)],
        "allowed_ip_ranges": ["127.0.0.0/8", "::1/128"],
        "deny_servers": [DENIED],
    }


def listener_of(authority: Authority, folder: Path) -> tuple[str, dict[str, Any]]:
    """A loopback address of a server's own, and the listener there. `folder`: for its certificate."""
    address = f"127.{randint(1, 254)}.{randint(1, 254)}.{randint(1, 254)}"
    certificate = authority.ca.issue_cert(address)
    files = {name: folder / f"{address}-{name}.pem" for name in ("certificate", "private_key")}
    certificate.private_key_pem.write_to_path(str(files["private_key"]))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(files["certificate"]), append=True)
    tls = {name: str(file) for name, file in files.items()}
    return address, {"bind": address, "port": 8448, "apis": ["federation"], "tls": tls}


@asynccontextmanager
async def running_homeserver(
    postgres_url: str, authority: Authority, folder: Path
) -> AsyncIterator[RunningServer]:
    """A server on a loopback address of its own, named by it. `folder`: for its certificate."""
    address, listener = listener_of(authority, folder)
    async with (
        new_database(postgres_url) as database_url,
        running_server(
            database_url,
            server_name=f"{address}:8448",
            listeners=[
                {"port": 0, "apis": ["client", "federation"]},
                listener,
            ],
            federation=federation_settings(authority),
        ) as server,
    ):
        yield server


@asynccontextmanager
async def homeserver_process(authority: Authority, folder: Path) -> AsyncIterator[ServerProcess]:
    """A server as a process of its own, on a loopback address, named by it. `folder`: does not exist yet."""
    folder.mkdir()
    address, listener = listener_of(authority, folder)
    settings = {
        "server_name": f"{address}:8448",
        "listeners": [listener],
        "federation": federation_settings(authority),
    }
    async with ServerProcess(folder, settings) as server:
        yield server


def name_of(server: RunningServer) -> ServerName:
    """What a server is called."""
    return server.services.config.server_name


async def ask(
    server: RunningServer,
    peer: Peer,
    uri: str,
    content: dict[str, Any] | None = None,
    *,
    method: str | None = None,
) -> Response:
    """A signed request of a peer's: GET, or POST where there is content, unless `method` says otherwise."""
    method = method or ("GET" if content is None else "POST")
    body = b"" if content is None else encode_canonical_json(content)
    headers = {"Authorization": peer.sign(method, uri, name_of(server), body)}
    url = URL(server.url + uri, encoded=True)
    async with server.http.request(method, url, data=body or None, headers=headers) as answer:
        return Response(answer.status, await answer.json(), answer.headers)


def new_word() -> str:
    """A word that no other test has."""
    return f"tea{uuid4().hex}"
