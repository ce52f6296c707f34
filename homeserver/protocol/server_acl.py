"""Server ACLs: which servers may take part in a room.

Source: Client-Server API, "m.room.server_acl"; Appendices, "Glob-style matching".
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, split_host_port
from homeserver.protocol.strict_json import JsonObject

_NOTHING: Final = "(?!)"


@dataclass(frozen=True, slots=True)
class ServerAcl:
    """The content of an m.room.server_acl event, ready to be asked; what is malformed counts as absent."""

    _allow: re.Pattern[str]
    _deny: re.Pattern[str]
    _allow_ip_literals: bool

    @classmethod
    def of(cls, content: JsonObject) -> ServerAcl:
        """The ACL that a content of any shape stands for."""
        return cls(
            _pattern(content.get("allow")),
            _pattern(content.get("deny")),
            content.get("allow_ip_literals") is not False,
        )

    def allows(self, server_name: ServerName) -> bool:
        """Whether a server may take part; its port does not matter, nor does its case."""
        try:
            host = split_host_port(server_name)[0].lower()
        except InvalidIdentifier:
            return False
        if not self._allow_ip_literals and _is_ip_literal(host):
            return False
        return self._deny.match(host) is None and self._allow.match(host) is not None


def _is_ip_literal(host: str) -> bool:
    if host.startswith("["):
        return True
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _pattern(globs: Any) -> re.Pattern[str]:
    """Matches what any of these globs matches, without going back: in linear time for each of them."""
    texts = [glob for glob in globs if isinstance(glob, str)] if isinstance(globs, list) else []
    return re.compile("|".join(_glob(text.lower()) for text in texts) if texts else _NOTHING, re.DOTALL)


def _glob(text: str) -> str:
    """A pattern for one glob: between two `*` the first place that fits is taken and kept."""
    first, *others = (
        "".join("." if char == "?" else re.escape(char) for char in part) for part in text.split("*")
    )
    if not others:
        return rf"{first}\Z"
    *inner, last = others
    kept = "".join(f"(?>.*?{part})" for part in inner if part)
    return rf"{first}{kept}.*{last}\Z"
