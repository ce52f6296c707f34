"""Filters that users save, to name them by an ID.

Source: Client-Server API, "Filtering".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from homeserver.errors import Forbidden, NotFound
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.filters import Filter, parse_filter
from homeserver.protocol.identifiers import UserId
from homeserver.protocol.strict_json import JsonObject, parse_json_object
from homeserver.protocol.unpadded_base64 import encode_url_safe_base64
from homeserver.services.access_tokens import Requester
from homeserver.services.clock import Clock
from storage import filters
from storage.database import Database

MAX_FILTERS: Final = 200
"""How many filters of a user are kept."""
MAX_REMEMBERED: Final = 1000

_ID_BYTES: Final = 16


@dataclass(frozen=True)
class Filters:
    """Saves filters and finds them again."""

    database: Database
    clock: Clock
    _parsed: OrderedDict[tuple[int, str], Filter] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    async def save(self, requester: Requester, user_id: UserId, content: JsonObject) -> str:
        """Store a filter of the requester's own and return its ID: the same for the same content.

        The filter that was saved longest ago makes room where there are too many. Raises Forbidden, and
        BadJson of the core for what is no filter.
        """
        _check_own(requester, user_id)
        parse_filter(content)
        json = canonical_json(content)
        filter_id = encode_url_safe_base64(sha256(json).digest()[:_ID_BYTES])
        async with self.database.transaction() as tx:
            await filters.save(tx, requester.user_nid, filter_id, json, self.clock())
            await filters.delete_oldest(tx, requester.user_nid, filter_id, MAX_FILTERS)
        return filter_id

    async def definition(self, requester: Requester, user_id: UserId, filter_id: str) -> JsonObject:
        """A filter of the requester's own, as it was saved. Raises Forbidden, NotFound."""
        _check_own(requester, user_id)
        json = await self._load(requester, filter_id)
        if json is None:
            raise NotFound("you have no filter of this ID")
        return parse_json_object(json)

    async def find(self, requester: Requester, filter_id: str) -> Filter | None:
        """The filter that an ID of the requester's stands for, ready for use; None for an unknown ID."""
        key = (requester.user_nid, filter_id)
        found = self._parsed.get(key)
        if found is not None:
            self._parsed.move_to_end(key)
            return found
        json = await self._load(requester, filter_id)
        if json is None:
            return None
        found = self._parsed[key] = parse_filter(parse_json_object(json))
        if len(self._parsed) > MAX_REMEMBERED:
            self._parsed.popitem(last=False)
        return found

    async def _load(self, requester: Requester, filter_id: str) -> bytes | None:
        async with self.database.connection() as tx:
            return await filters.load(tx, requester.user_nid, filter_id)


def _check_own(requester: Requester, user_id: UserId) -> None:
    if user_id != requester.user_id:
        raise Forbidden("these are another user's filters")
