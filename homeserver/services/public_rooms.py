"""The published room directory: listing and searching it.

Source: Client-Server API, "Published room directory".
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.errors import InvalidParam
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.directory_entries import DirectoryEntries, PublicRoom
from storage import published_rooms
from storage.database import Database
from storage.published_rooms import PublishedRoom

MAX_ROOMS: Final = 100
"""How many rooms one answer has at most, and where the request names no number."""
SEARCHED_AT_ONCE: Final = 200
"""How many rooms a search loads at a time."""

_TOKEN: Final = re.compile(r"([np])([0-9]{1,18})_([0-9]{1,18})\Z")


@dataclass(frozen=True)
class DirectoryQuery:
    """What someone asks the directory for. `limit` 0 stands for as many as there may be."""

    limit: int = 0
    since: str | None = None
    search_term: str | None = None
    room_types: Sequence[str | None] | None = None
    third_party_network: str | None = None
    """Only the rooms of a network that an application service bridges to."""
    all_networks: bool = False
    """Also the rooms of all such networks."""
    over_federation: bool = False
    """Only rooms in which users of other servers may be."""

    def __post_init__(self) -> None:
        """Raises InvalidParam for one network and all of them."""
        if self.all_networks and self.third_party_network is not None:
            raise InvalidParam("third_party_instance_id is one network, include_all_networks is all of them")

    @property
    def most_rooms(self) -> int:
        """How many rooms the answer has at most."""
        return min(self.limit or MAX_ROOMS, MAX_ROOMS)

    @property
    def is_search(self) -> bool:
        """Whether not every room is asked for."""
        return bool(self.search_term) or self.room_types is not None

    def matches(self, room: PublicRoom) -> bool:
        """Whether a room is among those asked for."""
        if self.over_federation and not room.federates:
            return False
        if self.room_types is not None and room.room_type not in self.room_types:
            return False
        if not self.search_term:
            return True
        term = self.search_term.casefold()
        return any(text and term in text.casefold() for text in (room.name, room.topic, room.canonical_alias))


@dataclass(frozen=True)
class DirectoryPage:
    """A part of the directory. The tokens ask for the part after and before it; None where there is none."""

    rooms: Sequence[PublicRoom]
    next_batch: str | None = None
    prev_batch: str | None = None
    total_room_count_estimate: int | None = None

    def to_json(self) -> JsonObject:
        """The page as both APIs have it."""
        page = {
            "chunk": [room.to_json() for room in self.rooms],
            "next_batch": self.next_batch,
            "prev_batch": self.prev_batch,
            "total_room_count_estimate": self.total_room_count_estimate,
        }
        return {key: value for key, value in page.items() if value is not None}


@dataclass(frozen=True)
class _Token:
    """A place in the directory: before or after a room, which may be gone by now."""

    backwards: bool
    place: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> _Token:
        match = _TOKEN.match(text)
        if match is None:
            raise InvalidParam("since is no token of this directory")
        return cls(match[1] == "p", (-int(match[2]), int(match[3])))


@dataclass(frozen=True)
class PublicRooms:
    """Lists the published rooms, those with the most members first."""

    database: Database
    entries: DirectoryEntries

    async def page(self, query: DirectoryQuery) -> DirectoryPage:
        """A part of the directory of this server. Raises InvalidParam for a `since` that is no token."""
        token = None if query.since is None else _Token.parse(query.since)
        limit = query.most_rooms
        async with self.database.connection() as tx:
            rooms = await published_rooms.by_members(tx, ROOM_VERSIONS)
        if query.third_party_network is not None:
            return DirectoryPage([], total_room_count_estimate=len(rooms))
        found = await self._matching(_part(rooms, token), query, limit + 1)
        more, found = len(found) > limit, found[:limit]
        backwards = token is not None and token.backwards
        if backwards:
            found.reverse()
        has_next, has_previous = (True, more) if backwards else (more, token is not None)
        return DirectoryPage(
            [entry for _, entry in found],
            _format("n", found[-1][0]) if found and has_next else None,
            _format("p", found[0][0]) if found and has_previous else None,
            len(rooms),
        )

    async def _matching(
        self, rooms: Sequence[PublishedRoom], query: DirectoryQuery, wanted: int
    ) -> list[tuple[PublishedRoom, PublicRoom]]:
        """The first rooms that match, `wanted` of them or fewer."""
        at_once = SEARCHED_AT_ONCE if query.is_search else wanted
        found: list[tuple[PublishedRoom, PublicRoom]] = []
        for start in range(0, len(rooms), at_once):
            chunk = rooms[start : start + at_once]
            for room, entry in zip(chunk, await self.entries.of(chunk), strict=True):
                if query.matches(entry):
                    found.append((room, entry))
                    if len(found) == wanted:
                        return found
        return found


def _order(room: PublishedRoom) -> tuple[int, int]:
    return -room.joined_members, room.room_nid


def _part(rooms: list[PublishedRoom], token: _Token | None) -> Sequence[PublishedRoom]:
    """The rooms from a place on, in the direction of the token."""
    if token is None:
        return rooms
    if token.backwards:
        return rooms[: bisect_left(rooms, token.place, key=_order)][::-1]
    return rooms[bisect_right(rooms, token.place, key=_order) :]


def _format(direction: str, room: PublishedRoom) -> str:
    return f"{direction}{room.joined_members}_{room.room_nid}"
