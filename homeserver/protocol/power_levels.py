"""Power levels: what a user may do, and who may change that.

Source: "Authorization rules" of each room version, rule 9 (numbers are those of version 11);
Client-Server API, "m.room.power_levels"; Server-Server API, "Definitions".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.errors import InvalidContent, NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import is_user_id
from homeserver.protocol.room_versions import ROOM_VERSIONS, LevelFormat, RoomVersion
from homeserver.protocol.strict_json import JsonObject, MinusZero

CREATOR_LEVEL: Final = 2**53
"""The level of privileged creators: above the greatest integer that an event can hold."""

_TOP_LEVEL_KEYS: Final = (
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "redact",
    "kick",
    "invite",
)
_LEVEL_IN_A_STRING = re.compile(r"[+-]?[0-9]{1,4000}\Z")  # int() takes no more than 4300 digits


class PowerLevels:
    """The power levels of a room, each read from the event when it is asked for.

    A level that is missing, or malformed in an event that its version's rules let pass, has its default.
    """

    __slots__ = ("_content", "_create", "_version")

    def __init__(self, version: RoomVersion, create: Pdu, content: JsonObject | None) -> None:
        self._version = version
        self._create = create
        self._content = content

    @classmethod
    def of(cls, version: RoomVersion, create: Pdu, power_levels: Pdu | None) -> PowerLevels:
        """The levels that an m.room.power_levels event sets, or those of a room without one."""
        return cls(version, create, None if power_levels is None else power_levels.content)

    def user_level(self, user_id: str) -> int:
        """The power level of a user; CREATOR_LEVEL for a creator who outranks all others."""
        if self._version.privileged_creators and is_creator(self._version, self._create, user_id):
            return CREATOR_LEVEL
        if self._content is None:
            return 100 if is_creator(self._version, self._create, user_id) else 0
        users = self._content.get("users")
        if isinstance(users, dict) and user_id in users:
            level = parse_level(self._version, users[user_id])
            if level is not None:
                return level
        return self.users_default

    def level_for_event(self, event_type: str, is_state: bool) -> int:
        """The level required to send an event of this type."""
        if self._content is not None:
            events = self._content.get("events")
            if isinstance(events, dict) and event_type in events:
                level = parse_level(self._version, events[event_type])
                if level is not None:
                    return level
        return self.state_default if is_state else self.events_default

    @property
    def users_default(self) -> int:
        """The level of a user whom the event does not name."""
        return self._level("users_default", 0)

    @property
    def events_default(self) -> int:
        """The level required for a message event whose type is not named."""
        return self._level("events_default", 0)

    @property
    def state_default(self) -> int:
        """The level required for a state event whose type is not named."""
        return self._level("state_default", 50)

    @property
    def ban(self) -> int:
        """The level required to ban a user."""
        return self._level("ban", 50)

    @property
    def kick(self) -> int:
        """The level required to remove a user."""
        return self._level("kick", 50)

    @property
    def redact(self) -> int:
        """The level required to redact an event of another server's user."""
        return self._level("redact", 50)

    @property
    def invite(self) -> int:
        """The level required to invite a user."""
        return self._level("invite", 0)

    def can_redact_others(self, user_id: str) -> bool:
        """Whether a user's redactions take effect also on events of users of other servers.

        Source: Room Version 3, "Handling redactions".
        """
        return self.user_level(user_id) >= self.redact

    def _level(self, key: str, default: int) -> int:
        if self._content is None or key not in self._content:
            return default
        level = parse_level(self._version, self._content[key])
        return default if level is None else level


