"""One RoomVersion value per room version, saying only what it changes from its predecessor.

Source: "Room Versions" and the page of each version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, TypeAlias

from homeserver.protocol.errors import UnknownRoomVersion

ContentPaths: TypeAlias = frozenset[tuple[str, ...]]
"""Paths into the content of an event: the keys that lead to what stays when it is redacted."""


class StateResolution(Enum):
    """The algorithms that merge the states of forks."""

    V1 = "1"
    V2 = "2"
    V2_1 = "2.1"


class EventIdFormat(Enum):
    """What event IDs are."""

    CHOSEN = "$opaque:server"
    """The sender's server chooses them: they stand in the event, and beside each reference stands a hash."""
    BASE64 = "$hash"
    """The reference hash in base64, with `+` and `/`; computed by everybody, and not in the event."""
    URL_SAFE_BASE64 = "$hash, URL-safe"


class LevelFormat(Enum):
    """What JSON values are power levels, besides integers."""

    FLOATS = "strings and floats"
    STRINGS = "strings"
    INTEGERS = "none"


@dataclass(frozen=True, eq=False)
class RoomVersion:
    """What differs between room versions."""

    version: str
    event_id_format: EventIdFormat
    strict_json: bool
    """Events are canonical JSON without exception: no floats, and no integers beyond 53 bits."""
    strict_byte_limits: bool
    """The limits of an event's texts count bytes; before, up to 255 code points were stored, and rejected."""
    enforces_key_validity: bool
    """Events are signed with keys that were valid at their origin_server_ts."""
    state_resolution: StateResolution
    redaction_keeps: frozenset[str]
    """Top-level keys of an event that survive its redaction."""
    redaction_keeps_content: Mapping[str, ContentPaths | None]
    """For each event type what of its content survives; None for all of it."""
    redacts_in_content: bool
    """m.room.redaction names its target in content.redacts, not at the top level."""
    redactions_need_power: bool
    """The authorization rules say who may redact; later whether a redaction takes effect is told apart."""
    aliases_of_servers: bool
    """m.room.aliases may be sent by every user of the server that its state key names."""
    creator_in_content: bool
    """m.room.create names the creator in content.creator; otherwise the creator is its sender."""
    knock_join_rules: frozenset[str]
    """The join rules under which a user may knock."""
    restricted_join_rules: frozenset[str]
    """The join rules under which an authorising user lets others join."""
    level_format: LevelFormat
    guards_notifications: bool
    """Power levels of content.notifications are guarded like those of content.events."""
    room_id_is_create_hash: bool
    """The room ID is the create event's ID with another sigil; no event lists the create in auth_events."""
    privileged_creators: bool
    """Creators outrank every power level, and content.additional_creators names more of them."""
    renumbered_rules: Mapping[str, str]
    """The authorization rules that version 11 numbers otherwise: its number -> this version's; rules
    below a renumbered one follow it."""

    @property
    def has_chosen_event_ids(self) -> bool:
        """Whether events carry their IDs, and a hash beside each event that they refer to."""
        return self.event_id_format is EventIdFormat.CHOSEN

    def rule(self, number: str) -> str:
        """The number, on this version's page, of the authorization rule that has `number` in version 11."""
        return _renumbered(self, number)


@lru_cache(maxsize=2048)  # a number is told of every event that is checked
def _renumbered(version: RoomVersion, number: str) -> str:
    prefix = number
    while prefix:
        if prefix in version.renumbered_rules:
            return version.renumbered_rules[prefix] + number[len(prefix) :]
        prefix = prefix.rpartition(".")[0]
    return number


def _paths(*keys: str) -> ContentPaths:
    return frozenset((key,) for key in keys)


def _keeping_more(
    version: RoomVersion, more: Mapping[str, ContentPaths]
) -> Mapping[str, ContentPaths | None]:
    """The keep-list of a version with more of some types."""
    kept = dict(version.redaction_keeps_content)
    for event_type, paths in more.items():
        kept[event_type] = (kept.get(event_type) or frozenset()) | paths
    return MappingProxyType(kept)


_CREATE_RULES: Final = {"1.4": "1.5"}
"""In every version but 11 there is one more rule on m.room.create."""
_POWER_LEVEL_RULES: Final = {
    "9.3": "9.1", "9.4": "9.2", "9.5": "9.3", "9.6": "9.4", "9.7": "9.5", "9.8": "9.6", "9.9": "9.7",
    "9.10": "9.8",
}  # fmt: skip
"""Up to version 9 there is no rule on the other properties of m.room.power_levels."""
_MEMBER_RULES: Final = {
    "4.3": "4.2", "4.3.6": "4.2.5", "4.3.7": "4.2.6", "4.4": "4.3", "4.5": "4.4", "4.6": "4.5", "4.7": "4.6",
}  # fmt: skip
"""Up to version 7 there are no restricted joins, ..."""
_WITH_ALIASES: Final = MappingProxyType(
    {
        **_CREATE_RULES,
        "4": "5", "4.3": "5.2", "4.3.6": "5.2.5", "4.3.7": "5.2.6", "4.4": "5.3", "4.5": "5.4", "4.6": "5.5",
        "4.8": "5.6", "5": "6", "6": "7", "7": "8", "8": "9", "9": "10", "9.3": "10.1", "9.4": "10.2",
        "9.5": "10.3", "9.6": "10.4", "9.7": "10.5", "9.8": "10.6", "9.9": "10.7", "9.10": "10.8", "10": "11",
    }
)  # fmt: skip
"""... and up to version 5 rule 4 is that on m.room.aliases."""

