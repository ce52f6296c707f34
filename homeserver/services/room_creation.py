"""Making rooms: one decision, which makes all of a room or nothing.

Source: Client-Server API, "Creation".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from homeserver.errors import (
    BadRequest,
    Forbidden,
    InvalidParam,
    InvalidRoomState,
    RoomInUse,
    UnsupportedRoomVersion,
)
from homeserver.protocol.errors import InvalidIdentifier, NotAllowed, ProtocolError, UnknownRoomVersion
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import (
    RoomAlias,
    RoomId,
    ServerName,
    UserId,
    is_user_id,
    parse_room_alias,
    server_name_of,
)
from homeserver.protocol.power_levels import creators_of
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.canonical_aliases import check_aliases_of_new_room
from homeserver.services.event_building import as_answer
from homeserver.services.event_series import EventSeries
from homeserver.services.profiles import Profiles
from homeserver.services.remote_invites import RemoteInvites
from homeserver.services.state_changes import check_settable
from storage.decisions import AliasTaken
from storage.event_batch import NewRoom
from storage.persister import Persister
from storage.room_heads import RoomHead


@dataclass(frozen=True)
class Preset:
    """What a preset sets."""

    join_rule: str
    guest_access: str
    invite_level: int
    invitees_are_equals: bool = False


PRESETS: Final[Mapping[str, Preset]] = {
    "private_chat": Preset("invite", "can_join", 0),
    "trusted_private_chat": Preset("invite", "can_join", 0, invitees_are_equals=True),
    "public_chat": Preset("public", "forbidden", 50),
}

MAX_INVITES: Final = 100
MAX_INITIAL_STATE: Final = 1000


@dataclass(frozen=True)
class InitialState:
    """An entry of initial_state."""

    type: str
    state_key: str
    content: JsonObject


@dataclass(frozen=True)
class RoomRequest:
    """What a client asks for in createRoom, in the specification's names."""

    preset: str | None = None
    visibility: str = "private"
    room_version: str | None = None
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: Sequence[UserId] = ()
    initial_state: Sequence[InitialState] = ()
    creation_content: JsonObject = field(default_factory=dict)
    power_level_content_override: JsonObject = field(default_factory=dict)
    is_direct: bool = False


def everybody_may(_requester: Requester) -> bool:
    """No configuration keeps anybody from listing rooms in the directory."""
    return True


@dataclass(frozen=True)
class RoomCreation:
    """Makes rooms for local users."""

    persister: Persister
    profiles: Profiles
    remote_invites: RemoteInvites
    server_name: ServerName
    default_version: str
    clock_ms: Callable[[], int]
    may_publish: Callable[[Requester], bool] = everybody_may
    """Whether someone may list rooms in the directory."""

    async def create(self, requester: Requester, request: RoomRequest) -> RoomId:
        """Make a room with all that was asked for, or none of it.

        Users of other servers are invited once the room is there; who cannot be invited is left out of it.
        Raises UnsupportedRoomVersion, InvalidParam, InvalidRoomState, RoomInUse, and Forbidden for an invite
        that the room's rules refuse, or a visibility that the configuration does.
        """
        version = self._version(request)
        alias = self._alias(request)
        published = request.visibility == "public"
        if published and not self.may_publish(requester):
            raise Forbidden("this server does not let you list rooms in its directory")
        self._check(version, requester.user_id, request, alias)
        profiles = await self.profiles.in_member_events([requester.user_id, *request.invite])
        drafts = _Drafts(self.server_name, version, requester.user_id, request, alias, profiles)
        room_ids: list[RoomId] = []

        def decide(head: RoomHead) -> list[Pdu]:
            pdus = _build_room(head, drafts, self.clock_ms())
            room_ids[:] = [pdus[0].room_id]
            return pdus

        try:
            await self.persister.create(NewRoom(version, requester.user_id, alias, published), decide)
        except AliasTaken:
            raise RoomInUse(f"{alias} is taken") from None
        except ProtocolError as error:
            raise as_answer(error) from None
        await self.remote_invites.invite_all(
            requester.user_id,
            room_ids[0],
            {user_id: drafts.invite_content(user_id) for user_id in drafts.invited_elsewhere()},
        )
        return room_ids[0]

    def _version(self, request: RoomRequest) -> RoomVersion:
        try:
            return room_version(
                self.default_version if request.room_version is None else request.room_version
            )
        except UnknownRoomVersion as error:
            raise UnsupportedRoomVersion(str(error)) from None

    def _alias(self, request: RoomRequest) -> RoomAlias | None:
        name = request.room_alias_name
        if name is None:
            return None
        if not name or name.startswith("#") or ":" in name or any(character.isspace() for character in name):
            raise InvalidParam("room_alias_name is the part of an alias between # and :, without white space")
        try:
            return parse_room_alias(f"#{name}:{self.server_name}")
        except InvalidIdentifier as error:
            raise InvalidParam(str(error)) from None

    def _check(
        self, version: RoomVersion, creator: UserId, request: RoomRequest, alias: RoomAlias | None
    ) -> None:
        """Refuse what no room could be made of, before anything is built."""
        if request.preset is not None and request.preset not in PRESETS:
            raise InvalidParam(f"preset is one of {', '.join(PRESETS)}")
        if len(request.invite) > MAX_INVITES:
            raise InvalidParam(f"invite names at most {MAX_INVITES} users")
        if len(request.initial_state) > MAX_INITIAL_STATE:
            raise InvalidParam(f"initial_state has at most {MAX_INITIAL_STATE} entries")
        if creator in request.invite:
            raise Forbidden("you are in the room that you make: do not invite yourself")
        for state in request.initial_state:
            self._check_state(creator, state, alias)
        if version.privileged_creators:
            additional = request.creation_content.get("additional_creators", [])
            if not isinstance(additional, list) or not all(is_user_id(user_id) for user_id in additional):
                raise InvalidParam("creation_content.additional_creators is a list of user IDs")
        elif "users" in (override := request.power_level_content_override):
            users = override["users"]
            if not isinstance(users, dict) or creator not in users:
                raise InvalidParam("power_level_content_override.users must name the creator")

    def _check_state(self, creator: UserId, state: InitialState, alias: RoomAlias | None) -> None:
        if state.type == "m.room.member":
            raise InvalidRoomState("initial_state cannot hold m.room.member; invite says who is invited")
        draft = EventDraft(state.type, state.content, state.state_key)
        try:
            check_settable(draft, creator)
        except BadRequest as error:
            raise InvalidRoomState(f"initial_state: {error.error}") from None
        check_aliases_of_new_room(draft, alias)


