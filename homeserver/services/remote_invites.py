"""Inviting users of other servers.

Such an invite becomes part of its room only after the other server has signed it too, so it is built on the
room's newest head, handed over, and then stored as it is: nothing of it may change any more.
Source: Server-Server API, "Inviting to a room".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from federation.outbound import room_requests
from federation.outbound.signed_client import FederationError, RequestRefused, SignedClient
from homeserver.errors import BadGateway, Forbidden, InviteBlocked, MatrixError, UnsupportedRoomVersion
from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.canonical_json import canonical_fragment
from homeserver.protocol.errors import BadJson, BadSignature, ProtocolError
from homeserver.protocol.events import EventDraft, Pdu, parse_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId, server_name_of
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import keys_valid_at, signature_key_ids, verify_signed_json
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.stripped_state import STRIPPED
from homeserver.services.clock import Clock
from homeserver.services.event_building import as_answer, build_event, changed_or_current
from homeserver.services.federation_failures import failure_answer, unusable_answer
from homeserver.services.incoming_events import IncomingEvents
from homeserver.services.outgoing_events import OutgoingEvents
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.server_keys import KeyRing
from storage.decisions import UnknownRoom
from storage.persister import Persister
from storage.room_heads import RoomHead

log = logging.getLogger(__name__)

SERVERS_AT_ONCE: Final = 5
ALL_PATIENCE_S: Final = 60.0
"""How long those who are invited to a new room may take together."""

_OTHER_VERSION: Final = ("M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION", "M_UNRECOGNIZED")
"""What servers answer that do not speak a room's version: the old ones lack the endpoint."""


@dataclass(frozen=True, slots=True)
class _Invite:
    """An invite that is not stored yet, or the current event where that says the same already."""

    version: RoomVersion
    event: Pdu
    state: tuple[Pdu, ...]
    """What the invited user may know of the room."""
    is_new: bool


