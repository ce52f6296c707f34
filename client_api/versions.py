"""Client-Server API, sections "API Versions", "Server Discovery"."""

from __future__ import annotations

from typing import Final

from client_api.endpoints import client_endpoints
from client_api.session_fields import Discovery, well_known
from homeserver.errors import NotFound
from homeserver.http.models import Reply
from homeserver.services import Services

endpoints = client_endpoints()

VERSIONS: Final = [f"v1.{minor}" for minor in range(1, 20)]
UNSTABLE_FEATURES: Final[dict[str, bool]] = {}
"""What exists here and is in no version of the specification yet."""


class Versions(Reply):
    """The versions of the specification that this server follows."""

    versions: list[str]
    unstable_features: dict[str, bool]


@endpoints.get("/_matrix/client/versions", public=True)
async def get_versions() -> Versions:
    """List the versions of the specification, whoever asks."""
    return Versions(versions=VERSIONS, unstable_features=UNSTABLE_FEATURES)


@endpoints.get("/.well-known/matrix/client", public=True)
async def get_wellknown(services: Services) -> Discovery:
    """Tell clients that know the server name where the server is."""
    information = well_known(services.config.public_base_url)
    if information is None:
        raise NotFound("this server does not say where it is; ask its operator for the URL")
    return information
