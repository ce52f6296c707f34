"""The lines between servers, which a test cuts and mends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from yarl import URL

from homeserver.http_client import BrokenResponse, HttpClient, HttpResponse
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import parse_x_matrix

Line: TypeAlias = tuple[ServerName, ServerName]
"""From the server that asks to the one that is asked."""


@dataclass
class Lines:
    """Those that do not work. What servers ask without a signature, for keys, gets through."""

    cut: set[Line] = field(default_factory=set)
    """No request gets through."""
    deaf: set[Line] = field(default_factory=set)
    """Requests get through, and no answer comes back."""

    def mend(self) -> None:
        """All lines work again."""
        self.cut.clear()
        self.deaf.clear()

    def works(self, line: Line) -> bool:
        """Whether nothing is wrong with a line."""
        return line not in self.cut and line not in self.deaf


@contextmanager
def lines_between_servers() -> Iterator[Lines]:
    """The lines of all servers of this process."""
    lines = Lines()
    ask = HttpClient.request

    async def request(client: HttpClient, method: str, url: str, **options: Any) -> HttpResponse:
        line = _line(url, options)
        if line in lines.cut:
            raise BrokenResponse("the line is cut")
        response = await ask(client, method, url, **options)
        if line in lines.deaf:
            raise BrokenResponse("the answer is lost")
        return response

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HttpClient, "request", request)
        yield lines


def _line(url: str, options: dict[str, Any]) -> Line | None:
    authorization = (options.get("headers") or {}).get("Authorization")
    if authorization is None:
        return None
    return parse_x_matrix(authorization).origin, ServerName(URL(url).authority)
