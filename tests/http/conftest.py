"""An open tea house, and ways to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import orjson
import pytest
from multidict import CIMultiDictProxy
from yarl import URL

from tests.http.tea_house import TeaHouse, open_tea_house


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    content: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.content)

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.body["errcode"]


class Ask(Protocol):
    async def __call__(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        of: TeaHouse | None = None,
    ) -> Answer: ...


@pytest.fixture(scope="session")
async def house() -> AsyncIterator[TeaHouse]:
    """A tea house that all tests share."""
    async with open_tea_house() as house:
        yield house


@pytest.fixture(scope="session")
async def ask(house: TeaHouse) -> AsyncIterator[Ask]:
    """Send one request, its path as it is: bytes as they are, anything else as JSON."""
    async with aiohttp.ClientSession() as session:

        async def ask(
            method: str,
            path: str,
            content: Any = None,
            *,
            headers: Mapping[str, str] | None = None,
            of: TeaHouse | None = None,
        ) -> Answer:
            if content is not None and not hasattr(content, "__aiter__") and not isinstance(content, bytes):
                content = orjson.dumps(content)
            url = URL((of or house).url + path, encoded=True)
            skip = ("Content-Type",)
            async with session.request(
                method, url, data=content, headers=headers, skip_auto_headers=skip, allow_redirects=False
            ) as response:
                return Answer(response.status, response.headers, await response.read())

        yield ask


async def talk(port: int, *messages: bytes, until: bytes | None = None) -> bytes:
    """Send bytes over a new connection, and read until the server closes it, or has sent `until`."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for message in messages:
                writer.write(message)
                await writer.drain()
            return await (reader.read() if until is None else reader.readuntil(until))
        finally:
            writer.close()
            await writer.wait_closed()
