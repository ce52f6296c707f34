"""Which member events a device was given already, where it loads members lazily.

An event counts as given once the device comes back with the token of that response, or a later one: an
answer that got lost on its way is so made good by the next.
Source: Client-Server API, "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from homeserver.services.bounded_cache import BoundedCache

MAX_REMEMBERED: Final = 500_000
"""Of (device, room, member); a device of which this is not known any more gets member events again."""


class GivenMembers:
    """For each device and room: the members it was given, and the position of that response."""

    def __init__(self, budget: int = MAX_REMEMBERED) -> None:
        self._given: BoundedCache[tuple[int, int], dict[str, int]] = BoundedCache(budget)

    def missing(
        self, device_nid: int, room_nid: int, user_ids: Iterable[str], since: int | None
    ) -> list[str]:
        """Those of the users whose member events the device did not have at its token."""
        given = self._given.get((device_nid, room_nid))
        if given is None or since is None:
            return list(user_ids)
        return [user_id for user_id in user_ids if not given.get(user_id, since + 1) <= since]

    def give(
        self, device_nid: int, room_nid: int, user_ids: Iterable[str], upto: int, *, afresh: bool
    ) -> None:
        """Note what a response up to a position gives; `afresh`: nothing that was given before counts."""
        key = (device_nid, room_nid)
        given = {} if afresh else self._given.get(key) or {}
        for user_id in user_ids:
            given[user_id] = upto
        self._given.put(key, given, len(given) + 1)
