"""Whether another server may ask about a room, and whether a room's server ACL lets it take part at all.

Source: Server-Server API, "Server Access Control Lists (ACLs)".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from homeserver.errors import Forbidden
from homeserver.protocol.identifiers import RoomId, ServerName
from homeserver.protocol.server_acl import ServerAcl
from homeserver.services.bounded_cache import BoundedCache
from storage import server_access
from storage.database import Database, Transaction
from storage.room_heads import RoomRef
from storage.server_access import AclEvent, RoomAccess

REMEMBERED_GLOBS: Final = 50_000
"""Of the ACLs of all rooms together."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a server is to a room: whether it is in it, and the room's ACL, None where there is none."""

    is_in_room: bool
    acl: ServerAcl | None


@dataclass(frozen=True)
class ServerAccess:
    """Asked by every endpoint that another server reaches and that names a room."""

    database: Database
    _acls: BoundedCache[AclEvent, ServerAcl] = field(
        default_factory=lambda: BoundedCache(REMEMBERED_GLOBS), init=False, repr=False
    )

    async def check(self, origin: ServerName, room_id: RoomId) -> RoomRef:
        """The room, if a server may ask about it: it is in it now, and the ACL does not deny it.

        Raises Forbidden, the same for a room that is unknown here; what the ACL says is only told to servers
        in the room.
        """
        async with self.database.connection() as tx:
            access = _in_room(origin, await server_access.load(tx, room_id, origin))
            await self._check_acl(tx, origin, access)
        return access.room

    async def check_is_in_room(self, origin: ServerName, room_id: RoomId) -> RoomRef:
        """As `check`, where the specification does not let the ACL count."""
        async with self.database.connection() as tx:
            return _in_room(origin, await server_access.load(tx, room_id, origin)).room

    async def check_was_in_room(self, origin: ServerName, room_id: RoomId) -> tuple[RoomRef, int | None]:
        """As `check`, for a server that may have left: the room_seq by which it did, None if it is there.

        It is owed the event by which it left, and cannot take it without what that builds on.
        """
        async with self.database.connection() as tx:
            access = await server_access.load(tx, room_id, origin)
            if access is None or access.left_seq is None:
                access = _in_room(origin, access)
            await self._check_acl(tx, origin, access)
        return access.room, None if access.is_in_room else access.left_seq

    async def check_acl(self, server_name: ServerName, room_id: RoomId) -> None:
        """Raise Forbidden where the ACL of a room denies a server, in the room or not."""
        if not await self.acl_allows(server_name, room_id):
            raise denied_by_acl()

    async def acl_allows(self, server_name: ServerName, room_id: RoomId) -> bool:
        """Whether a room's ACL allows a server, in the room or not; true where there is none."""
        acl = await self.acl(room_id)
        return acl is None or acl.allows(server_name)

    async def standing(self, server_name: ServerName, room_id: RoomId) -> Standing:
        """What a server is to a room that is known here."""
        async with self.database.connection() as tx:
            access = await server_access.load(tx, room_id, server_name)
            if access is None:
                return Standing(is_in_room=False, acl=None)
            return Standing(access.is_in_room, await self._acl(tx, access))

    async def acl(self, room_id: RoomId) -> ServerAcl | None:
        """The ACL of a room; None where there is none."""
        async with self.database.connection() as tx:
            access = await server_access.load(tx, room_id, None)
            return None if access is None else await self._acl(tx, access)

    async def _check_acl(self, tx: Transaction, origin: ServerName, access: RoomAccess) -> None:
        acl = await self._acl(tx, access)
        if acl is not None and not acl.allows(origin):
            raise denied_by_acl()

    async def _acl(self, tx: Transaction, access: RoomAccess) -> ServerAcl | None:
        if access.acl is None:
            return None
        acl = self._acls.get(access.acl)
        if acl is None:
            content = await server_access.acl_content(tx, access.room, access.acl)
            acl = ServerAcl.of(content)
            globs = (content.get(name) for name in ("allow", "deny"))
            cost = 1 + sum(len(entries) for entries in globs if isinstance(entries, list))
            self._acls.put(access.acl, acl, cost)
        return acl


def _in_room(origin: ServerName, access: RoomAccess | None) -> RoomAccess:
    if access is None or not access.is_in_room:
        raise not_in_room(origin)
    return access


def not_in_room(origin: ServerName) -> Forbidden:
    """The error for a server that asks about a room of others."""
    return Forbidden(f"{origin} is not in this room, as far as this server knows: join it first")


def denied_by_acl() -> Forbidden:
    """The error for a server that a room's ACL shuts out."""
    return Forbidden("m.room.server_acl of this room denies your server: ask those who may change it")
