"""Changing one's profile, and telling it to one's rooms.

Source: Client-Server API, "Profiles", "Events on Change of Profile Information".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from homeserver.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    MatrixError,
    ProfileTooLarge,
    UserDeactivated,
)
from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.clock import Clock
from homeserver.services.event_building import build_event
from homeserver.services.profiles import IN_MEMBER_EVENTS, Profiles, check_key
from storage import memberships, profiles
from storage.database import Database, Transaction
from storage.decisions import UnknownRoom
from storage.memberships import Membership
from storage.persister import Persister
from storage.room_heads import RoomHead

log = logging.getLogger(__name__)

MAX_PROFILE_BYTES: Final = 65536
"""A profile in canonical JSON is smaller than this."""

MAX_CHARS: Final = {"displayname": 256, "avatar_url": 1000, "m.tz": 255}
"""The fields that are texts, and how long."""

ROOMS_AT_ONCE: Final = 50
MAX_ROUNDS: Final = 10
"""How often a profile may change while it is being told before that is left to whoever changes it."""


@dataclass(frozen=True)
class ProfileChanges:
    """Changes the profiles of local users."""

    persister: Persister
    database: Database
    profiles: Profiles
    clock: Clock

    async def set_field(self, requester: Requester, user_id: UserId, key: str, value: Any) -> None:
        """Set a field of one's own profile to any JSON value; null is a value too.

        Raises Forbidden for another user's, KeyTooLarge, ProfileTooLarge, and BadJson or InvalidParam for a
        value that the field cannot have.
        """
        _check(requester, user_id, key)
        _check_value(key, value)
        async with self.database.transaction() as tx:
            profile = await self._hold(tx, requester)
            if len(canonical_json({**profile, key: value})) >= MAX_PROFILE_BYTES:
                raise ProfileTooLarge(f"a profile has less than {MAX_PROFILE_BYTES} bytes")
            await profiles.write(tx, requester.user_nid, key, value)
        await self._tell_rooms(requester, key)

    async def delete_field(self, requester: Requester, user_id: UserId, key: str) -> None:
        """Unset a field of one's own profile, whether it is set or not.

        Raises Forbidden for another user's, InvalidParam or KeyTooLarge for what cannot be a field.
        """
        _check(requester, user_id, key)
        async with self.database.transaction() as tx:
            await self._hold(tx, requester)
            await profiles.delete(tx, requester.user_nid, key)
        await self._tell_rooms(requester, key)

    async def _hold(self, tx: Transaction, requester: Requester) -> JsonObject:
        """The requester's profile, which nobody else changes until the transaction ends."""
        if not await profiles.lock(tx, requester.user_nid):
            raise UserDeactivated("this account has been deactivated")
        return await profiles.read(tx, requester.user_nid) or {}

    async def _tell_rooms(self, requester: Requester, key: str) -> None:
        """Bring the user's member events up to date in all rooms, if they repeat the field.

        Changes that overlap may reach a room in another order than the database. So each of them reads the
        profile again after its last event, and tells it once more where it is not what was told.
        """
        if key not in IN_MEMBER_EVENTS:
            return
        told = None
        for _ in range(MAX_ROUNDS):
            profile = (await self.profiles.in_member_events([requester.user_id]))[requester.user_id]
            if profile == told:
                return
            async with self.database.connection() as tx:
                room_ids = await memberships.rooms_of(tx, requester.user_nid, Membership.JOIN)
            await self._tell(requester.user_id, room_ids, profile)
            told = profile

    async def _tell(self, user_id: UserId, room_ids: Sequence[RoomId], profile: JsonObject) -> None:
        """Tell some rooms at a time; each worker takes the next room that is left."""
        left = iter(room_ids)

        async def work() -> None:
            for room_id in left:
                await self._tell_room(user_id, room_id, profile)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(ROOMS_AT_ONCE, len(room_ids))):
                tasks.create_task(work())

    async def _tell_room(self, user_id: UserId, room_id: RoomId, profile: JsonObject) -> None:
        """Send the user's member event with this profile, unless it says so; a room that fails is logged."""

        def decide(head: RoomHead) -> list[Pdu]:
            current = head.event("m.room.member", user_id)
            if current is None or current.membership != "join":
                return []
            said = {key: current.content[key] for key in IN_MEMBER_EVENTS if key in current.content}
            if said == profile:
                return []
            kept = {key: value for key, value in current.content.items() if key not in _NOT_KEPT}
            draft = EventDraft("m.room.member", {**kept, **profile}, user_id)
            return [build_event(head, draft, user_id, self.clock())]

        try:
            await self.persister.append(room_id, decide)
        except (ProtocolError, MatrixError, UnknownRoom) as error:
            log.warning("%s does not learn of the new profile of %s: %s", room_id, user_id, error)
        except Exception:
            log.exception("%s does not learn of the new profile of %s", room_id, user_id)


_NOT_KEPT: Final = frozenset({*IN_MEMBER_EVENTS, AUTHORISER})
"""What a member event does not pass on to the next: who let the user in stands for one join only."""


def _check(requester: Requester, user_id: UserId, key: str) -> None:
    check_key(key)
    if user_id != requester.user_id:
        raise Forbidden("this is another user's profile")


def _check_value(key: str, value: Any) -> None:
    most = MAX_CHARS.get(key)
    if most is None:
        return
    if not isinstance(value, str):
        raise BadJson(f"{key} is a string")
    if len(value) > most:
        raise InvalidParam(f"{key} has at most {most} characters")
