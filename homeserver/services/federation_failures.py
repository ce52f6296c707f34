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
from homeserver.protocol.identifiers import ServerName

WITHOUT_ANSWER: Final = ("", "M_UNRECOGNIZED")
"""The errcodes of a 404 that tells nothing of what was asked for: no homeserver there, no such endpoint."""


def failure_answer(
    error: FederationError, *, missing: str, refused: str = "does not tell this server"
) -> MatrixError:
    """The answer for a failure. The other server's own text is not passed on.

    `missing`: the text where that server says that there is no such thing. `refused`: what it does where it
    does not want to do what it was asked.
    """
    match error:
        case RequestRefused(status=404, errcode=errcode) if errcode not in WITHOUT_ANSWER:
            return NotFound(missing)
        case RequestRefused(status=403):
            return Forbidden(f"{error.destination} {refused}")
        case DestinationDenied():
            return Forbidden(f"this server is set up not to talk to {error.destination}: ask its admin")
        case BackingOff() | Unreachable():
            return BadGateway(f"{error.destination} cannot be reached now: try again later")
        case _:
            return unusable_answer(error.destination)


def may_pass(error: FederationError) -> bool:
    """Whether the other server may give later what it did not give now: it could not be asked, say."""
    match error:
        case BackingOff() | Unreachable():
            return True
        case RequestRefused(status=status):
            return status >= 500 or status == 429
        case _:
            return False


def unusable_answer(server_name: ServerName) -> BadGateway:
    """The error where another server has answered, but nothing can be made of it."""
    return BadGateway(f"{server_name} gave no answer that can be used")
