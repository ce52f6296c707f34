"""Server-Server API, sections "Server implementation", "Resolving server names"."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from federation.inbound.endpoints import federation_endpoints
from homeserver.errors import NotFound
from homeserver.http.models import RawReply, Reply
from homeserver.services import Services

endpoints = federation_endpoints()

NAME: Final = "Lair Chat"


def _version() -> str:
    try:
        return version("lair-chat")
    except PackageNotFoundError:
        return "not installed"


VERSION: Final = _version()


class Implementation(Reply):
    """What runs here."""

    name: str
    version: str


class Version(Reply):
    """The answer to GET /version."""

    server: Implementation


@endpoints.get("/_matrix/federation/v1/version", public=True)
async def get_version() -> Version:
    """Say what runs here, whoever asks."""
    return Version(server=Implementation(name=NAME, version=VERSION))


@endpoints.get("/.well-known/matrix/server", public=True)
async def get_well_known(services: Services) -> RawReply:
    """Tell other servers where requests to this one go."""
    delegated = services.config.federation.well_known_server
    if delegated is None:
        raise NotFound("requests to this server are not delegated")
    return RawReply.json({"m.server": delegated})
