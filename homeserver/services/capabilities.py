"""What this server lets a user do, of what is optional.

Source: Client-Server API, "Capabilities negotiation".
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.accounts import Accounts


@dataclass(frozen=True)
class Capabilities:
    """Tells clients what they need not try."""

    accounts: Accounts
    default_room_version: str

    async def of(self, requester: Requester) -> JsonObject:
        """The capabilities of a user, by their names. Who has no password cannot change it either."""
        user = await self.accounts.find(requester.user_id)
        return {
            "m.room_versions": {
                "default": self.default_room_version,
                "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
            },
            "m.change_password": {"enabled": user is not None and user.password_hash is not None},
            "m.profile_fields": {"enabled": True},
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": False},
            "m.forget_forced_upon_leave": {"enabled": False},
        }
