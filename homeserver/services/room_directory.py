"""Room aliases, and which rooms are published.

Source: Client-Server API, "Room aliases", "Published room directory".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from homeserver.errors import (
    Forbidden,
    GuestAccessForbidden,
    InvalidParam,
    NotFound,
    RoomAliasTaken,
)
from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomAlias, RoomId, ServerName, server_name_of
from homeserver.protocol.power_levels import PowerLevels
from homeserver.services.access_tokens import Requester
from homeserver.services.canonical_aliases import CANONICAL_ALIAS, aliases_of, without_alias
from homeserver.services.clock import Clock
from homeserver.services.event_building import build_event
from storage import current_state, memberships, published_rooms, room_aliases
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.dictionaries import Dictionaries
from storage.memberships import Membership
from storage.persister import Persister
from storage.room_heads import RoomHead

Publishers: TypeAlias = Literal["nobody", "admins", "members"]
"""Who may put a room into the directory."""

MAX_SERVERS: Final = 50
"""How many servers are named that are in a room: enough to find one through which it can be joined."""

_TYPES: Final = (
    "m.room.create",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
)


@dataclass(frozen=True)
class AliasTarget:
    """What an alias stands for: a room, and servers that are in it."""

    room_id: RoomId
    servers: Sequence[ServerName]


@dataclass(frozen=True)
class _Standing:
    """What someone is in a room."""

    joined: bool
    has_power: bool
    """Is joined and may say what the room's aliases are."""
    world_readable: bool
    """Anybody may read the room."""
    known_to_all: bool
    """Anybody may know that the room exists."""


_STRANGER: Final = _Standing(joined=False, has_power=False, world_readable=False, known_to_all=False)


