"""How many invites someone sends and gets, on whatever way they are sent.

Source: Client-Server API, "Rate limiting".
"""

from __future__ import annotations

import time
from collections.abc import Collection

from homeserver.http.request import Request
from homeserver.protocol.identifiers import UserId


def count_invites(request: Request, inviter: UserId, invitees: Collection[UserId]) -> None:
    """Count invites for the limits of who sends them and of those who get them. Raises LimitExceeded."""
    if not invitees:
        return
    limiter, now = request.listener.rate_limiter, time.monotonic()
    limiter.check("invite", inviter, now, len(invitees))
    for invitee in invitees:
        limiter.check("invited", invitee, now)
