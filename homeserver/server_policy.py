"""With which other servers this one speaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.config import Config
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, split_host_port


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """The lists of the configuration. Names are compared without case.

    `denied`: a name without port stands for that host at every port. `allowed`: None for all others.
    """

    server_name: ServerName
    allowed: frozenset[str] | None
    denied: frozenset[str]

    @classmethod
    def of(cls, config: Config) -> ServerPolicy:
        """The policy that a configuration asks for."""
        allowed, denied = config.federation.allow_servers, config.federation.deny_servers
        if not config.federation.enabled:
            allowed = ()
        return cls(
            config.server_name, None if allowed is None else _without_case(allowed), _without_case(denied)
        )

    def permits(self, server_name: ServerName) -> bool:
        """Whether requests to and from a server may be; never with ourselves."""
        if server_name == self.server_name:
            return False
        name = server_name.lower()
        if self.denied:
            try:
                host = split_host_port(name)[0]
            except InvalidIdentifier:
                return False
            if not self.denied.isdisjoint((name, host, host.rstrip("."))):
                return False
        return self.allowed is None or name in self.allowed


def _without_case(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)
