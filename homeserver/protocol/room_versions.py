"""One RoomVersion value per room version, saying only what it changes from its predecessor.

Source: "Room Versions" and the page of each version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from homeserver.protocol.errors import UnknownRoomVersion


class StateResolution(Enum):
    """The algorithms that merge the states of forks."""

    V2 = "2"
    V2_1 = "2.1"


@dataclass(frozen=True, eq=False)
class RoomVersion:
    """What differs between room versions. A path in a keep-list is the keys that lead to what stays."""

    version: str
    state_resolution: StateResolution
    redaction_keeps: frozenset[str]
    """Top-level keys of an event that survive its redaction."""
    redaction_keeps_content: Mapping[str, frozenset[tuple[str, ...]] | None]
    """For each event type the paths into content that survive; None keeps all of the content."""
    redacts_in_content: bool
    """m.room.redaction names its target in content.redacts, not at the top level."""
    creator_in_content: bool
    """m.room.create names the creator in content.creator; otherwise the creator is its sender."""
    knock_join_rules: frozenset[str]
    """The join rules under which a user may knock."""
    restricted_join_rules: frozenset[str]
    """The join rules under which an authorising user lets others join."""
    integer_power_levels: bool
    """Power levels are integers; otherwise strings that look like one are taken too."""
    room_id_is_create_hash: bool
    """The room ID is the create event's ID with another sigil; no event lists the create in auth_events."""
    privileged_creators: bool
    """Creators outrank every power level, and content.additional_creators names more of them."""
    renumbered_rules: Mapping[str, str]
    """The authorization rules that version 11 numbers otherwise: its number -> this version's; rules
    below a renumbered one follow it."""

    def rule(self, number: str) -> str:
        """The number, on this version's page, of the authorization rule that has `number` in version 11."""
        prefix = number
        while prefix:
            if prefix in self.renumbered_rules:
                return self.renumbered_rules[prefix] + number[len(prefix) :]
            prefix = prefix.rpartition(".")[0]
        return number


_V11: Final = RoomVersion(
    version="11",
    state_resolution=StateResolution.V2,
    redaction_keeps=frozenset(
        {
            "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures",
            "depth", "prev_events", "auth_events", "origin_server_ts",
        }
    ),
    redaction_keeps_content=MappingProxyType(
        {
            "m.room.create": None,
            "m.room.member": frozenset(
                {("membership",), ("join_authorised_via_users_server",), ("third_party_invite", "signed")}
            ),
            "m.room.join_rules": frozenset({("join_rule",), ("allow",)}),
            "m.room.power_levels": frozenset(
                {
                    ("ban",), ("events",), ("events_default",), ("invite",), ("kick",), ("redact",),
                    ("state_default",), ("users",), ("users_default",),
                }
            ),
            "m.room.history_visibility": frozenset({("history_visibility",)}),
            "m.room.redaction": frozenset({("redacts",)}),
        }
    ),
    redacts_in_content=True,
    creator_in_content=False,
    knock_join_rules=frozenset({"knock", "knock_restricted"}),
    restricted_join_rules=frozenset({"restricted", "knock_restricted"}),
    integer_power_levels=True,
    room_id_is_create_hash=False,
    privileged_creators=False,
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
            "2": "3", "2.5": "3.4", "3": "4", "4": "5", "5": "6", "6": "7", "7": "8", "8": "9",
            "9": "10", "9.4": "10.5", "9.5": "10.6", "9.6": "10.7", "9.7": "10.8", "9.8": "10.9",
            "9.9": "10.10", "10": "11",
        }
    ),
)  # fmt: skip

ROOM_VERSIONS: Final[Mapping[str, RoomVersion]] = MappingProxyType(
    {room_version.version: room_version for room_version in (_V11, _V12)}
)


def room_version(version: str) -> RoomVersion:
    """The room version of this name. Raises UnknownRoomVersion."""
    try:
        return ROOM_VERSIONS[version]
    except KeyError:
        raise UnknownRoomVersion(f"room version {version!r} is not supported") from None
