"""What a handler of the Client-Server API may ask for: services, requester, path, query, body."""

from __future__ import annotations

from typing import Final

from client_api.authentication import by_access_token
from homeserver.config import Api
from homeserver.http.endpoints import Endpoints
from homeserver.services import Services

OLD_PREFIXES: Final = {"/_matrix/client/v3/": ("/_matrix/client/r0/",)}
"""What older clients still call, by the prefix of today."""


def client_endpoints(api: Api = "client") -> Endpoints[Services]:
    """The endpoints of one file; `api` says which listeners serve them."""
    return Endpoints(Services, by_access_token, api=api, old_prefixes=OLD_PREFIXES)
