"""Joining and leaving, inviting and removing.

Source: Client-Server API, "Room membership".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.errors import (
    BadGateway,
    BadJson,
    BadRequest,
    Forbidden,
    GuestAccessForbidden,
    NotFound,
    UnableToGrantJoin,
)
from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.event_building import as_answer, build_event, changed_or_current
from homeserver.services.join_imports import RoomIsHere
from homeserver.services.notifier import Notifier
from homeserver.services.out_of_band import OutOfBand
from homeserver.services.profiles import Profiles
from homeserver.services.remote_invites import RemoteInvites
from homeserver.services.remote_joins import RemoteJoins
from homeserver.services.restricted_joins import (
    Helpers,
    NeedsHelpers,
    authoriser,
    is_restricted,
    load_helpers,
)
from storage import memberships
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.oob_memberships import Standing
from storage.persister import Persister
from storage.room_heads import RoomHead

_CAN_BE_KICKED: Final = ("join", "invite", "knock")


@dataclass(frozen=True)
class RoomMembership:
    """Changes the memberships of rooms for local users."""

    persister: Persister
    database: Database
    profiles: Profiles
    notifier: Notifier
    out_of_band: OutOfBand
    remote_joins: RemoteJoins
    remote_invites: RemoteInvites
    server_name: ServerName
    clock_ms: Callable[[], int]

    async def join(
        self, requester: Requester, room_id: RoomId, extra: JsonObject, via: Sequence[ServerName] = ()
    ) -> EventId:
        """Join a room; `extra` goes into the member event beside what is ours to say.

        `via`: servers that may be in a room that this server is not in. Joining again changes nothing unless
        the content differs. Raises Forbidden, GuestAccessForbidden, UnableToGrantJoin, NotFound for a room
        that nobody knows, and for one that this server is not in what RemoteJoins.join raises.
        """
        user_id = requester.user_id
        profile = (await self.profiles.in_member_events([user_id]))[user_id]
        content = {**profile, **extra, "membership": "join"}
        content.pop(AUTHORISER, None)
        standing = await self.out_of_band.standing(user_id, room_id)
        if standing is None or not standing.is_ours:
            if requester.is_guest:
                raise GuestAccessForbidden(
                    "guests enter only rooms that this server is in: register an account"
                )
            servers = [*_inviting_server(standing), *via]
            try:
                return await self.remote_joins.join(user_id, room_id, content, servers)
            except RoomIsHere:  # somebody else of this server has joined it meanwhile
                standing = await self.out_of_band.standing(user_id, room_id)
            except BadGateway:
                if servers:
                    raise
                raise NotFound(
                    f"{room_id} is not known here: name a server that is in it, with via"
                ) from None
        kept_out_of = None if standing is None else standing.kept_out_of
        try:
            return await self._join_here(requester, room_id, content, kept_out_of)
        except UnableToGrantJoin as unable:
            try:
                return await self.remote_joins.join(user_id, room_id, content, via)
            except (NotFound, RoomIsHere):
                raise unable from None

    async def _join_here(
        self, requester: Requester, room_id: RoomId, content: JsonObject, kept_out_of: int | None
    ) -> EventId:
        """Join a room that this server is in. `kept_out_of`: a join in its state that does not count."""
        try:
            return await self._join(room_id, requester, content, kept_out_of, None)
        except NeedsHelpers:
            helpers = await load_helpers(self.database, requester.user_nid, room_id, self.server_name)
            return await self._join(room_id, requester, content, kept_out_of, helpers)
        except UnknownRoom:
            raise NotFound(f"{room_id} is not known here") from None

    async def _join(
        self,
        room_id: RoomId,
        requester: Requester,
        content: JsonObject,
        kept_out_of: int | None,
        helpers: Helpers | None,
    ) -> EventId:
        user_id = requester.user_id

        def decide(head: RoomHead) -> list[Pdu]:
            current = head.stored(("m.room.member", user_id))
            is_out = current is not None and current.nid == kept_out_of
            if current is not None and not is_out and _says_again(head.version, current.pdu, content):
                return [current.pdu]
            if requester.is_guest and not _lets_guests_in(head):
                raise GuestAccessForbidden("this room is not open to guests")
            authorised = content
            if is_restricted(head, user_id):
                if helpers is None:
                    raise NeedsHelpers
                authorised = {**content, AUTHORISER: authoriser(head, helpers, self.server_name)}
            draft = EventDraft("m.room.member", authorised, user_id)
            event = build_event(head, draft, user_id, self.clock_ms())
            return [event if is_out else changed_or_current(head, event)]

        return await self._append(room_id, decide)

    async def leave(self, requester: Requester, room_id: RoomId, extra: JsonObject) -> EventId:
        """Leave a room, reject an invite to it or retract a knock; leaving twice changes nothing.

        Raises Forbidden for a room that the user is not in, NotFound for one that is not known.
        """
        return await self.leave_as(requester.user_id, room_id, extra)

    async def leave_as(self, user_id: UserId, room_id: RoomId, extra: JsonObject) -> EventId:
        """What `leave` does, for a user who has no session any more."""
        rejected = await self.out_of_band.reject(user_id, room_id, extra)
        if rejected is not None:
            return rejected

        def check(current: object) -> None:
            if current not in (*_CAN_BE_KICKED, "leave"):
                raise Forbidden("you are not in this room")

        try:
            return await self._change(user_id, room_id, user_id, "leave", extra, check)
        except UnknownRoom:
            raise NotFound(f"{room_id} is not known here") from None

    async def invite(
        self, requester: Requester, room_id: RoomId, user_id: UserId, extra: JsonObject
    ) -> EventId:
        """Invite a user. Raises Forbidden; for a user of another server what RemoteInvites.invite raises."""
        if server_name_of(user_id) != self.server_name:
            return await self.remote_invites.invite(requester.user_id, room_id, user_id, extra)
        profile = (await self.profiles.in_member_events([user_id]))[user_id]
        return await self._change_of_other(requester, room_id, user_id, "invite", {**profile, **extra})

    async def kick(
        self, requester: Requester, room_id: RoomId, user_id: UserId, extra: JsonObject
    ) -> EventId:
        """Remove a user, withdraw an invite or refuse a knock. Raises Forbidden."""

        def check(current: object) -> None:
            if current not in _CAN_BE_KICKED:
                raise Forbidden(f"{user_id} is not in this room")

        return await self._change_of_other(requester, room_id, user_id, "leave", extra, check)

    async def ban(self, requester: Requester, room_id: RoomId, user_id: UserId, extra: JsonObject) -> EventId:
        """Ban a user, who need not be in the room. Raises Forbidden."""
        return await self._change_of_other(requester, room_id, user_id, "ban", extra)

    async def unban(
        self, requester: Requester, room_id: RoomId, user_id: UserId, extra: JsonObject
    ) -> EventId:
        """Lift a ban. Raises Forbidden, also when there is none."""

        def check(current: object) -> None:
            if current != "ban":
                raise Forbidden(f"{user_id} is not banned from this room")

        return await self._change_of_other(requester, room_id, user_id, "leave", extra, check)

    async def set_by_state_event(
        self, requester: Requester, room_id: RoomId, user_id: UserId, content: JsonObject
    ) -> EventId:
        """What a PUT of m.room.member asks for, with the checks of the endpoint that it stands for."""
        membership = content.get("membership")
        if not isinstance(membership, str):
            raise BadJson("content.membership is a string")
        own = user_id == requester.user_id
        match membership:
            case "join" if own:
                return await self.join(requester, room_id, content)
            case "leave" if own:
                return await self.leave(requester, room_id, content)
            case "leave":
                return await self._change_of_other(
                    requester, room_id, user_id, "leave", content, _has_membership
                )
            case "invite":
                return await self.invite(requester, room_id, user_id, content)
            case _:
                return await self._change_of_other(requester, room_id, user_id, membership, content)

    async def forget(self, requester: Requester, room_id: RoomId) -> None:
        """Forget a room that the user has left: its history is not readable until the user joins again.

        Raises BadRequest for a room that the user is in.
        """
        async with self.database.connection() as tx:
            if not await memberships.forget(tx, requester.user_nid, room_id):
                raise BadRequest(f"you have not left {room_id}")
        self.notifier.forgotten(requester.user_id, room_id)

    async def _change_of_other(
        self,
        requester: Requester,
        room_id: RoomId,
        user_id: UserId,
        membership: str,
        extra: JsonObject,
        check: Callable[[object], None] | None = None,
    ) -> EventId:
        try:
            return await self._change(requester.user_id, room_id, user_id, membership, extra, check)
        except UnknownRoom:
            raise Forbidden("you are not in this room") from None

    async def _change(
        self,
        sender: UserId,
        room_id: RoomId,
        user_id: UserId,
        membership: str,
        extra: JsonObject,
        check: Callable[[object], None] | None = None,
    ) -> EventId:
        draft = EventDraft("m.room.member", {**extra, "membership": membership}, user_id)

        def decide(head: RoomHead) -> list[Pdu]:
            current = head.event("m.room.member", user_id)
            if current is not None and user_id == sender and current.membership == membership == "leave":
                return [current]
            if check is not None and user_id == sender:
                check(None if current is None else current.membership)
            event = build_event(head, draft, sender, self.clock_ms())
            # Only who may make such a change is told what the membership of another user is.
            if check is not None and user_id != sender:
                check(None if current is None else current.membership)
            return [changed_or_current(head, event)]

        return await self._append(room_id, decide)

    async def _append(self, room_id: RoomId, decide: Callable[[RoomHead], list[Pdu]]) -> EventId:
        try:
            return (await self.persister.append(room_id, decide))[-1]
        except ProtocolError as error:
            raise as_answer(error) from None


def _inviting_server(standing: Standing | None) -> list[ServerName]:
    """The server of who invited the user to a room that this server is not in: it expects the user."""
    if standing is None or standing.event is None or not standing.out_of_band:
        return []
    return [server_name_of(standing.event.sender)]


def _says_again(version: RoomVersion, current: Pdu, content: JsonObject) -> bool:
    """Whether a member has joined with this content already; by whom they were let in is no part of it."""
    said = {key: value for key, value in current.content.items() if key != AUTHORISER}
    return canonical_event(version, said) == canonical_event(version, content)


def _has_membership(current: object) -> None:
    if current not in (*_CAN_BE_KICKED, "ban"):
        raise Forbidden("this user is not in the room")


def _lets_guests_in(head: RoomHead) -> bool:
    """Whether guests may join. Source: Client-Server API, "m.room.guest_access"."""
    guest_access = head.event("m.room.guest_access")
    return guest_access is not None and guest_access.content.get("guest_access") == "can_join"
