"""What requests that begin a session have in common, and what their answers tell of it.

Source: Client-Server API, "Relationship between access tokens and devices".
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from homeserver.http.models import Body, Reply
from homeserver.protocol.identifiers import DeviceId, ServerName, UserId, server_name_of
from homeserver.services.sessions import IssuedTokens, NewSession

MAX_DEVICE_ID_CHARS: Final = 255
MAX_DISPLAY_NAME_CHARS: Final = 255


class SessionFields(Body):
    """The device that a session is for, and whether its client refreshes tokens; an empty ID is none."""

    device_id: Annotated[str, Field(max_length=MAX_DEVICE_ID_CHARS)] | None = None
    initial_device_display_name: Annotated[str, Field(max_length=MAX_DISPLAY_NAME_CHARS)] | None = None
    refresh_token: bool | None = None

    def new_session(self, address: str) -> NewSession:
        """The session that is asked for, from an IP address."""
        return NewSession(
            device_id=DeviceId(self.device_id) if self.device_id else None,
            display_name=self.initial_device_display_name,
            wants_refresh_token=bool(self.refresh_token),
            address=address or None,
        )


class HomeserverUrl(Reply):
    """Where the Client-Server API is."""

    base_url: str


class Discovery(Reply):
    """What clients have to know to find the server."""

    homeserver: HomeserverUrl = Field(alias="m.homeserver")


class SessionReply(Reply):
    """A user, and the tokens of a session unless the request wanted none."""

    user_id: UserId
    home_server: ServerName
    access_token: str | None = None
    device_id: DeviceId | None = None
    refresh_token: str | None = None
    expires_in_ms: int | None = None
    well_known: Discovery | None = None

    @classmethod
    def of(cls, issued: IssuedTokens, public_base_url: str | None = None) -> SessionReply:
        """The answer for new tokens, with where the server is if that is known."""
        return cls(
            user_id=issued.user_id,
            home_server=server_name_of(issued.user_id),
            access_token=issued.access_token,
            device_id=issued.device_id,
            refresh_token=issued.refresh_token,
            expires_in_ms=issued.expires_in_ms,
            well_known=well_known(public_base_url),
        )


def well_known(public_base_url: str | None) -> Discovery | None:
    """The discovery information of clients; None where the operator has not said where the server is.

    Source: Client-Server API, "Server Discovery".
    """
    if public_base_url is None:
        return None
    return Discovery(homeserver=HomeserverUrl(base_url=public_base_url))