@dataclass(frozen=True)
class RoomDirectory:
    """The aliases of this server, and the rooms that it publishes."""

    database: Database
    dictionaries: Dictionaries
    persister: Persister
    server_name: ServerName
    clock: Clock
    publishers: Publishers
    aliases_need_membership: bool

    async def find(self, alias: RoomAlias) -> AliasTarget:
        """What an alias of this server stands for. Raises NotFound for one that does not exist."""
        async with self.database.connection() as tx:
            stored = await room_aliases.load(tx, alias)
            servers = [] if stored is None else await memberships.servers_of(tx, stored.room_id, MAX_SERVERS)
        if stored is None:
            raise NotFound(f"there is no room alias {alias}")
        if self.server_name in servers or not servers:
            servers = [self.server_name, *(name for name in servers if name != self.server_name)]
        return AliasTarget(stored.room_id, servers)

    async def add_alias(self, requester: Requester, alias: RoomAlias, room_id: RoomId) -> None:
        """Make a new alias of this server point to a room.

        The requester has to be in it; without `aliases_need_membership` a room that everybody may know of
        will do. Raises InvalidParam for an alias of another server, RoomAliasTaken for an existing one,
        Forbidden, also for a room that is not known: who may not know of a room learns nothing of it.
        """
        if server_name_of(alias) != self.server_name:
            raise InvalidParam(f"{alias} belongs to another server")
        _refuse_guest(requester)
        standing = await self._standing(requester, room_id)
        if not standing.joined and (self.aliases_need_membership or not standing.known_to_all):
            raise Forbidden("you are not in this room")
        async with self.database.connection() as tx:
            if not await room_aliases.insert(tx, alias, room_id, requester.user_nid):
                raise RoomAliasTaken(f"{alias} points to a room already")

    async def delete_alias(self, requester: Requester, alias: RoomAlias) -> None:
        """Delete an alias, and take it out of m.room.canonical_alias where the requester may.

        Its creator may, and who may say what the room's aliases are, and admins.
        Raises NotFound for an alias that is not known, Forbidden.
        """
        async with self.database.connection() as tx:
            stored = await room_aliases.load(tx, alias)
        if stored is None:
            raise NotFound(f"there is no room alias {alias}")
        if stored.creator_nid != requester.user_nid and not requester.is_admin:
            standing = await self._standing(requester, stored.room_id)
            if not standing.has_power:
                raise Forbidden(f"{alias} is somebody else's, and you have no power over this room's aliases")
        await self._unname(requester, stored.room_id, alias)
        async with self.database.connection() as tx:
            if not await room_aliases.delete(tx, alias, stored.room_id):
                raise NotFound(f"there is no room alias {alias}")

    async def aliases_of(self, requester: Requester, room_id: RoomId) -> list[RoomAlias]:
        """The aliases of this server that point to a room.

        Raises Forbidden unless the requester is in the room, or anybody may read it.
        """
        standing = await self._standing(requester, room_id)
        if not standing.joined and not standing.world_readable:
            raise Forbidden("you are not in this room")
        async with self.database.connection() as tx:
            return await room_aliases.of_room(tx, room_id)

    async def is_published(self, room_id: RoomId) -> bool:
        """Whether the directory lists a room. Raises NotFound for one that is not known."""
        async with self.database.connection() as tx:
            published = await published_rooms.is_published(tx, room_id)
        if published is None:
            raise NotFound(f"{room_id} is not known here")
        return published

    async def set_published(self, requester: Requester, room_id: RoomId, published: bool) -> None:
        """List a room in the directory, or no more.

        Admins may, and who may say what the room's aliases are, but for what the configuration says of
        listing. Raises NotFound for a room that is not known, Forbidden.
        """
        _refuse_guest(requester)
        await self.is_published(room_id)
        if published and not self.may_publish(requester):
            raise Forbidden("this server does not let you list rooms in its directory")
        if not requester.is_admin and not (await self._standing(requester, room_id)).has_power:
            raise Forbidden("you have no power over this room's place in the directory")
        async with self.database.connection() as tx:
            if published:
                await published_rooms.add(tx, room_id)
            else:
                await published_rooms.remove(tx, room_id)

    def may_publish(self, requester: Requester) -> bool:
        """Whether the configuration lets someone list rooms of which it would otherwise be allowed."""
        return self.publishers == "members" or (self.publishers == "admins" and requester.is_admin)

    async def _unname(self, requester: Requester, room_id: RoomId, alias: RoomAlias) -> None:
        """Take an alias out of what the room names; without the power to, or outside the room, it stays."""

        def decide(head: RoomHead) -> list[Pdu]:
            current = head.event(CANONICAL_ALIAS)
            if current is None or alias not in aliases_of(current.content):
                return []
            draft = EventDraft(CANONICAL_ALIAS, without_alias(current.content, alias), "")
            return [build_event(head, draft, requester.user_id, self.clock())]

        try:
            await self.persister.append(room_id, decide)
        except (ProtocolError, UnknownRoom):
            return

    async def _standing(self, requester: Requester, room_id: RoomId) -> _Standing:
        types = await self.dictionaries.event_types.find_nids(_TYPES)
        no_state_key = await self.dictionaries.atoms.nid("")
        async with self.database.connection() as tx:
            member = await current_state.member(tx, room_id, requester.user_nid)
            if member is None:
                return _STRANGER
            room_nid = member.room_nid
            events = await current_state.events(tx, [room_nid], types.values(), no_state_key)
        by_type_nid = events.get(room_nid, {})
        state = {name: by_type_nid[nid] for name, nid in types.items() if nid in by_type_nid}
        create = state.get("m.room.create")
        if create is None:
            return _STRANGER
        levels = PowerLevels.of(member.version, create, state.get("m.room.power_levels"))
        joined = member.membership is Membership.JOIN
        needed = levels.level_for_event(CANONICAL_ALIAS, is_state=True)
        visibility = _value(state.get("m.room.history_visibility"), "history_visibility")
        world_readable = visibility == "world_readable"
        return _Standing(
            joined=joined,
            has_power=joined and levels.user_level(requester.user_id) >= needed,
            world_readable=world_readable,
            known_to_all=world_readable or _value(state.get("m.room.join_rules"), "join_rule") == "public",
        )


def _value(event: Pdu | None, key: str) -> object:
    return None if event is None else event.content.get(key)


def _refuse_guest(requester: Requester) -> None:
    if requester.is_guest:
        raise GuestAccessForbidden("guests have no say about the room directory")
