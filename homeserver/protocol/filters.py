"""Filters: which rooms and events a client wants to see.

Source: Client-Server API, "Filtering".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from homeserver.protocol.errors import BadJson, InvalidIdentifier
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId, UserId, parse_room_id, parse_user_id
from homeserver.protocol.strict_json import JsonObject

T = TypeVar("T")

MAX_ENTRIES: Final = 1000
"""The longest list in a filter."""


class FilteredEvent(Protocol):
    """What a filter looks at in an event."""

    @property
    def type(self) -> str:
        """The event's type."""

    @property
    def sender(self) -> UserId:
        """Who sent it."""

    @property
    def content(self) -> JsonObject:
        """Its content."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a client wants; None allows all, an empty list nothing. A `not_` list goes before."""

    limit: int | None = None
    types: Sequence[str] | None = None
    not_types: Sequence[str] = ()
    senders: Sequence[UserId] | None = None
    not_senders: Sequence[UserId] = ()
    rooms: Sequence[RoomId] | None = None
    not_rooms: Sequence[RoomId] = ()
    contains_url: bool | None = None
    rel_types: Sequence[str] | None = None
    not_rel_types: Sequence[str] = ()
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    _types: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)
    _not_types: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.types is not None:
            object.__setattr__(self, "_types", _pattern(self.types))
        if self.not_types:
            object.__setattr__(self, "_not_types", _pattern(self.not_types))

    @property
    def allows_all(self) -> bool:
        """Whether every event passes, of whatever room."""
        return (
            self.types is None
            and self.senders is None
            and self.rooms is None
            and self.contains_url is None
            and self.rel_types is None
            and not (self.not_types or self.not_senders or self.not_rooms or self.not_rel_types)
        )

    def allows_type(self, event_type: str) -> bool:
        """Whether events of this type pass, as far as their type goes."""
        if self._not_types is not None and self._not_types.match(event_type):
            return False
        return self._types is None or self._types.match(event_type) is not None

    def allows_room(self, room_id: RoomId) -> bool:
        """Whether events of this room pass, as far as their room goes."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def allows(self, event: Pdu) -> bool:
        """Whether an event passes."""
        return self.allows_room(event.room_id) and self.allows_in_room(event)

    def allows_in_room(self, event: FilteredEvent) -> bool:
        """Whether an event passes, as far as all but its room goes."""
        if not self.allows_type(event.type):
            return False
        if event.sender in self.not_senders or (
            self.senders is not None and event.sender not in self.senders
        ):
            return False
        if self.contains_url is not None and isinstance(event.content.get("url"), str) != self.contains_url:
            return False
        if self.rel_types is not None or self.not_rel_types:
            relates_to = event.content.get("m.relates_to")
            rel_type = relates_to.get("rel_type") if isinstance(relates_to, dict) else None
            if rel_type in self.not_rel_types or (
                self.rel_types is not None and rel_type not in self.rel_types
            ):
                return False
        return True


@dataclass(frozen=True, slots=True)
class RoomFilter:
    """Which rooms a client wants, and what of them."""

    rooms: Sequence[RoomId] | None = None
    not_rooms: Sequence[RoomId] = ()
    include_leave: bool = False
    timeline: EventFilter = EventFilter()
    state: EventFilter = EventFilter()
    ephemeral: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()

    def allows_room(self, room_id: RoomId) -> bool:
        """Whether anything of a room is wanted."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a client wants of a /sync response."""

    room: RoomFilter = RoomFilter()
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    event_fields: Sequence[str] | None = None
    event_format: str = "client"


def parse_filter(value: Any) -> Filter:
    """The filter of a JSON value; keys that are not known are ignored. Raises BadJson."""
    read = _Reader(value, "filter")
    event_format = read.text("event_format", "client")
    if event_format not in ("client", "federation"):
        raise BadJson("filter.event_format is client or federation")
    return Filter(
        room=_room_filter(read.inner("room")),
        presence=_event_filter(read.inner("presence")),
        account_data=_event_filter(read.inner("account_data")),
        event_fields=read.texts("event_fields", str),
        event_format=event_format,
    )


