"""The real application, running for a test."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aiohttp

from homeserver.app import run_server
from homeserver.config import Config
from homeserver.services import Services
from tests.clients import Client


class MovableClock:
    """Milliseconds since 1970, which go on only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url`; `nobody` is a client that is not logged in."""

    url: str
    http: aiohttp.ClientSession
    nobody: Client
    services: Services
    clock: MovableClock


class StartServer(Protocol):
    """Starts another server on the same database, with sections of the configuration as given."""

    def __call__(self, **settings: Any) -> Awaitable[RunningServer]: ...


@asynccontextmanager
async def running_server(database_url: str, **settings: Any) -> AsyncIterator[RunningServer]:
    """A server called "test", open for everyone unless the settings say otherwise."""
    config = Config.model_validate(
        {
            "server_name": "test",
            "listeners": [{"port": 0}],
            "signing_key_path": str(signing_key_path(database_url)),
            "database": {"url": database_url, "pool_size": 3},
            "registration": {"enabled": True, "require_token": False},
            "passwords": {"argon2_memory_kib": 64, "argon2_iterations": 1},
            "rate_limits": {"enabled": False},
            **settings,
        }
    )
    clock = MovableClock()
    async with run_server(config, clock) as server, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.addresses[0].port}"
        yield RunningServer(url, http, Client(http, url), server.services, clock)


@cache
def signing_key_path(database_url: str) -> Path:
    """Where the signing key of all servers on a database is: a folder that goes when the tests are over."""
    folder = Path(tempfile.mkdtemp(prefix="lair-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "signing.key"


def unique_name(name: str = "user") -> str:
    """A user name that no other test has."""
    return f"{name}-{uuid4().hex}"
