"""What someone is told when another server, which had to be asked, did not answer as it should."""

from __future__ import annotations

from typing import Final

from federation.outbound.signed_client import (
    BackingOff,
    DestinationDenied,
    FederationError,
    RequestRefused,
    Unreachable,
)
from homeserver.errors import BadGateway, Forbidden, MatrixError, NotFound

WITHOUT_ANSWER: Final = ("", "M_UNRECOGNIZED")
"""The errcodes of a 404 that tells nothing of what was asked for: no homeserver there, no such endpoint."""


def as_answer(error: FederationError, missing: str) -> MatrixError:
    """The answer for a failure. `missing`: the text where the other server says that there is no such thing.

    The other server's own text is not passed on.
    """
    match error:
        case RequestRefused(status=404, errcode=errcode) if errcode not in WITHOUT_ANSWER:
            return NotFound(missing)
        case RequestRefused(status=403):
            return Forbidden(f"{error.destination} does not tell this server")
        case DestinationDenied():
            return Forbidden(f"this server does not talk to {error.destination}")
        case BackingOff() | Unreachable():
            return BadGateway(f"{error.destination} cannot be reached now")
        case _:
            return BadGateway(f"{error.destination} gave no answer that can be used")
