"""Upgrading rooms: another room, of another version, takes the place of one.

The new room is there, with all that it gets, before the old one names it; only after that aliases and the
directory lead to it. So whatever breaks off in between, nobody is sent to a room that is not ready. Who asks
again then finishes what was begun, or makes another room where the old one names none yet; the first stays a
room that nobody is sent to.
Source: Client-Server API, "Room Upgrades".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from homeserver.errors import BadRequest, NotFound, UnsupportedRoomVersion
from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.errors import ProtocolError, UnknownRoomVersion
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.room_versions import room_version
from homeserver.services.access_tokens import Requester
from homeserver.services.client_events import read_pdus
from homeserver.services.clock import Clock
from homeserver.services.event_building import as_answer, build_event
from homeserver.services.event_series import EventSeries, create_content
from homeserver.services.profiles import Profiles
from homeserver.services.single_flight import SingleFlight
from homeserver.services.upgrade_decisions import (
    Changed,
    Replaced,
    check_upgradable,
    events_for_changes,
    events_of_new_room,
    last_events,
    more_events_of_new_room,
)
from homeserver.services.upgraded_state import COPIED, LINKS, MENDED, OldRoom, Upgrade
from storage import memberships, published_rooms, room_aliases, room_state, room_timeline
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.dictionaries import Dictionaries
from storage.event_batch import NewRoom
from storage.memberships import Membership
from storage.persister import Persister
from storage.room_heads import RoomHead
from storage.room_state import StateAt

EVENTS_AT_ONCE: Final = 200
"""A room that gets more events gets them by several decisions: each keeps the persister busy."""

MAX_LOOKS: Final = 5
"""How often a room is looked at again that has changed while the new one was made."""


@dataclass(frozen=True)
class RoomUpgrades:
    """Upgrades rooms for local users."""

    persister: Persister
    database: Database
    dictionaries: Dictionaries
    profiles: Profiles
    clock: Clock
    """Never says the same time twice: equal create events would be one room."""
    _running: SingleFlight[tuple[object, ...], RoomId] = field(
        default_factory=SingleFlight, init=False, repr=False, compare=False
    )

    async def upgrade(
        self, requester: Requester, room_id: RoomId, new_version: str, additional_creators: Sequence[UserId]
    ) -> RoomId:
        """Replace a room by one of another version; the ID of the new one.

        Who asks the same again gets the same. Raises UnsupportedRoomVersion, NotFound for a room that is not
        known here, Forbidden for who may not send m.room.tombstone, BadRequest for a room that has been
        replaced otherwise, and TooLarge or BadJson for one whose power levels cannot be taken over.
        """
        try:
            version = room_version(new_version)
        except UnknownRoomVersion as error:
            raise UnsupportedRoomVersion(str(error)) from None
        upgrade = Upgrade(requester.user_id, version, additional_creators)
        key = (requester.user_id, room_id, new_version, *additional_creators)
        return await self._running.do(key, lambda: self._upgrade(room_id, upgrade))

    async def _upgrade(self, room_id: RoomId, upgrade: Upgrade) -> RoomId:
        try:
            head = await self.persister.consider(room_id, lambda head: check_upgradable(head, upgrade))
            new_room_id = await self._replace(await self._load(head), upgrade)
        except UnknownRoom:
            raise NotFound(f"{room_id} is not known here") from None
        except ProtocolError as error:
            raise as_answer(error) from None
        except Replaced as replaced:
            new_room_id = replaced.replacement
            if not await self._is_outcome(replaced, upgrade):
                raise BadRequest(f"{room_id} has been replaced by {new_room_id}: upgrade that one") from None
        await self._move_directory(room_id, new_room_id)
        return new_room_id

    async def _load(self, head: RoomHead) -> OldRoom:
        """What a room hands down, as of a head; its bans and aliases as of now."""
        room, seq = head.room, head.seq
        types = await self.dictionaries.event_types.find_nids([*COPIED, *MENDED, *LINKS])
        links = {types[name] for name in LINKS if name in types}
        no_state_key = await self.dictionaries.atoms.nid("")
        async with self.database.connection() as tx:
            entries = await room_state.except_members(tx, StateAt(room.nid, seq))
            wanted = [
                nid
                for (type_nid, skey_nid), nid in entries.items()
                if type_nid in types.values() and (skey_nid == no_state_key or type_nid in links)
            ]
            state = [pdu async for pdus in read_pdus(tx, room, wanted) for pdu in pdus]
            banned = await memberships.event_nids(tx, room.nid, Membership.BAN)
            bans = [pdu async for pdus in read_pdus(tx, room, banned) for pdu in pdus]
            aliases = await room_aliases.of_room(tx, room.room_id)
            newest = await room_timeline.read_backwards(
                tx, room.nid, (0, room_timeline.FIRST), (seq, room_timeline.AFTER), 1
            )
        last = newest[0].event_id if newest else None
        return OldRoom(room, seq, {pdu.key: pdu for pdu in state}, bans, aliases, last)

    async def _replace(self, old: OldRoom, upgrade: Upgrade) -> RoomId:
        """Make the new room, then say in the old one that it has been replaced.

        Where that is refused, the new room is left again: nobody was told of it.
        """
        drafts = list(upgrade.drafts(old))
        began = self.clock()
        new_room_id = await self._begin(old, upgrade, drafts[:EVENTS_AT_ONCE], began)
        try:
            for start in range(EVENTS_AT_ONCE, len(drafts), EVENTS_AT_ONCE):
                part = drafts[start : start + EVENTS_AT_ONCE]
                await self.persister.append(
                    new_room_id,
                    partial(
                        more_events_of_new_room, upgrade=upgrade, drafts=part, origin_server_ts=began + start
                    ),
                )
            await self._name_successor(old, new_room_id, upgrade)
        except (ProtocolError, Replaced):
            leave = EventDraft("m.room.member", {"membership": "leave"}, upgrade.upgrader)
            await self.persister.append(
                new_room_id, lambda head: [build_event(head, leave, upgrade.upgrader, self.clock())]
            )
            raise
        return new_room_id

    async def _begin(
        self, old: OldRoom, upgrade: Upgrade, drafts: Sequence[EventDraft], origin_server_ts: int
    ) -> RoomId:
        """Make the new room, with the first part of what it gets."""
        user_id = upgrade.upgrader
        profile = (await self.profiles.in_member_events([user_id]))[user_id]
        content = upgrade.creation_content(old.create, old.newest)
        room_ids: list[RoomId] = []

        def decide(head: RoomHead) -> list[Pdu]:
            series = EventSeries.of_new_room(head, user_id, content, profile, origin_server_ts)
            room_ids[:] = [series.pdus[0].room_id]
            return events_of_new_room(series, drafts)

        await self.persister.create(NewRoom(upgrade.version, user_id), decide)
        return room_ids[0]

    async def _name_successor(self, old: OldRoom, new_room_id: RoomId, upgrade: Upgrade) -> None:
        """Say in the old room what replaces it, once the new one has what has changed meanwhile.

        A room that changes all the time is waited for only so long.
        """
        for is_patient in (*[True] * MAX_LOOKS, False):
            decide = partial(
                last_events,
                old=old,
                new_room_id=new_room_id,
                upgrade=upgrade,
                clock=self.clock,
                is_patient=is_patient,
            )
            try:
                await self.persister.append(old.room.room_id, decide)
            except Changed:
                before, old = old, await self._load(await self.persister.newest_head(old.room.room_id))
                changes = upgrade.changes(before, old)
                await self.persister.append(
                    new_room_id,
                    partial(events_for_changes, upgrade=upgrade, drafts=changes, clock=self.clock),
                )
            else:
                return

    async def _is_outcome(self, replaced: Replaced, upgrade: Upgrade) -> bool:
        """Whether what has replaced a room came of this very upgrade, which was asked for before."""
        try:
            create = await self.persister.consider(replaced.replacement, lambda head: head.event(*CREATE))
        except UnknownRoom:
            return False
        if create is None or not replaced.tombstone.sender == create.sender == upgrade.upgrader:
            return False
        predecessor = create.content.get("predecessor")
        newest = predecessor.get("event_id") if isinstance(predecessor, dict) else None
        expected = upgrade.creation_content(replaced.create, newest)
        return create.content == create_content(upgrade.version, upgrade.upgrader, expected)

    async def _move_directory(self, room_id: RoomId, new_room_id: RoomId) -> None:
        """Let the aliases of this server, and its directory, lead to the new room instead of the old one."""
        async with self.database.transaction() as tx:
            await room_aliases.move(tx, room_id, new_room_id)
            await published_rooms.move(tx, room_id, new_room_id)
