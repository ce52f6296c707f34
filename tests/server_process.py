"""Servers as their operators run them: processes, to be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from storage.embedded.cluster import CLUSTER
from storage.embedded.socket_folder import connection_url, socket_folder_of

START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class HomeserverProcess:
    """A homeserver as a process. It answers clients at `url`, and keeps name and port over restarts."""

    def __init__(self, folder: Path, name: str, port: int, command: Sequence[str], ready: str) -> None:
        """`ready`: the path that answers 200 as soon as it is ready."""
        self.folder = folder
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start, and wait until the server says that it is ready."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(START_LIMIT_S), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                if self._process.returncode is not None:
                    raise AssertionError(f"the server ended:\n{self.log}")

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.url + self._ready) as response:
                return response.status == 200
        except aiohttp.ClientError:
            await asyncio.sleep(0.02)
            return False

    async def stop(self) -> int:
        """Tell it to stop; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_LIMIT_S):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.stop()


class ServerProcess(HomeserverProcess):
    """`lair-chat serve` on a data folder, with an embedded PostgreSQL."""

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None) -> None:
        """`settings`: beside those of every such server; `listeners` beside the one for clients."""
        self.port = free_port()
        own: dict[str, Any] = settings or {}
        config: dict[str, Any] = {
            "server_name": "lair.test",
            "data_dir": str(folder / "data"),
            "registration": {"enabled": True, "require_token": False},
            "rate_limits": {"enabled": False},
            "passwords": {"argon2_memory_kib": 64, "argon2_iterations": 1},
            "logging": {"level": "WARNING"},
        }
        listeners = [{"bind": "127.0.0.1", "port": self.port}, *own.get("listeners", [])]
        config |= own | {"listeners": listeners}
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "homeserver", "serve", "--config", str(file)]
        super().__init__(folder, config["server_name"], self.port, command, "/health/ready")

    @property
    def database_url(self) -> str:
        data_dir = self.folder / "data"
        return connection_url(socket_folder_of(data_dir, data_dir / CLUSTER))

    @property
    def postmaster_pid(self) -> int:
        return int((self.folder / "data" / CLUSTER / "postmaster.pid").read_text().splitlines()[0])

    def kill_database(self) -> None:
        os.kill(self.postmaster_pid, signal.SIGKILL)
