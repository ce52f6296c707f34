"""Client-Server API, section "Capabilities negotiation"."""

from __future__ import annotations

from client_api.endpoints import client_endpoints
from homeserver.http.models import Reply
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class UserCapabilities(Reply):
    """What the user may do, by the names of capabilities."""

    capabilities: JsonObject


@endpoints.get("/_matrix/client/v3/capabilities")
async def get_capabilities(services: Services, requester: Requester) -> UserCapabilities:
    """Tell what is possible here, of what is optional."""
    return UserCapabilities(capabilities=await services.capabilities.of(requester))