def parse_event_filter(value: Any) -> EventFilter:
    """The filter of events that /messages and /context take. Raises BadJson."""
    return _event_filter(_Reader(value, "filter"))


def _room_filter(read: _Reader) -> RoomFilter:
    return RoomFilter(
        rooms=read.texts("rooms", parse_room_id),
        not_rooms=read.texts("not_rooms", parse_room_id) or (),
        include_leave=read.truth("include_leave") or False,
        timeline=_event_filter(read.inner("timeline")),
        state=_event_filter(read.inner("state")),
        ephemeral=_event_filter(read.inner("ephemeral")),
        account_data=_event_filter(read.inner("account_data")),
    )


def _event_filter(read: _Reader) -> EventFilter:
    rel_types = read.texts("rel_types", str)
    unstable = "org.matrix.msc3874."
    return EventFilter(
        limit=read.limit(),
        types=read.texts("types", str),
        not_types=read.texts("not_types", str) or (),
        senders=read.texts("senders", parse_user_id),
        not_senders=read.texts("not_senders", parse_user_id) or (),
        rooms=read.texts("rooms", parse_room_id),
        not_rooms=read.texts("not_rooms", parse_room_id) or (),
        contains_url=read.truth("contains_url"),
        rel_types=rel_types if rel_types is not None else read.texts(f"{unstable}rel_types", str),
        not_rel_types=read.texts("not_rel_types", str) or read.texts(f"{unstable}not_rel_types", str) or (),
        lazy_load_members=read.truth("lazy_load_members") or False,
        include_redundant_members=read.truth("include_redundant_members") or False,
    )


class _Reader:
    """Reads the keys of a JSON object, each with its type."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BadJson(f"{where} must be an object")
        self._value: Mapping[str, Any] = value
        self._where = where

    def inner(self, key: str) -> _Reader:
        return _Reader(self._value.get(key, {}), f"{self._where}.{key}")

    def text(self, key: str, default: str) -> str:
        text = self._value.get(key, default)
        if not isinstance(text, str):
            raise BadJson(f"{self._where}.{key} must be a string")
        return text

    def truth(self, key: str) -> bool | None:
        truth = self._value.get(key)
        if truth is not None and not isinstance(truth, bool):
            raise BadJson(f"{self._where}.{key} must be a boolean")
        return truth

    def limit(self) -> int | None:
        limit = self._value.get("limit")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise BadJson(f"{self._where}.limit must be an integer of at least 0")
        return limit

    def texts(self, key: str, parse: Callable[[str], T]) -> Sequence[T] | None:
        texts = self._value.get(key)
        if texts is None:
            return None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadJson(f"{self._where}.{key} must be a list of strings")
        if len(texts) > MAX_ENTRIES:
            raise BadJson(f"{self._where}.{key} has more than {MAX_ENTRIES} entries")
        try:
            return tuple(parse(text) for text in texts)
        except InvalidIdentifier as error:
            raise BadJson(f"{self._where}.{key}: {error}") from None


_NOTHING: Final = "(?!)"


def _pattern(types: Sequence[str]) -> re.Pattern[str]:
    """Matches what one of these types matches, in which `*` stands for any text; in linear time."""
    return re.compile("|".join(map(_glob, types)) if types else _NOTHING, re.DOTALL)


def _glob(text: str) -> str:
    """A pattern for one type: between two `*` the first place that fits is taken and kept."""
    first, *others = map(re.escape, text.split("*"))
    if not others:
        return rf"{first}\Z"
    *inner, last = others
    kept = "".join(f"(?>.*?{part})" for part in inner if part)
    return rf"{first}{kept}.*{last}\Z"
