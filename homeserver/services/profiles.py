"""Profiles of users.

Source: Client-Server API, "Profiles".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from homeserver.errors import InvalidParam, KeyTooLarge, NotFound
from homeserver.protocol.identifiers import UserId
from homeserver.protocol.strict_json import JsonObject
from storage import profiles
from storage.database import Database
from storage.dictionaries import Dictionaries

IN_MEMBER_EVENTS: Final = ("displayname", "avatar_url")
"""The fields that a user's member events repeat."""

MAX_KEY_BYTES: Final = 255

_KEY: Final = re.compile(r"[a-z][a-z0-9._\-]*\Z")


@dataclass(frozen=True)
class Profiles:
    """The profiles of local users."""

    database: Database
    dictionaries: Dictionaries

    async def of(self, user_id: UserId) -> JsonObject:
        """All fields of a profile that are set. Raises NotFound for a user who has no account here."""
        user_nid = await self.dictionaries.atoms.find_nid(user_id)
        profile = None
        if user_nid is not None:
            async with self.database.connection() as tx:
                profile = await profiles.read(tx, user_nid)
        if profile is None:
            raise NotFound(f"{user_id} has no profile here")
        return profile

    async def field(self, user_id: UserId, key: str) -> Any:
        """The value of a profile field: any JSON value.

        Raises NotFound for one that is not set, InvalidParam or KeyTooLarge for what cannot be a field.
        """
        check_key(key)
        profile = await self.of(user_id)
        if key not in profile:
            raise NotFound(f"{user_id} has no {key}")
        return profile[key]

    async def in_member_events(self, user_ids: Iterable[UserId]) -> dict[UserId, JsonObject]:
        """What member events of these users repeat of their profiles.

        A field that is not set, or set to an empty text, is left out.
        """
        user_ids = list(user_ids)
        nids = await self.dictionaries.atoms.find_nids(user_ids)
        async with self.database.connection() as tx:
            found = await profiles.read_fields(tx, nids.values(), IN_MEMBER_EVENTS)
        return {
            user_id: {key: value for key, value in found.get(nids.get(user_id, 0), {}).items() if value}
            for user_id in user_ids
        }


def check_key(key: str) -> None:
    """Raise KeyTooLarge or InvalidParam unless a text can be the name of a profile field.

    Source: Appendices, "Common Namespaced Identifier Grammar".
    """
    if len(key.encode()) > MAX_KEY_BYTES:
        raise KeyTooLarge(f"the name of a profile field has at most {MAX_KEY_BYTES} bytes")
    if not _KEY.match(key):
        raise InvalidParam("the name of a profile field has a-z first, then a-z, 0-9 and . _ - only")