def redacts_others(version: RoomVersion, redaction: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    """Whether a redaction takes effect also on events of users of other servers.

    `state`: that before it, of which the create event and the power levels count. Where the rules let through
    no redaction that does not, each of them takes effect.
    """
    if version.redactions_need_power:
        return True
    create = state.get(CREATE)
    if create is None:
        return False
    return PowerLevels.of(version, create, state.get(POWER_LEVELS)).can_redact_others(redaction.sender)


def creators_of(version: RoomVersion, create: Pdu) -> tuple[str, ...]:
    """The users who created a room: one up to version 11, and content.additional_creators from 12."""
    if version.creator_in_content:
        creator = create.content.get("creator")
        return (creator,) if isinstance(creator, str) else ()
    if version.privileged_creators:
        additional = create.content.get("additional_creators")
        if isinstance(additional, list):
            return (create.sender, *(user_id for user_id in additional if isinstance(user_id, str)))
    return (create.sender,)


def is_creator(version: RoomVersion, create: Pdu, user_id: str) -> bool:
    """Whether a user is one of those who created a room, who may be thousands."""
    if version.creator_in_content:
        return create.content.get("creator") == user_id
    additional = create.content.get("additional_creators") if version.privileged_creators else None
    return user_id == create.sender or (isinstance(additional, list) and user_id in additional)


def parse_level(version: RoomVersion, value: object) -> int | None:
    """The power level that a JSON value stands for in this version; None when it stands for none."""
    if type(value) is int:
        return value
    if version.level_format is LevelFormat.FLOATS and isinstance(value, (float, MinusZero)):
        return int(value)
    if version.level_format is LevelFormat.INTEGERS or not isinstance(value, str):
        return None
    text = value.strip()
    return int(text) if _LEVEL_IN_A_STRING.match(text) else None


def check_power_levels(version: RoomVersion, event: Pdu, create: Pdu, previous: Pdu | None) -> str:
    """Check the content of an m.room.power_levels event against the one it replaces.

    Returns the number of the rule that allows it. Raises NotAllowed: InvalidContent where no sender could set
    such levels.
    """
    old = {} if previous is None else previous.content
    _check_level_types(version, event.content, old)
    if version.privileged_creators:
        named = event.content.get("users", {}).keys() & creators_of(version, create)
        if named:
            raise InvalidContent("10.4", f"users names {min(named)}, a creator of the room")
    if previous is None:
        return version.rule("9.4")
    sender_level = PowerLevels.of(version, create, previous).user_level(event.sender)
    _check_level_changes(version, event, old, sender_level)
    return version.rule("9.10")


def check_sent_power_levels(content: JsonObject) -> None:
    """Check the content of an m.room.power_levels event that a user of ours wants to send.

    Old room versions take levels that are no such integers, but nobody is to send these any more. Raises
    InvalidContent. Source: Room Version 1, "Deprecated event content schemas".
    """
    _check_level_types(ROOM_VERSIONS["10"], content, {})
    levels = {key: content[key] for key in _TOP_LEVEL_KEYS if key in content}
    for named in (levels, *(content.get(key, {}) for key in ("events", "notifications", "users"))):
        for name, level in named.items():
            if not -MAX_INTEGER <= level <= MAX_INTEGER:
                raise InvalidContent("9.1", f"the level of {name!r:.100} is beyond 53 bits")


def _check_level_types(version: RoomVersion, content: JsonObject, old: JsonObject) -> None:
    if version.level_format is LevelFormat.INTEGERS:
        for key in _TOP_LEVEL_KEYS:
            if key in content and parse_level(version, content[key]) is None:
                raise InvalidContent(version.rule("9.1"), f"{key} is {content[key]!r:.100}, not an integer")
        for key in ("events", "notifications"):
            _check_levels(version, version.rule("9.2"), key, content)
    _check_levels(version, version.rule("9.3"), "users", content)
    checked_before = _levels(version, old.get("users"))  # as part of an event that was allowed
    for user_id in content.get("users", {}):
        if user_id not in checked_before and not is_user_id(user_id):
            raise InvalidContent(version.rule("9.3"), f"users names {user_id!r:.100}, which is not a user ID")


def _check_levels(version: RoomVersion, rule: str, key: str, content: JsonObject) -> None:
    """Check that a key of content, if it is there, is an object whose values are power levels."""
    levels = content.get(key, {})
    if not isinstance(levels, dict):
        raise InvalidContent(rule, f"{key} is not an object")
    for name, level in levels.items():
        if parse_level(version, level) is None:
            raise InvalidContent(rule, f"{key} gives {name!r:.100} the level {level!r:.100}, not an integer")


def _check_level_changes(version: RoomVersion, event: Pdu, old: JsonObject, sender_level: int) -> None:
    current = _levels(version, {key: old[key] for key in _TOP_LEVEL_KEYS if key in old})
    new = _levels(version, {key: event.content[key] for key in _TOP_LEVEL_KEYS if key in event.content})
    _check_taken(version.rule("9.5.1"), "the level", current, new, sender_level)
    _check_given(version.rule("9.5.2"), "the level", current, new, sender_level)

    for key in ("events", "notifications") if version.guards_notifications else ("events",):
        current, new = _levels(version, old.get(key)), _levels(version, event.content.get(key))
        _check_taken(version.rule("9.6.1"), key, current, new, sender_level)
        _check_given(version.rule("9.7.1"), key, current, new, sender_level)

    current, new = _levels(version, old.get("users")), _levels(version, event.content.get("users"))
    for user_id, level in current.items():
        if level >= sender_level and user_id != event.sender and new.get(user_id) != level:
            raise NotAllowed(
                version.rule("9.8.1"), f"users of {user_id} is {level}, not below the sender's {sender_level}"
            )
    _check_given(version.rule("9.9.1"), "users", current, new, sender_level)


def _check_taken(
    rule: str, where: str, current: Mapping[str, int], new: Mapping[str, int], limit: int
) -> None:
    """Refuse to change or remove a level above the limit."""
    for name, level in current.items():
        if level > limit and new.get(name) != level:
            raise NotAllowed(rule, f"{where} of {name!r:.100} is {level}, and the sender has {limit}")


def _check_given(
    rule: str, where: str, current: Mapping[str, int], new: Mapping[str, int], limit: int
) -> None:
    """Refuse to add a level above the limit, or to change one to it."""
    for name, level in new.items():
        if level > limit and current.get(name) != level:
            raise NotAllowed(rule, f"{where} of {name!r:.100} would be {level}, and the sender has {limit}")


def _levels(version: RoomVersion, value: Any) -> dict[str, int]:
    """The well-formed levels in a value that should be an object of levels."""
    if not isinstance(value, dict):
        return {}
    levels = ((name, parse_level(version, level)) for name, level in value.items())
    return {name: level for name, level in levels if level is not None}
