"""What a handler of the Server-Server API may ask for: services, origin, path, query, body."""

from __future__ import annotations

from federation.inbound.authentication import SignedContent, by_signature, signed_content
from homeserver.http.endpoints import Endpoints
from homeserver.services import Services


def federation_endpoints() -> Endpoints[Services]:
    """The endpoints of one file. A handler without an `Origin` says public=True: it is for unsigned requests.

    A signed body is parsed already: a handler that takes it as SignedContent saves parsing it again.
    """
    return Endpoints(Services, by_signature, {SignedContent: signed_content}, api="federation", cors=False)
