"""Reading a room's state and its members.

Members read the current state; those who left read it as it was when they left.
Source: Client-Server API, "Getting events for a room".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from homeserver.errors import Forbidden, InvalidParam, NotFound
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import ClientEvents, read_pdus
from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.sync_tokens import RoomToken, SyncToken
from storage import memberships, room_state, room_timeline
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.memberships import Membership
from storage.packed_state import StateEntries
from storage.room_state import StateAt

CREATOR_JOINED: Final = 2
"""The version of a room's state in which its creator has joined; for rooms that were made here."""


@dataclass(frozen=True)
class MembersRequest:
    """Which members are asked for, in the specification's names; with both memberships, either may hold."""

    at: str | None = None
    membership: str | None = None
    not_membership: str | None = None

    def wants(self, membership: object) -> bool:
        """Whether a member of this membership is asked for."""
        if self.membership is None and self.not_membership is None:
            return True
        return membership == self.membership or (
            self.not_membership is not None and membership != self.not_membership
        )


@dataclass(frozen=True)
class RoomState:
    """Answers the endpoints that read a room's state. All raise Forbidden where it may not be read."""

    database: Database
    dictionaries: Dictionaries
    visibility: RoomVisibility
    client_events: ClientEvents
    incarnation: str

    async def state(self, requester: Requester, room_id: RoomId) -> list[JsonObject]:
        """All state events of a room."""
        async with self.database.connection() as tx:
            view, version = await self._readable(tx, requester, room_id)
            entries = await room_state.whole(tx, StateAt(view.room.nid, version))
            return await self._events(tx, view, entries)

    async def entry(self, requester: Requester, room_id: RoomId, event_type: str, state_key: str) -> Pdu:
        """The state event of one key. Raises NotFound where there is none."""
        type_nid = await self.dictionaries.event_types.find_nid(event_type)
        skey_nid = await self.dictionaries.atoms.find_nid(state_key)
        async with self.database.connection() as tx:
            view, version = await self._readable(tx, requester, room_id)
            if type_nid is not None and skey_nid is not None:
                key = (type_nid, skey_nid)
                entries = await room_state.of_keys(tx, StateAt(view.room.nid, version), [key])
                if key in entries:
                    rows = await room_timeline.by_nids(tx, [entries[key]])
                    return rows[entries[key]].pdu(view.room)
        raise NotFound("the room has no such state")

    async def members(
        self, requester: Requester, room_id: RoomId, request: MembersRequest
    ) -> list[JsonObject]:
        """The member events of a room, now or at a token.

        A token from before a room's first event stands for the room with its first member. Raises
        InvalidParam for a token that is none of ours.
        """
        async with self._at_one_moment() as tx:
            view, version = await self._readable(tx, requester, room_id)
            if request.at is not None:
                version = await self._version_at(tx, view, version, request.at)
            if version == view.head_seq and request.membership is not None and not request.not_membership:
                wanted = Membership.of(request.membership)
                nids = await memberships.event_nids(tx, view.room.nid, wanted)
                pdus = read_pdus(tx, view.room, nids)
            else:
                entries = await room_state.members(tx, StateAt(view.room.nid, version))
                if not entries:
                    entries = await room_state.members(tx, StateAt(view.room.nid, CREATOR_JOINED))
                pdus = read_pdus(tx, view.room, entries.values())
            now_ms = self.client_events.clock()
            return [
                self.client_events.state_event(pdu, now_ms)
                async for some in pdus
                for pdu in some
                if request.wants(pdu.membership)
            ]

    async def joined_members(self, requester: Requester, room_id: RoomId) -> dict[str, JsonObject]:
        """The profile of each user in a room; the requester has to be one of them."""
        async with self._at_one_moment() as tx:
            view = await self.visibility.view(tx, room_id, requester.user_id, requester.user_nid)
            if view is None or not view.is_joined:
                raise Forbidden("you are not in this room")
            nids = await memberships.event_nids(tx, view.room.nid, Membership.JOIN)
            return {
                UserId(pdu.key[1]): {
                    "display_name": _text(pdu.content.get("displayname")),
                    "avatar_url": _text(pdu.content.get("avatar_url")),
                }
                async for pdus in read_pdus(tx, view.room, nids)
                for pdu in pdus
            }

    async def joined_rooms(self, requester: Requester) -> list[RoomId]:
        """The rooms that the requester is in."""
        async with self.database.connection() as tx:
            return await memberships.rooms_of(tx, requester.user_nid, Membership.JOIN)

    @asynccontextmanager
    async def _at_one_moment(self) -> AsyncIterator[Transaction]:
        """For what is not read by version: nothing that came after the requester's view was taken."""
        async with (
            self.database.connection() as tx,
            tx.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield tx

    async def _readable(self, tx: Transaction, requester: Requester, room_id: RoomId) -> tuple[RoomView, int]:
        """The requester's view of a room, and the version of its state that the requester may read."""
        view = await self.visibility.view(tx, room_id, requester.user_id, requester.user_nid)
        if view is None or view.state_version is None:
            raise Forbidden("you are not in this room and never were")
        return view, view.state_version

    async def _version_at(self, tx: Transaction, view: RoomView, newest: int, token: str) -> int:
        """The version of the state at a token, but none that is newer than `newest`."""
        if (room_token := RoomToken.parse(token)) is not None:
            version = room_token.seq if room_token.sub > 0 else max(0, room_token.seq - 1)
        elif (sync_token := SyncToken.parse(token)) and sync_token.incarnation == self.incarnation:
            version = await room_timeline.seq_at(tx, view.room.nid, sync_token.pos)
        else:
            raise InvalidParam("at is no token of this server")
        if version >= newest:
            return newest
        if not view.history.shows(version):
            raise Forbidden("you may not see the room as it was then")
        return version

    async def _events(self, tx: Transaction, view: RoomView, entries: StateEntries) -> list[JsonObject]:
        now_ms = self.client_events.clock()
        return [
            self.client_events.state_event(pdu, now_ms)
            async for pdus in read_pdus(tx, view.room, entries.values())
            for pdu in pdus
        ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
