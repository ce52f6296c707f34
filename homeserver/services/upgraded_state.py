"""What an upgraded room hands down to the room that takes its place.

Source: Client-Server API, "Room Upgrades".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from homeserver.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from homeserver.protocol.canonical_json import check_canonical
from homeserver.protocol.errors import BadJson
from homeserver.protocol.events import EventDraft, Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomAlias, UserId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.canonical_aliases import CANONICAL_ALIAS
from homeserver.services.upgraded_power_levels import levels_of_new_room
from storage.room_heads import RoomRef

SPACE_CHILD: Final = "m.space.child"
SPACE_PARENT: Final = "m.space.parent"

COPIED: Final = (
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.history_visibility",
    "m.room.guest_access",
)
"""The types of events that say the same in both rooms."""

MENDED: Final = ("m.room.create", CANONICAL_ALIAS, "m.room.join_rules", "m.room.power_levels")
"""The types of events that say something else in the new room."""

LINKS: Final = (SPACE_CHILD, SPACE_PARENT)
"""The types of events with a room ID as state key."""

_OF_BAN: Final = ("reason", "displayname", "avatar_url")
_WEAKER_JOIN_RULES: Final = {"knock_restricted": ("restricted", "knock")}
"""What comes nearest to a join rule that a version does not know."""


@dataclass(frozen=True)
class OldRoom:
    """A room that is to be replaced, as far as it matters for the new one."""

    room: RoomRef
    seq: int
    """The room_seq of the event after which it was looked at."""
    state: Mapping[StateKey, Pdu]
    """Its events of the types above."""
    bans: Sequence[Pdu]
    aliases: Sequence[RoomAlias]
    """Those of this server that point to it."""
    newest: EventId | None
    """The newest event that clients may see."""

    @property
    def create(self) -> Pdu:
        """The event that made it."""
        return self.state[CREATE]


@dataclass(frozen=True)
class Upgrade:
    """What is to become of a room, and by whom."""

    upgrader: UserId
    version: RoomVersion
    additional_creators: Sequence[UserId]

    @property
    def creators(self) -> set[UserId]:
        """Who outranks everybody in the new room, if its version has such users."""
        return {self.upgrader, *self.additional_creators}

    def creation_content(self, create: Pdu, newest: EventId | None) -> JsonObject:
        """What the create event of the new room says of the old one, and of creators.

        `create`, `newest`: the create event of the old room, and its newest event that clients may see.
        """
        predecessor: JsonObject = {"room_id": create.room_id}
        if newest is not None and not self.version.room_id_is_create_hash:
            predecessor["event_id"] = newest
        content: JsonObject = {"predecessor": predecessor}
        if isinstance(create.content.get("type"), str):
            content["type"] = create.content["type"]
        if create.content.get("m.federate") is False:
            content["m.federate"] = False
        if self.version.privileged_creators and self.additional_creators:
            content["additional_creators"] = list(dict.fromkeys(self.additional_creators))
        return content

    def drafts(self, old: OldRoom) -> Iterator[EventDraft]:
        """The state of the new room beside its first two events, in an order in which they are allowed.

        The power levels come last: until then the creator may set everything, whatever level they give.
        """
        for event_type in COPIED:
            if (event := old.state.get((event_type, ""))) is not None:
                yield EventDraft(event_type, _canonical(event.content), "")
        if aliases := moving_aliases(old.state.get((CANONICAL_ALIAS, "")), old.aliases):
            yield EventDraft(CANONICAL_ALIAS, aliases, "")
        for link in self._links(old):
            yield EventDraft(link.type, _canonical(link.content), link.state_key)
        for ban in old.bans:
            said = {key: value for key, value in _canonical(ban.content).items() if key in _OF_BAN}
            yield EventDraft("m.room.member", {"membership": "ban", **said}, ban.state_key)
        if (join_rules := old.state.get(JOIN_RULES)) is not None:
            content = self._join_rules(old.room.version, _canonical(join_rules.content))
            yield EventDraft("m.room.join_rules", content, "")
        power_levels = levels_of_new_room(
            old.room.version, old.create, old.state.get(POWER_LEVELS), self.version, self.creators
        )
        yield EventDraft("m.room.power_levels", power_levels, "")

    def changes(self, before: OldRoom, now: OldRoom) -> list[EventDraft]:
        """What the new room gets besides, because the old one has changed; what that lost stays here."""
        known = {(draft.type, draft.state_key): draft for draft in self.drafts(before)}
        return [draft for draft in self.drafts(now) if known.get((draft.type, draft.state_key)) != draft]

    def _links(self, old: OldRoom) -> Iterator[Pdu]:
        """The links of a space to its rooms, the oldest first, as that is how they are shown; and to spaces.

        Whether a room belongs to a space is believed of some users only: nobody says it for another.
        """
        links = sorted(
            (event for event in old.state.values() if event.type in LINKS and event.content),
            key=lambda event: (event.origin_server_ts, event.state_key),
        )
        is_space = old.create.content.get("type") == "m.space"
        for link in links:
            if is_space if link.type == SPACE_CHILD else link.sender == self.upgrader:
                yield link

    def _join_rules(self, old: RoomVersion, content: JsonObject) -> JsonObject:
        """The same join rules; where only one of the versions knows them, such as let nobody else in."""
        rule = content.get("join_rule")
        known = self.version.knock_join_rules | self.version.restricted_join_rules
        known_before = old.knock_join_rules | old.restricted_join_rules
        if not isinstance(rule, str) or (rule in known) == (rule in known_before):
            return content
        weaker = [weaker for weaker in _WEAKER_JOIN_RULES.get(rule, ()) if weaker in known]
        return {**content, "join_rule": weaker[0] if weaker and rule in known_before else "invite"}


def _canonical(content: JsonObject) -> JsonObject:
    """What canonical JSON allows of a content: events of old versions may hold more, anywhere in them."""
    return {key: _pruned(value) for key, value in content.items() if _may_stand(value)}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return _canonical(value)
    if isinstance(value, list):
        return [_pruned(one) for one in value if _may_stand(one)]
    return value


def _may_stand(value: object) -> bool:
    """Whether canonical JSON allows a value, or may allow something of it."""
    if isinstance(value, (dict, list)):
        return True
    try:
        check_canonical({"": value})
    except BadJson:
        return False
    return True


def moving_aliases(event: Pdu | None, aliases: Sequence[str]) -> JsonObject:
    """The content of m.room.canonical_alias with nothing but those of the aliases that it names."""
    content = {} if event is None else event.content
    moving: JsonObject = {}
    if content.get("alias") in aliases:
        moving["alias"] = content["alias"]
    alternatives = content.get("alt_aliases")
    if isinstance(alternatives, list):
        moved = [alias for alias in alternatives if alias in aliases]
        if moved:
            moving["alt_aliases"] = moved
    return moving