@dataclass(frozen=True)
class _Drafts:
    """The events of a new room, before they are built, in the order that the specification gives."""

    server_name: ServerName
    version: RoomVersion
    creator: UserId
    request: RoomRequest
    alias: RoomAlias | None
    profiles: Mapping[UserId, JsonObject]

    @property
    def preset(self) -> Preset:
        by_visibility = "public_chat" if self.request.visibility == "public" else "private_chat"
        return PRESETS[self.request.preset or by_visibility]

    def creation_content(self) -> JsonObject:
        """What the create event says beside what only the server says."""
        content = self.request.creation_content
        if self.version.privileged_creators and self.preset.invitees_are_equals and self.request.invite:
            given = content.get("additional_creators", [])
            return {**content, "additional_creators": list(dict.fromkeys([*given, *self.request.invite]))}
        return content

    def power_levels(self, create: Pdu) -> EventDraft:
        users: dict[str, int] = {}
        if not self.version.privileged_creators:
            users[self.creator] = 100
            if self.preset.invitees_are_equals:
                users |= dict.fromkeys(self.request.invite, 100)
        content: dict[str, Any] = {
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.name": 50,
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.power_levels": 100,
                "m.room.history_visibility": 100,
                "m.room.server_acl": 100,
                "m.room.encryption": 100,
                "m.room.tombstone": 150 if self.version.privileged_creators else 100,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": self.preset.invite_level,
        }
        content |= self.request.power_level_content_override
        if self.version.privileged_creators and isinstance(content["users"], dict):
            named = [creator for creator in creators_of(self.version, create) if creator in content["users"]]
            if named:
                raise BadRequest(
                    f"power_level_content_override.users names {named[0]}, a creator of the room"
                )
        return EventDraft("m.room.power_levels", content, "")

    def settings(self) -> list[EventDraft]:
        """What follows the power levels; initial_state overrides the preset, name and topic override it."""
        drafts: dict[tuple[str, str], EventDraft] = {}
        if self.alias is not None:
            drafts["m.room.canonical_alias", ""] = EventDraft(
                "m.room.canonical_alias", {"alias": self.alias}, ""
            )
        preset = self.preset
        drafts |= {
            ("m.room.join_rules", ""): EventDraft("m.room.join_rules", {"join_rule": preset.join_rule}, ""),
            ("m.room.history_visibility", ""): EventDraft(
                "m.room.history_visibility", {"history_visibility": "shared"}, ""
            ),
            ("m.room.guest_access", ""): EventDraft(
                "m.room.guest_access", {"guest_access": preset.guest_access}, ""
            ),
        }
        for state in self.request.initial_state:
            drafts[state.type, state.state_key] = EventDraft(state.type, state.content, state.state_key)
        if self.request.name is not None:
            drafts.pop(("m.room.name", ""), None)
            drafts["m.room.name", ""] = EventDraft("m.room.name", {"name": self.request.name}, "")
        if self.request.topic is not None:
            content = {"topic": self.request.topic, "m.topic": {"m.text": [{"body": self.request.topic}]}}
            drafts.pop(("m.room.topic", ""), None)
            drafts["m.room.topic", ""] = EventDraft("m.room.topic", content, "")
        return list(drafts.values())

    def invites(self) -> list[EventDraft]:
        """The invites of users of this server."""
        return [
            EventDraft("m.room.member", {"membership": "invite", **self.invite_content(user_id)}, user_id)
            for user_id in dict.fromkeys(self.request.invite)
            if server_name_of(user_id) == self.server_name
        ]

    def invited_elsewhere(self) -> list[UserId]:
        """The users of other servers who are to be invited."""
        invited = dict.fromkeys(self.request.invite)
        return [user_id for user_id in invited if server_name_of(user_id) != self.server_name]

    def invite_content(self, user_id: UserId) -> JsonObject:
        """What an invite says beside its membership."""
        direct = {"is_direct": True} if self.request.is_direct else {}
        return {**direct, **self.profiles[user_id]}


def _build_room(head: RoomHead, drafts: _Drafts, origin_server_ts: int) -> list[Pdu]:
    """All events of a new room, each authorised on top of those before it."""
    profile = drafts.profiles[drafts.creator]
    series = EventSeries.of_new_room(
        head, drafts.creator, drafts.creation_content(), profile, origin_server_ts
    )
    try:
        series.add(drafts.power_levels(series.pdus[0]))
        for draft in drafts.settings():
            series.add(draft)
    except NotAllowed as error:
        raise InvalidRoomState(f"the room cannot be made: {error}") from None
    for draft in drafts.invites():
        series.add(draft)
    return series.pdus
