"""How often anybody may make this server ask others. Source: Client-Server API, "Rate limiting"."""

from __future__ import annotations

import time

from homeserver.http.rate_limit import address_key
from homeserver.http.request import Request
from homeserver.protocol.identifiers import RoomAlias, UserId, server_name_of
from homeserver.services import Services


def count_lookup(services: Services, request: Request, identifier: RoomAlias | UserId) -> None:
    """Count a request that needs no account for the limit of its address, if another server has to be asked.

    Raises LimitExceeded.
    """
    if server_name_of(identifier) != services.config.server_name:
        who = address_key(request.client_address)
        request.listener.rate_limiter.check("lookup", who, time.monotonic())
