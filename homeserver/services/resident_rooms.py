"""Users of other servers who join and leave rooms that this server is in, and is asked to let them.

First their server gets a template, of which nothing is stored; then it sends the event, which it has signed.
Source: Server-Server API, "Joining Rooms", "Restricted rooms", "Leaving Rooms".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from homeserver.errors import Forbidden, IncompatibleRoomVersion, InvalidParam, NotFound
from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId, is_user_id, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import Clock
from homeserver.services.event_building import as_answer, build_event
from homeserver.services.incoming_events import IncomingEvents
from homeserver.services.own_keys import OwnKeys
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.restricted_joins import (
    Helpers,
    NeedsHelpers,
    allowed_rooms,
    authoriser,
    check_conditions,
    is_restricted,
    load_helpers_of_stranger,
)
from homeserver.services.room_summaries import MAX_HEROES
from homeserver.services.served_events import ServedEvents
from homeserver.services.server_access import ServerAccess
from storage import room_servers, room_state, room_timeline, shared_rooms, sync_reads
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.dictionaries import MEMBER_TYPE_NID, Dictionaries
from storage.memberships import Membership
from storage.packed_state import Key, StateEntries
from storage.persister import Persister
from storage.room_heads import RoomHead, RoomRef

MAX_ANSWER_BYTES: Final = 100 * 1024 * 1024
"""Of a state, and as much again of its auth chains."""
MAX_ANSWERS_AT_ONCE: Final = 4
"""So many states are read at once: one of a large room takes a hundred megabytes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _KeptMembers:
    """Which members stay in a state where they may be left out."""

    naming: frozenset[Key]
    """The state that gives a room its name."""
    own: int | None
    """Who joins."""
    heroes: frozenset[int]
    """Who stands for a room without a name."""

    def of(self, entries: StateEntries) -> StateEntries:
        """The state without the other members."""
        kept = self.heroes if self.naming.isdisjoint(entries) else frozenset[int]()
        return {
            key: nid
            for key, nid in entries.items()
            if key[0] != MEMBER_TYPE_NID or key[1] == self.own or key[1] in kept
        }


