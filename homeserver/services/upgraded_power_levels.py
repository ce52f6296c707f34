"""Power levels when a room is upgraded: those of the new room, and those that silence the old one.

Source: Client-Server API, "Room Upgrades"; Room Version 12, "Room creators".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import is_user_id
from homeserver.protocol.power_levels import PowerLevels, creators_of, parse_level
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

TOMBSTONE: Final = "m.room.tombstone"
ADMIN_LEVEL: Final = 100
MODERATOR_LEVEL: Final = 50
TOMBSTONE_LEVEL: Final = 150
"""Where creators outrank everybody, no admin is to send the room elsewhere by default."""

_MAPS: Final = ("users", "events", "notifications")
"""The keys that hold levels by name; all others are levels themselves."""


def levels_of_new_room(
    old: RoomVersion,
    create: Pdu,
    power_levels: Pdu | None,
    new: RoomVersion,
    creators: Collection[str],
) -> JsonObject:
    """The power levels of the room that replaces one of version `old`, with these creators.

    Levels stay what they are, as far as they are any: the new version may be stricter than the old one.
    Creators who outrank everybody cannot be named. Those of the old room get the highest level that there is
    where the new version has no such creators.
    """
    content = {} if power_levels is None else _only_levels(old, power_levels.content)
    users = {user_id: level for user_id, level in content.get("users", {}).items() if is_user_id(user_id)}
    if power_levels is None and not old.privileged_creators:
        users = dict.fromkeys(filter(is_user_id, creators_of(old, create)), ADMIN_LEVEL)
    if old.privileged_creators and not new.privileged_creators:
        users |= dict.fromkeys(creators_of(old, create), _highest(content))
    if not new.privileged_creators:
        return {**content, "users": users}
    users = {user_id: level for user_id, level in users.items() if user_id not in creators}
    events = content.get("events", {})
    state_default = content.get("state_default", MODERATOR_LEVEL)
    level = events.get(TOMBSTONE, state_default)
    if level <= state_default or not old.privileged_creators:
        events = {**events, TOMBSTONE: min(max(TOMBSTONE_LEVEL, level, state_default + 1), MAX_INTEGER)}
    return {**content, "users": users, "events": events}


def levels_of_silenced_room(version: RoomVersion, create: Pdu, power_levels: Pdu | None) -> JsonObject | None:
    """Power levels that let ordinary users of a room neither speak nor invite; None where they cannot now."""
    levels = PowerLevels.of(version, create, power_levels)
    needed = min(max(MODERATOR_LEVEL, levels.users_default + 1), MAX_INTEGER)
    now = {"events_default": levels.events_default, "invite": levels.invite}
    raised = {key: needed for key, level in now.items() if level < needed}
    if not raised:
        return None
    if power_levels is not None:
        return {**power_levels.content, **_only_levels(version, power_levels.content), **raised}
    creators = () if version.privileged_creators else creators_of(version, create)
    return {"users": dict.fromkeys(creators, ADMIN_LEVEL), **raised}


def _only_levels(version: RoomVersion, content: JsonObject) -> dict[str, Any]:
    """What is a level in the content of a power levels event, as an integer."""
    maps = {key: _levels(version, content[key]) for key in _MAPS if isinstance(content.get(key), dict)}
    return maps | _levels(version, {key: value for key, value in content.items() if key not in _MAPS})


def _levels(version: RoomVersion, values: Mapping[str, object]) -> dict[str, int]:
    levels = ((name, parse_level(version, value)) for name, value in values.items())
    return {name: max(-MAX_INTEGER, min(level, MAX_INTEGER)) for name, level in levels if level is not None}


def _highest(content: Mapping[str, Any]) -> int:
    """The highest level that somebody has or that something takes; at least an admin's."""
    levels = [ADMIN_LEVEL]
    for key, value in content.items():
        levels += value.values() if key in _MAPS else [value]
    return max(levels)
