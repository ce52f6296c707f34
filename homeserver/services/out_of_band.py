"""Invites to rooms that this server is not in, and what becomes of them.

Of such a room we know what the inviting server says, and believe nothing of it: the invite is an event
without a place, shown to the one who is invited, and it is up to a join to find out the rest.
Source: Server-Server API, "Inviting to a room", "Leaving Rooms (Rejecting Invites)".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from federation.outbound import room_requests
from federation.outbound.signed_client import FederationError, SignedClient
from homeserver.errors import Forbidden, IncompatibleRoomVersion, InvalidParam, Unavailable
from homeserver.protocol.canonical_json import canonical_fragment, write_json
from homeserver.protocol.errors import (
    InvalidEvent,
    ProtocolError,
    UnknownRoomVersion,
)
from homeserver.protocol.event_hashes import event_id_of, has_valid_content_hash, reference_hash_text
from homeserver.protocol.events import EventDraft, Pdu, build_pdu, parse_pdu
from homeserver.protocol.identifiers import (
    EventId,
    RoomId,
    ServerName,
    UserId,
    is_user_id,
    server_name_of,
)
from homeserver.protocol.membership_templates import build_from_template, version_of_template
from homeserver.protocol.room_versions import RoomVersion, room_version
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.stripped_state import for_invitee, sort_foreign_state
from homeserver.services.clock import Clock
from homeserver.services.event_building import as_answer
from homeserver.services.own_keys import OwnKeys
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.server_access import ServerAccess, denied_by_acl
from homeserver.services.servers_to_ask import creators_server, servers_to_ask
from storage import oob_memberships, users
from storage.database import Database
from storage.memberships import Membership
from storage.oob_memberships import OutOfBandEvent, OutOfBandStore, Standing
from storage.room_heads import RoomRef
from storage.stream import Stream

log = logging.getLogger(__name__)

VERSION_OF_V1: Final = "1"
"""What the first version of the endpoint means by a room, unless we know better."""
MAX_ASKED: Final = 3
"""How many servers are asked to pass on that an invite is rejected."""
MAX_OVERTAKEN: Final = 3
"""So often what a user is in a room may change while an invite is rejected."""
LEAVE_PATIENCE_S: Final = 40.0
"""How long they may take together, while the user waits."""


@dataclass(frozen=True)
class InviteRequest:
    """An invite as it comes from another server, nothing of it checked."""

    room_id: RoomId
    event_id: EventId
    event: JsonObject
    stripped: Any
    room_version: str | None = None
    """None where the first version of the endpoint was asked, which does not tell."""


@dataclass(frozen=True)
class OutOfBand:
    """Takes invites from other servers, and lets our users reject them."""

    database: Database
    store: OutOfBandStore
    stream: Stream
    client: SignedClient
    gate: PduGate
    access: ServerAccess
    own: OwnKeys
    clock: Clock

    # -- invites that come

    async def receive_invite(self, origin: ServerName, request: InviteRequest) -> JsonObject:
        """Take an invite of one of our users; the event with our signature.

        Raises InvalidParam, IncompatibleRoomVersion and Forbidden.
        Source: Server-Server API, PUT /_matrix/federation/v2/invite/{roomId}/{eventId}.
        """
        version = await self._version(request)
        _check_path(version, request)
        user_nid = await self._active_user(self._invited(origin, request.event))
        if not await self.access.acl_allows(origin, request.room_id):
            raise denied_by_acl()
        [invite] = await self.gate.verify(version, [request.event], pushed=True)
        if isinstance(invite, RefusedPdu):
            raise InvalidParam(f"the event is refused: {invite.reason}")
        if not has_valid_content_hash(version, invite.json):
            raise InvalidParam("hashes.sha256 is not the hash of this event: hash it after its last change")
        stripped = await self._stripped(version, invite, request.stripped)
        signed = self._signed(version, invite)
        standing = await self._standing(invite.room_id, user_nid)
        if standing is None or not standing.is_resident:
            await self._save(
                OutOfBandEvent(version, signed, Membership.INVITE, stripped=write_json(stripped))
            )
        return signed.json

    async def _version(self, request: InviteRequest) -> RoomVersion:
        name = request.room_version
        if name is None:
            async with self.database.connection() as tx:
                name = await oob_memberships.version_of(tx, request.room_id) or VERSION_OF_V1
        try:
            return room_version(name)
        except UnknownRoomVersion:
            raise IncompatibleRoomVersion(name) from None

    def _invited(self, origin: ServerName, event: JsonObject) -> UserId:
        """Whom an event invites. Raises InvalidParam for what is no invite of ours by a user of `origin`."""
        content = event.get("content")
        membership = content.get("membership") if isinstance(content, dict) else None
        if event.get("type") != "m.room.member" or membership != "invite":
            raise InvalidParam("the event is no m.room.member whose membership is invite")
        if not _is_user_of(event.get("sender"), origin):
            raise InvalidParam(f"sender is no user of {origin}, which signed the request")
        if not _is_user_of(event.get("state_key"), self.own.server_name):
            raise InvalidParam(f"state_key is no user of {self.own.server_name}: ask that user's server")
        return UserId(event["state_key"])

    async def _active_user(self, user_id: UserId) -> int:
        """The number of a user who may be invited. Raises Forbidden, whatever the reason."""
        user_nid = await self.store.user_nid(user_id)
        if user_nid is not None:
            async with self.database.connection() as tx:
                user = await users.load(tx, user_nid)
            if user is not None and not user.is_deactivated:
                return user_nid
        raise Forbidden(f"{user_id} cannot be invited")

    def _signed(self, version: RoomVersion, invite: Pdu) -> Pdu:
        """An invite with our signature. Raises InvalidParam where there is no room for it."""
        try:
            signed = sign_event(version, invite.json, self.own.server_name, self.own.current)
            return parse_pdu(version, signed)
        except ProtocolError as error:
            raise InvalidParam(f"the event cannot take this server's signature: {error}") from None

    async def _stripped(self, version: RoomVersion, invite: Pdu, entries: Any) -> list[JsonObject]:
        """What the invited user sees of the room, as the inviting server has it. Raises InvalidParam."""
        try:
            given = sort_foreign_state(version, entries)
            checked = await self.gate.verify(version, given.pdus, pushed=True)
            pdus = [None if isinstance(outcome, RefusedPdu) else outcome for outcome in checked]
            return for_invitee(version, invite.room_id, given, pdus, invite)
        except ProtocolError as error:
            raise InvalidParam(f"invite_room_state: {error}") from None

    async def possible_withdrawals(
        self, room_id: RoomId, events: Iterable[Any]
    ) -> dict[RoomVersion, list[JsonObject]]:
        """Those of some events of a room that we are not in that may end an invite of one of our users.

        Nothing of them is checked. They come by the version that the invite says the room has: somebody
        else may have claimed another one.
        """
        found: dict[RoomVersion, list[JsonObject]] = {}
        for event in events:
            if self._may_be_withdrawal(event):
                standing = await self.standing(UserId(event["state_key"]), room_id)
                if standing is not None:
                    found.setdefault(standing.room.version, []).append(event)
        return found

    def _may_be_withdrawal(self, event: Any) -> bool:
        """Whether an event, nothing of which is checked, may end an invite of one of our users."""
        content = event.get("content") if isinstance(event, dict) else None
        return (
            isinstance(content, dict)
            and event.get("type") == "m.room.member"
            and content.get("membership") in ("leave", "ban")
            and _is_user_of(event.get("state_key"), self.own.server_name)
        )

    async def withdrawn(self, pdu: Pdu) -> None:
        """Take a verified event of a room that we are not in, if it ends an invite that came out-of-band.

        That is only for the one who invited to do: it removes or bans the user, and cites the invite.
        """
        if not self._may_be_withdrawal(pdu.json):
            return
        assert pdu.state_key is not None
        user_nid = await self.store.user_nid(UserId(pdu.state_key))
        standing = None if user_nid is None else await self._standing(pdu.room_id, user_nid)
        if standing is None or standing.is_resident or standing.membership is not Membership.INVITE:
            return
        invite = standing.event
        if invite is None or pdu.sender != invite.sender or invite.event_id not in pdu.auth_events:
            return
        await self._save(
            OutOfBandEvent(
                standing.room.version, pdu, Membership.of(pdu.membership), expected=standing.event_nid
            )
        )

    # -- what our users do

    async def standing(self, user_id: UserId, room_id: RoomId) -> Standing | None:
        """What one of our users is in a room, and whether we are in it; None for a room that is not known."""
        user_nid = await self.store.user_nid(user_id)
        return await self._standing(room_id, 0 if user_nid is None else user_nid)

    async def reject(self, user_id: UserId, room_id: RoomId, content: JsonObject) -> EventId | None:
        """Leave a room of others that the user is invited to, or knocks at; leaving twice changes nothing.

        Servers that may be in the room are asked to pass it on. Where none does, the user is free of the
        invite all the same. None where it is for the room's own state to change. Raises BadJson and TooLarge
        for a content that no event can have, Unavailable where something else happens to the user meanwhile.
        """
        for _ in range(MAX_OVERTAKEN):
            standing = await self.standing(user_id, room_id)
            if standing is None or standing.event is None or standing.membership is None:
                return None
            if standing.is_ours and not standing.out_of_band:
                return None
            if standing.membership is Membership.LEAVE and standing.out_of_band:
                return standing.event.event_id
            if standing.membership not in (Membership.INVITE, Membership.KNOCK):
                return None
            try:
                alone = self._leave_alone(user_id, standing.event, standing.room.version, content)
            except ProtocolError as error:
                raise as_answer(error) from None
            leave = await self._leave_elsewhere(user_id, standing, content)
            event = OutOfBandEvent(
                standing.room.version,
                leave or alone,
                Membership.LEAVE,
                expected=standing.event_nid,
                is_unsigned=leave is None,
            )
            if await self._save(event):
                return event.pdu.event_id
        raise Unavailable("your membership in this room changes all the time; try again")

    async def _leave_elsewhere(self, user_id: UserId, standing: Standing, content: JsonObject) -> Pdu | None:
        """The leave that another server has taken into the room; None where none does in time."""
        try:
            async with asyncio.timeout(LEAVE_PATIENCE_S):
                for server_name in await self._servers_to_ask(standing):
                    try:
                        return await self._leave_through(server_name, user_id, standing.room, content)
                    except (FederationError, ProtocolError) as error:
                        room_id = standing.room.room_id
                        log.info(
                            "an invite to %s is not rejected through %r: %s", room_id, server_name, error
                        )
        except TimeoutError:
            log.info(
                "an invite to %s is not rejected through others: that takes too long", standing.room.room_id
            )
        return None

    async def _leave_through(
        self, server_name: ServerName, user_id: UserId, room: RoomRef, content: JsonObject
    ) -> Pdu:
        """A leave that a server in the room has taken. Raises FederationError, ProtocolError.

        Source: Server-Server API, "Leaving Rooms (Rejecting Invites)".
        """
        answer = await room_requests.make_leave(self.client, server_name, room.room_id, user_id)
        if version_of_template(answer) is not room.version:
            raise InvalidEvent("it takes the room for one of another version")
        leave = build_from_template(
            room.version,
            answer.get("event"),
            server_name=server_name,
            room_id=room.room_id,
            user_id=user_id,
            membership="leave",
            content=content,
            origin_server_ts=self.clock(),
        )
        signed = sign_event(room.version, leave.json, self.own.server_name, self.own.current)
        event = canonical_fragment(room.version, signed)
        await room_requests.send_leave_v2(self.client, server_name, room.room_id, leave.event_id, event)
        return parse_pdu(room.version, signed)

    async def _servers_to_ask(self, standing: Standing) -> Sequence[ServerName]:
        """Servers that are likely to be in a room: the inviter's, the one that made it, of old members."""
        assert standing.event is not None
        room_id = standing.room.room_id
        named = [server_name_of(standing.event.sender), *creators_server(room_id)]
        return await servers_to_ask(self.database, room_id, named, own=self.own.server_name, most=MAX_ASKED)

    def _leave_alone(self, user_id: UserId, invite: Pdu, version: RoomVersion, content: JsonObject) -> Pdu:
        """A leave that no server but ours ever sees."""
        return build_pdu(
            version,
            room_id=invite.room_id,
            draft=EventDraft("m.room.member", {**content, "membership": "leave"}, user_id),
            sender=user_id,
            prev_events=[invite.event_id],
            auth_events=[invite.event_id],
            depth=invite.depth + 1,
            origin_server_ts=self.clock(),
            reference_hashes={invite.event_id: reference_hash_text(version, invite.json)},
        )

    async def _standing(self, room_id: RoomId, user_nid: int) -> Standing | None:
        server_nid = await self.store.server_nid()
        async with self.database.connection() as tx:
            return await oob_memberships.standing(tx, room_id, user_nid, server_nid)

    async def _save(self, event: OutOfBandEvent) -> bool:
        """Store an event and tell the user; False where nothing changes."""
        if not await self.store.store(event, self.clock()):
            return False
        await self.stream.catch_up()
        return True


def _check_path(version: RoomVersion, request: InviteRequest) -> None:
    """Raise InvalidParam where the event is another one than the path of the request names."""
    try:
        event_id = event_id_of(version, request.event)
    except ProtocolError as error:
        raise InvalidParam(f"the event cannot be read: {error}") from None
    if request.event.get("room_id") != request.room_id:
        raise InvalidParam(f"room_id is not {request.room_id}, which the path names")
    if event_id != request.event_id:
        raise InvalidParam(f"the event is {event_id}, but the path names {request.event_id}")


def _is_user_of(value: object, server_name: ServerName) -> bool:
    return isinstance(value, str) and is_user_id(value) and server_name_of(value) == server_name