_V1: Final = RoomVersion(
    version="1",
    event_id_format=EventIdFormat.CHOSEN,
    strict_json=False,
    strict_byte_limits=False,
    enforces_key_validity=False,
    state_resolution=StateResolution.V1,
    redaction_keeps=frozenset(
        {
            "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
            "prev_events", "prev_state", "auth_events", "origin", "origin_server_ts", "membership",
        }
    ),
    redaction_keeps_content=MappingProxyType(
        {
            "m.room.member": _paths("membership"),
            "m.room.create": _paths("creator"),
            "m.room.join_rules": _paths("join_rule"),
            "m.room.power_levels": _paths(
                "ban", "events", "events_default", "kick", "redact", "state_default", "users",
                "users_default",
            ),
            "m.room.aliases": _paths("aliases"),
            "m.room.history_visibility": _paths("history_visibility"),
        }
    ),
    redacts_in_content=False,
    redactions_need_power=True,
    aliases_of_servers=True,
    creator_in_content=True,
    knock_join_rules=frozenset(),
    restricted_join_rules=frozenset(),
    level_format=LevelFormat.FLOATS,
    guards_notifications=False,
    room_id_is_create_hash=False,
    privileged_creators=False,
    renumbered_rules=MappingProxyType({**_WITH_ALIASES, "10": "12"}),
)  # fmt: skip

_V2: Final = replace(_V1, version="2", state_resolution=StateResolution.V2)

_V3: Final = replace(
    _V2,
    version="3",
    event_id_format=EventIdFormat.BASE64,
    redactions_need_power=False,
    renumbered_rules=_WITH_ALIASES,
)

_V4: Final = replace(_V3, version="4", event_id_format=EventIdFormat.URL_SAFE_BASE64)

_V5: Final = replace(_V4, version="5", enforces_key_validity=True)

_V6: Final = replace(
    _V5,
    version="6",
    strict_json=True,
    redaction_keeps_content=MappingProxyType(
        {key: kept for key, kept in _V5.redaction_keeps_content.items() if key != "m.room.aliases"}
    ),
    aliases_of_servers=False,
    level_format=LevelFormat.STRINGS,
    guards_notifications=True,
    renumbered_rules=MappingProxyType({**_CREATE_RULES, **_POWER_LEVEL_RULES, **_MEMBER_RULES, "4.8": "4.6"}),
)

_V7: Final = replace(
    _V6,
    version="7",
    knock_join_rules=frozenset({"knock"}),
    renumbered_rules=MappingProxyType({**_CREATE_RULES, **_POWER_LEVEL_RULES, **_MEMBER_RULES, "4.8": "4.7"}),
)

_V8: Final = replace(
    _V7,
    version="8",
    redaction_keeps_content=_keeping_more(_V7, {"m.room.join_rules": _paths("allow")}),
    restricted_join_rules=frozenset({"restricted"}),
    renumbered_rules=MappingProxyType({**_CREATE_RULES, **_POWER_LEVEL_RULES}),
)

_V9: Final = replace(
    _V8,
    version="9",
    redaction_keeps_content=_keeping_more(_V8, {"m.room.member": _paths("join_authorised_via_users_server")}),
)

_V10: Final = replace(
    _V9,
    version="10",
    knock_join_rules=frozenset({"knock", "knock_restricted"}),
    restricted_join_rules=frozenset({"restricted", "knock_restricted"}),
    level_format=LevelFormat.INTEGERS,
    renumbered_rules=MappingProxyType(_CREATE_RULES),
)

_V11: Final = replace(
    _V10,
    version="11",
    strict_byte_limits=True,
    redaction_keeps=_V10.redaction_keeps - {"prev_state", "origin", "membership"},
    redaction_keeps_content=MappingProxyType(
        {
            **_keeping_more(
                _V10,
                {
                    "m.room.member": frozenset({("third_party_invite", "signed")}),
                    "m.room.power_levels": _paths("invite"),
                    "m.room.redaction": _paths("redacts"),
                },
            ),
            "m.room.create": None,
        }
    ),
    redacts_in_content=True,
    creator_in_content=False,
    renumbered_rules=MappingProxyType({}),
)  # fmt: skip

_V12: Final = replace(
    _V11,
    version="12",
    state_resolution=StateResolution.V2_1,
    room_id_is_create_hash=True,
    privileged_creators=True,
    renumbered_rules=MappingProxyType(
        {
            **_CREATE_RULES,
            "2": "3", "2.5": "3.4", "3": "4", "4": "5", "5": "6", "6": "7", "7": "8", "8": "9",
            "9": "10", "9.4": "10.5", "9.5": "10.6", "9.6": "10.7", "9.7": "10.8", "9.8": "10.9",
            "9.9": "10.10", "9.10": "10.11", "10": "11",
        }
    ),
)  # fmt: skip

ROOM_VERSIONS: Final[Mapping[str, RoomVersion]] = MappingProxyType(
    {
        room_version.version: room_version
        for room_version in (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9, _V10, _V11, _V12)
    }
)


def room_version(version: str) -> RoomVersion:
    """The room version of this name. Raises UnknownRoomVersion."""
    try:
        return ROOM_VERSIONS[version]
    except KeyError:
        raise UnknownRoomVersion(f"room version {version!r} is not supported") from None