@dataclass(frozen=True)
class RemoteInvites:
    """Invites users of other servers to rooms that this server is in."""

    persister: Persister
    incoming: IncomingEvents
    client: SignedClient
    gate: PduGate
    key_ring: KeyRing
    outgoing: OutgoingEvents
    clock: Clock

    async def invite(self, sender: UserId, room_id: RoomId, user_id: UserId, content: JsonObject) -> EventId:
        """Invite a user of another server. `content`: what the event says beside its membership.

        Raises Forbidden where the room's rules or the other server refuse it, InviteBlocked,
        UnsupportedRoomVersion where that server does not speak the room's version, BadGateway where it cannot
        be reached or its answer cannot be used, and BadJson or TooLarge for what cannot be an event.
        """
        draft = EventDraft("m.room.member", {**content, "membership": "invite"}, user_id)
        try:
            invite = await self.persister.consider(room_id, lambda head: self._build(head, draft, sender))
        except UnknownRoom:
            raise Forbidden("you are not in this room") from None
        except ProtocolError as error:
            raise as_answer(error) from None
        if not invite.is_new:
            return invite.event.event_id
        signed = await self._co_signed(server_name_of(user_id), invite)
        await self.incoming.add_fixed(room_id, signed, fed=True)
        return signed.event_id

    async def invite_all(self, sender: UserId, room_id: RoomId, invites: Mapping[UserId, JsonObject]) -> None:
        """Invite users of other servers to a new room, as far as that is possible in good time.

        `invites`: what each event says. Who cannot be invited fails alone: that is logged.
        """
        by_server: dict[ServerName, list[UserId]] = {}
        for user_id in invites:
            by_server.setdefault(server_name_of(user_id), []).append(user_id)
        turns = asyncio.Semaphore(SERVERS_AT_ONCE)

        async def invite_users(user_ids: list[UserId]) -> None:
            async with turns:
                for user_id in user_ids:
                    try:
                        await self.invite(sender, room_id, user_id, invites[user_id])
                    except MatrixError as error:
                        log.info("%s is not invited to new room %s: %s", user_id, room_id, error.error)
                        if isinstance(error, BadGateway):
                            return  # its server does not answer
                    except Exception:
                        log.exception("%s is not invited to new room %s", user_id, room_id)

        try:
            async with asyncio.timeout(ALL_PATIENCE_S), asyncio.TaskGroup() as tasks:
                for user_ids in by_server.values():
                    tasks.create_task(invite_users(user_ids))
        except TimeoutError:
            log.info("not all users are invited to new room %s: it takes too long", room_id)

    def _build(self, head: RoomHead, draft: EventDraft, sender: UserId) -> _Invite:
        """The invite on top of a head. Raises NotAllowed, and what build_pdu raises; Forbidden."""
        assert draft.state_key is not None
        event = build_event(head, draft, sender, self.clock())
        create = head.event(*CREATE)
        assert create is not None
        is_closed = create.content.get("m.federate") is False
        if is_closed and server_name_of(draft.state_key) != server_name_of(create.sender):
            raise Forbidden("m.federate of this room keeps users of other servers out: make another room")
        current = changed_or_current(head, event)
        keys = [*((event_type, "") for event_type in STRIPPED), ("m.room.member", sender)]
        state = head.events(keys)
        return _Invite(head.version, current, tuple(state.values()), is_new=current is event)

    async def _co_signed(self, destination: ServerName, invite: _Invite) -> Pdu:
        """The invite with the signatures of both servers."""
        version, event = invite.version, invite.event
        own = self._signed(version, event)
        content = {
            "room_version": version.version,
            "event": canonical_fragment(version, own),
            "invite_room_state": [
                canonical_fragment(version, self._signed(version, pdu)) for pdu in invite.state
            ],
        }
        try:
            answer = await room_requests.send_invite_v2(
                self.client, destination, event.room_id, event.event_id, content
            )
        except FederationError as error:
            raise _refusal(error, version) from None
        [outcome] = await self.gate.verify(version, [answer], pushed=True, event_ids=[event.event_id])
        if isinstance(outcome, RefusedPdu):
            log.info("%s answers an invite with an event that is refused: %s", destination, outcome.reason)
            raise unusable_answer(destination)
        try:
            theirs = await self._signatures_of(destination, version, outcome)
            return parse_pdu(version, {**own, "signatures": {**own["signatures"], destination: theirs}})
        except (BadSignature, BadJson, ProtocolError) as error:
            log.info("%s does not sign an invite as it should: %s", destination, error)
            raise unusable_answer(destination) from None

    async def _signatures_of(self, server_name: ServerName, version: RoomVersion, pdu: Pdu) -> Any:
        """The signatures of the invited user's server, which are checked. Raises BadSignature, BadJson."""
        signed_ts = keys_valid_at(version, pdu)
        key_ids = signature_key_ids(pdu.json, server_name)
        keys = await self.key_ring.keys_for(server_name, key_ids, signed_ts)
        # A signature over an event is one over its redacted form.
        verify_signed_json(redact(version, pdu.json), server_name, keys, valid_at=signed_ts)
        return pdu.json["signatures"][server_name]

    def _signed(self, version: RoomVersion, pdu: Pdu) -> JsonObject:
        return self.outgoing.signed(version, pdu, is_unsigned="signatures" not in pdu.json)


def _refusal(error: FederationError, version: RoomVersion) -> MatrixError:
    """What a client is told whose invite another server did not take."""
    match error:
        case RequestRefused(errcode="M_INVITE_BLOCKED"):
            return InviteBlocked("this user does not want to be invited")
        case RequestRefused(status=400 | 404, errcode=errcode) if errcode in _OTHER_VERSION:
            return UnsupportedRoomVersion(
                f"{error.destination} does not speak room version {version.version}: make a room of another"
            )
        case _:
            missing, refused = (
                f"{error.destination} does not know this user",
                "does not let this user be invited",
            )
            return failure_answer(error, missing=missing, refused=refused)
