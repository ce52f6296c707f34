"""A client that costs little: HTTP/1.1 over one connection that stays open, one request at a time."""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

import orjson


class Refused(Exception):
    """An answer with another status than 200."""


class Connection(asyncio.Protocol):
    """One connection to a server on the loopback interface."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._body_at = 0
        self._size = 0
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def request(self, method: str, path: str, token: str = "", body: bytes = b"") -> bytes:
        """Send a request and return the body of its answer. Raises Refused."""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{authorization}Content-Length: {len(body)}\r\n\r\n"
        )
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return await self._answer

    async def json(self, method: str, path: str, token: str = "", body: Any = None) -> Any:
        """As `request`, with JSON both ways."""
        return orjson.loads(
            await self.request(method, path, token, b"" if body is None else orjson.dumps(body))
        )

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: an answer is whole once all that Content-Length says is there."""
        self._received += data
        if not self._body_at:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            head = bytes(self._received[:end])
            self._size = int(head.partition(b"\r\nContent-Length: ")[2].partition(b"\r\n")[0])
        if len(self._received) - self._body_at < self._size:
            return
        status, body = self._received[9:12], bytes(self._received[self._body_at :])
        self._received.clear()
        self._body_at = 0
        if self._answer is None or self._answer.done():
            return
        if status == b"200":
            self._answer.set_result(body)
        else:
            self._answer.set_exception(Refused(f"{status.decode()}: {body[:300]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))