class ResidentRooms:
    """Lets users of other servers in and out.

    All raise NotFound for a room that this server is not in, Forbidden where the room's server ACL or the
    authorization rules refuse, and for users of another server than the one that asks.
    """

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        persister: Persister,
        gate: PduGate,
        incoming: IncomingEvents,
        events: ServedEvents,
        access: ServerAccess,
        own: OwnKeys,
        clock: Clock,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._persister = persister
        self._gate = gate
        self._incoming = incoming
        self._events = events
        self._access = access
        self._own = own
        self._server_name = own.server_name
        self._clock = clock
        self._turns = asyncio.Semaphore(MAX_ANSWERS_AT_ONCE)

    async def make_join(
        self, origin: ServerName, room_id: RoomId, user_id: UserId, versions: Collection[str]
    ) -> JsonObject:
        """A template for the join of a user. `versions`: the room versions that its server speaks.

        Raises IncompatibleRoomVersion, UnableToAuthoriseJoin, UnableToGrantJoin.
        Source: Server-Server API, GET /_matrix/federation/v1/make_join/{roomId}/{userId}.
        """
        _check_user(origin, user_id)
        room = await self._room(origin, room_id)
        if room.version.version not in versions:
            raise IncompatibleRoomVersion(room.version.version)

        def decide(head: RoomHead, helpers: Helpers | None) -> JsonObject:
            content: JsonObject = {"membership": "join"}
            if is_restricted(head, user_id):
                if helpers is None:
                    raise NeedsHelpers(allowed_rooms(head))
                content[AUTHORISER] = authoriser(head, helpers, self._server_name)
            return self._template(head, user_id, content)

        return await self._consider_join(room, user_id, decide)

    async def make_leave(self, origin: ServerName, room_id: RoomId, user_id: UserId) -> JsonObject:
        """A template for a user who leaves, rejects an invite or retracts a knock.

        Source: Server-Server API, GET /_matrix/federation/v1/make_leave/{roomId}/{userId}.
        """
        _check_user(origin, user_id)
        room = await self._room(origin, room_id)
        return await self._consider(room, lambda head: self._template(head, user_id, {"membership": "leave"}))

    async def send_join(
        self, origin: ServerName, room_id: RoomId, event_id: EventId, event: JsonObject, *, omit_members: bool
    ) -> bytes:
        """Store a join and tell its server the state before it: the JSON of the answer.

        Where one of our users lets the joining one in, that is checked once more, and signed by us.
        `omit_members`: without the members, but for those whose names stand for the room.
        Raises InvalidParam for an event that is no such join, or was not signed as it has to be.
        Source: Server-Server API, PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}.
        """
        _check_membership(origin, room_id, event, "join")
        room = await self._room(origin, room_id)
        is_authorised_here = self._is_authorised_here(room.version, event)
        if is_authorised_here:
            event = self._with_our_signature(room.version, event)
        pdu = await self._verified(room, event_id, event)
        if is_authorised_here:
            await self._check_conditions(room, pdu)
        await self._add(room, pdu)
        async with self._turns:
            return await self._join_answer(room, pdu, omit_members=omit_members)

    async def send_leave(
        self, origin: ServerName, room_id: RoomId, event_id: EventId, event: JsonObject
    ) -> None:
        """Store that a user has left.

        Raises InvalidParam for an event that is no such leave, or was not signed as it has to be.
        Source: Server-Server API, PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}.
        """
        _check_membership(origin, room_id, event, "leave")
        room = await self._room(origin, room_id)
        await self._add(room, await self._verified(room, event_id, event))

    async def _room(self, origin: ServerName, room_id: RoomId) -> RoomRef:
        """A room that this server is in, and the other one may take part in."""
        own_nid = await self._dictionaries.atoms.nid(self._server_name)
        async with self._database.connection() as tx:
            room = await shared_rooms.find_one(tx, room_id, own_nid)
        if room is None or not room.is_resident:
            raise _not_here(room_id)
        await self._access.check_acl(origin, room_id)
        return room.ref

    async def _consider(self, room: RoomRef, decide: Callable[[RoomHead], T]) -> T:
        try:
            return await self._persister.consider(room.room_id, decide)
        except ProtocolError as error:
            raise as_answer(error) from None
        except UnknownRoom:
            raise _not_here(room.room_id) from None

    async def _consider_join(
        self, room: RoomRef, user_id: UserId, decide: Callable[[RoomHead, Helpers | None], T]
    ) -> T:
        """What a pure function says about a join, which may need to know who can help with it."""
        try:
            return await self._consider(room, lambda head: decide(head, None))
        except NeedsHelpers as needs:
            helpers = await load_helpers_of_stranger(
                self._database,
                await self._dictionaries.atoms.find_nid(user_id),
                room.room_id,
                self._server_name,
                await self._dictionaries.atoms.nid(self._server_name),
                needs.allowed,
            )
            return await self._consider(room, lambda head: decide(head, helpers))

    def _template(self, head: RoomHead, user_id: UserId, content: JsonObject) -> JsonObject:
        """An event of a user of another server as it would be now, if the rules allow it."""
        pdu = build_event(head, EventDraft("m.room.member", content, user_id), user_id, self._clock())
        event = {key: value for key, value in pdu.json.items() if key not in ("hashes", "event_id")}
        return {"room_version": head.version.version, "event": {**event, "origin": self._server_name}}

    def _is_authorised_here(self, version: RoomVersion, event: JsonObject) -> bool:
        """Whether a join says that one of our users lets someone in."""
        named = event["content"].get(AUTHORISER)
        return bool(version.restricted_join_rules) and (
            is_user_id(named) and server_name_of(named) == self._server_name
        )

    def _with_our_signature(self, version: RoomVersion, event: JsonObject) -> JsonObject:
        """The event with our signature, which leaves this server only once everything was checked."""
        try:
            return sign_event(version, event, self._server_name, self._own.current)
        except ProtocolError as error:
            raise InvalidParam(f"the event cannot take this server's signature: {error}") from None

    async def _verified(self, room: RoomRef, event_id: EventId, event: JsonObject) -> Pdu:
        [pdu] = await self._gate.verify(room.version, [event], pushed=True, event_ids=[event_id])
        if isinstance(pdu, RefusedPdu):
            raise InvalidParam(f"the event is refused: {pdu.reason}")
        return pdu

    async def _check_conditions(self, room: RoomRef, pdu: Pdu) -> None:
        """Check that the conditions of a restricted room are still met."""

        def decide(head: RoomHead, helpers: Helpers | None) -> None:
            if is_restricted(head, pdu.sender):
                if helpers is None:
                    raise NeedsHelpers(allowed_rooms(head))
                check_conditions(head, helpers)

        await self._consider_join(room, pdu.sender, decide)

    async def _add(self, room: RoomRef, pdu: Pdu) -> None:
        try:
            await self._incoming.add_fixed(room.room_id, pdu, fed=True)
        except UnknownRoom:
            raise _not_here(room.room_id) from None

    # -- the answer to a join

    async def _join_answer(self, room: RoomRef, pdu: Pdu, *, omit_members: bool) -> bytes:
        """The state before a join and its auth chains. Raises TooLarge."""
        kept = await self._members_to_keep(room, pdu.sender) if omit_members else None
        async with self._database.connection() as tx:
            row = await room_timeline.find(tx, room.nid, pdu.event_id)
            if row is None:  # it came before, and was refused
                raise Forbidden(f"{pdu.event_id} was refused before: begin again with make_join")
            entries = await room_state.whole(tx, row.state_before(room))
            servers = await room_servers.intervals(tx, {room.nid: row.seq}) if omit_members else {}
        state = list((entries if kept is None else kept.of(entries)).values())
        chain = await self._events.auth_chain(room, [row.nid, *state])
        if omit_members:
            chain = chain.difference(state)
        told = await self._events.json_of(room, state, MAX_ANSWER_BYTES)
        told_chain = await self._events.json_of(room, chain, MAX_ANSWER_BYTES)
        rest: JsonObject = {
            "event": pdu.json,
            "members_omitted": omit_members,
            "origin": self._server_name,
        }
        if omit_members:
            there = {one.server.name for one in servers[room.nid] if one.is_owed(row.seq)}
            rest["servers_in_room"] = sorted(there)
        parts = (b'{"auth_chain":[', b",".join(told_chain), b'],"state":[', b",".join(told), b"],")
        return b"".join((*parts, canonical_event(room.version, rest)[1:]))

    async def _members_to_keep(self, room: RoomRef, user_id: UserId) -> _KeptMembers:
        """Who stays where members are left out: who joins, and who stands for a room without a name."""
        types = await self._dictionaries.event_types.find_nids(("m.room.name", "m.room.canonical_alias"))
        no_key = await self._dictionaries.atoms.nid("")
        present = (Membership.JOIN, Membership.INVITE)
        async with self._database.connection() as tx:
            members = (await sync_reads.first_members(tx, [room.nid], present, MAX_HEROES + 1))[room.nid]
        heroes = [member for member in members if member != user_id][:MAX_HEROES]
        nids = await self._dictionaries.atoms.find_nids([user_id, *heroes])
        return _KeptMembers(
            frozenset((type_nid, no_key) for type_nid in types.values()),
            nids.pop(user_id, None),
            frozenset(nids.values()),
        )


def _check_user(origin: ServerName, user_id: UserId) -> None:
    if server_name_of(user_id) != origin:
        raise Forbidden(f"{user_id} is no user of {origin}, which signed the request")


def _check_membership(origin: ServerName, room_id: RoomId, event: JsonObject, membership: str) -> None:
    """Check that an event says of a user of the origin what it should, before anything is looked up."""
    sender, content = event.get("sender"), event.get("content")
    if event.get("type") != "m.room.member":
        raise InvalidParam("type is not m.room.member")
    if event.get("room_id") != room_id:
        raise InvalidParam(f"room_id is not {room_id}, which the path names")
    if not isinstance(content, dict) or content.get("membership") != membership:
        raise InvalidParam(f"content.membership is not {membership}")
    if not isinstance(sender, str) or not is_user_id(sender) or event.get("state_key") != sender:
        raise InvalidParam("state_key is not the user ID of the sender")
    if server_name_of(sender) != origin:
        raise InvalidParam(f"sender is no user of {origin}, which signed the request")


def _not_here(room_id: RoomId) -> NotFound:
    return NotFound(f"this server is not in {room_id}: ask one that is")
