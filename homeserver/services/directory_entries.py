"""Entries of the published room directory: what rooms say of themselves.

Source: Client-Server API, "Published room directory".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import RoomId, parse_room_alias, parse_room_id
from homeserver.protocol.strict_json import JsonObject
from storage import current_state
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.published_rooms import PublishedRoom

MAX_REMEMBERED: Final = 10_000
MAX_REMEMBERED_CHARS: Final = 2000
"""An entry with longer texts is read each time."""

T = TypeVar("T")

Fingerprint: TypeAlias = tuple[int, ...]

_TYPES: Final = (
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
)


@dataclass(frozen=True)
class PublicRoom:
    """An entry of the directory, in the specification's names; what the room does not say is None."""

    room_id: RoomId
    num_joined_members: int
    world_readable: bool
    guest_can_join: bool
    name: str | None = None
    topic: str | None = None
    canonical_alias: str | None = None
    avatar_url: str | None = None
    join_rule: str | None = None
    room_type: str | None = None
    federates: bool = True
    """Whether users of other servers may be in the room; no part of what is told of it."""

    @property
    def chars(self) -> int:
        """How long its texts are."""
        return sum(len(text) for text in vars(self).values() if isinstance(text, str))

    @classmethod
    def of(cls, room_id: RoomId, joined_members: int, state: Mapping[str, JsonObject]) -> PublicRoom:
        """The entry of a room: of the contents of its state, by event type, of which anything may be odd."""

        def said(event_type: str, key: str) -> str | None:
            return _text(state.get(event_type, {}).get(key))

        return cls(
            room_id=room_id,
            num_joined_members=joined_members,
            world_readable=said("m.room.history_visibility", "history_visibility") == "world_readable",
            guest_can_join=said("m.room.guest_access", "guest_access") == "can_join",
            name=said("m.room.name", "name"),
            topic=plain_topic(state.get("m.room.topic", {})),
            canonical_alias=said("m.room.canonical_alias", "alias"),
            avatar_url=said("m.room.avatar", "url"),
            join_rule=said("m.room.join_rules", "join_rule"),
            room_type=said("m.room.create", "type"),
            federates=state.get("m.room.create", {}).get("m.federate") is not False,
        )

    @classmethod
    def parse(cls, entry: object) -> PublicRoom | None:
        """The entry that another server tells; None for what is none. A text that is odd is left out."""
        if not isinstance(entry, dict):
            return None
        room_id = _parsed(parse_room_id, entry.get("room_id"))
        joined_members = entry.get("num_joined_members")
        world_readable, guest_can_join = entry.get("world_readable"), entry.get("guest_can_join")
        if (
            room_id is None
            or type(joined_members) is not int
            or not 0 <= joined_members <= MAX_INTEGER
            or not isinstance(world_readable, bool)
            or not isinstance(guest_can_join, bool)
        ):
            return None
        return cls(
            room_id=room_id,
            num_joined_members=joined_members,
            world_readable=world_readable,
            guest_can_join=guest_can_join,
            canonical_alias=_parsed(parse_room_alias, entry.get("canonical_alias")),
            name=_text(entry.get("name")),
            topic=_text(entry.get("topic")),
            avatar_url=_text(entry.get("avatar_url")),
            join_rule=_text(entry.get("join_rule")),
            room_type=_text(entry.get("room_type")),
        )

    def to_json(self) -> JsonObject:
        """The entry as both APIs have it."""
        return {key: value for key, value in vars(self).items() if value is not None and key != "federates"}


@dataclass(frozen=True)
class DirectoryEntries:
    """Reads entries; those of rooms that still have the same state come from memory."""

    database: Database
    dictionaries: Dictionaries
    _remembered: OrderedDict[int, tuple[Fingerprint, PublicRoom]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    async def of(self, rooms: Sequence[PublishedRoom]) -> list[PublicRoom]:
        """The entries of rooms, in their order."""
        types = await self.dictionaries.event_types.find_nids(_TYPES)
        no_state_key = await self.dictionaries.atoms.nid("")
        async with self.database.connection() as tx:
            nids = [room.room_nid for room in rooms]
            fingerprints = await current_state.fingerprints(tx, nids, types.values(), no_state_key)
            entries = {nid: known for nid in nids if (known := self._known(nid, fingerprints.get(nid, ())))}
            missing = [nid for nid in nids if nid not in entries]
            events = await current_state.events(tx, missing, types.values(), no_state_key) if missing else {}
        for room in rooms:
            nid = room.room_nid
            if nid not in entries:
                by_type_nid = events.get(nid, {})
                state = {name: by_type_nid[n].content for name, n in types.items() if n in by_type_nid}
                entries[nid] = PublicRoom.of(room.room_id, room.joined_members, state)
                self._remember(nid, fingerprints.get(nid, ()), entries[nid])
        return [replace(entries[room.room_nid], num_joined_members=room.joined_members) for room in rooms]

    def _known(self, room_nid: int, fingerprint: Fingerprint) -> PublicRoom | None:
        known = self._remembered.get(room_nid)
        if known is None or known[0] != fingerprint:
            return None
        self._remembered.move_to_end(room_nid)
        return known[1]

    def _remember(self, room_nid: int, fingerprint: Fingerprint, entry: PublicRoom) -> None:
        self._remembered.pop(room_nid, None)
        if entry.chars <= MAX_REMEMBERED_CHARS:
            self._remembered[room_nid] = (fingerprint, entry)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def plain_topic(content: JsonObject) -> str | None:
    """A topic as plain text: its text/plain representation, or else the old `topic`.

    Source: Client-Server API, "m.room.topic".
    """
    block = content.get("m.topic")
    texts = block.get("m.text") if isinstance(block, dict) else None
    for text in texts if isinstance(texts, list) else ():
        if isinstance(text, dict) and text.get("mimetype", "text/plain") == "text/plain":
            body = _text(text.get("body"))
            if body is not None:
                return body
    return _text(content.get("topic"))


def _parsed(parse: Callable[[str], T], value: Any) -> T | None:
    """The identifier that a text is, if it is one."""
    try:
        return parse(value) if isinstance(value, str) else None
    except InvalidIdentifier:
        return None


def _text(value: Any) -> str | None:
    """A text that says something."""
    return value if isinstance(value, str) and value else None
