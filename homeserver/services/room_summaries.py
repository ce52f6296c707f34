"""How many members a room has, and whose names stand for one that has no name.

Source: Client-Server API, "Syncing" (`RoomSummary`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeserver.protocol.events import StateKey
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.loaded_events import LoadedEvents
from homeserver.services.single_flight import SingleFlight
from storage import sync_reads
from storage.database import Database, Transaction
from storage.memberships import Membership
from storage.room_heads import RoomRef
from storage.stream import StreamEvent
from storage.sync_reads import StateQuestion

MAX_HEROES: Final = 5
MAX_REMEMBERED: Final = 50_000

_NAMES: Final[Mapping[StateKey, str]] = {("m.room.name", ""): "name", ("m.room.canonical_alias", ""): "alias"}
"""The state that names a room, each with the key of its content that does."""
_NEWEST: Final = 2**62


@dataclass(frozen=True, slots=True)
class RoomSummary:
    """A room's summary, the same for all its members but for leaving out the reader."""

    joined: int
    invited: int
    candidates: Sequence[str] | None
    """Who may stand for the room, the first first; None for a room with a name."""

    def heroes(self, user_id: str) -> list[str]:
        """The users who stand for the room in the eyes of this one."""
        return [hero for hero in self.candidates or () if hero != user_id][:MAX_HEROES]

    def json(self, user_id: str) -> JsonObject:
        """The summary as a member gets it."""
        summary: JsonObject = {
            "m.joined_member_count": self.joined,
            "m.invited_member_count": self.invited,
        }
        if self.candidates is not None:
            summary["m.heroes"] = self.heroes(user_id)
        return summary


def changes_summary(event_type: str) -> bool:
    """Whether state of this type may change a room's summary."""
    return event_type == "m.room.member" or (event_type, "") in _NAMES


class RoomSummaries:
    """Makes summaries and keeps them until they change. Must listen to the stream."""

    def __init__(self, database: Database, events: LoadedEvents) -> None:
        self._database = database
        self._events = events
        self._kept: BoundedCache[int, RoomSummary] = BoundedCache(MAX_REMEMBERED)
        self._loading: SingleFlight[tuple[int, int], RoomSummary] = SingleFlight()
        self._changed_meanwhile: list[set[int]] = []
        self._changes = 0

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Forget the summaries of rooms in which something changed that they say."""
        for event in events:
            redaction = event.stored.pdu.type == "m.room.redaction"
            if redaction or any(changes_summary(change.name[0]) for change in event.changes):
                self._changes += 1
                self._kept.drop(event.room.nid)
                for changed in self._changed_meanwhile:
                    changed.add(event.room.nid)

    async def of(self, rooms: Collection[RoomRef]) -> dict[int, RoomSummary]:
        """The summaries of rooms by their numbers, as of the stream's position or later.

        Takes a connection of its own: none must be held meanwhile.
        """
        found: dict[int, RoomSummary] = {}
        missing = []
        for room in rooms:
            kept = self._kept.get(room.nid)
            if kept is None:
                missing.append(room)
            else:
                found[room.nid] = kept
        if len(missing) == 1:  # all members wait for the same, when one comes or goes
            [room] = missing
            key = room.nid, self._changes
            found[room.nid] = await self._loading.do(key, lambda: self._load_one(room))
        elif missing:
            found |= await self._load(missing)
        return found

    async def _load_one(self, room: RoomRef) -> RoomSummary:
        return (await self._load([room]))[room.nid]

    async def _load(self, rooms: Sequence[RoomRef]) -> dict[int, RoomSummary]:
        changed: set[int] = set()
        self._changed_meanwhile.append(changed)
        try:
            found = await self._read(rooms)
        finally:
            self._changed_meanwhile.remove(changed)
        for room_nid, summary in found.items():
            if room_nid not in changed:
                self._kept.put(room_nid, summary, 1)
        return found

    async def _read(self, rooms: Sequence[RoomRef]) -> dict[int, RoomSummary]:
        nids = [room.nid for room in rooms]
        async with self._database.connection() as tx:
            counts = await sync_reads.member_counts(tx, nids)
            by_question = await sync_reads.current_events(
                tx, [StateQuestion(nid, _NEWEST, *key) for nid in nids for key in _NAMES]
            )
            by_nid = {room.nid: room for room in rooms}
            naming = await self._events.load(
                tx, {nid: by_nid[question.room_nid] for question, nid in by_question.items()}
            )
            named = {
                question.room_nid
                for question, nid in by_question.items()
                if _is_text(naming[nid].content.get(_NAMES[question.event_type, question.state_key]))
            }
            unnamed = [nid for nid in nids if nid not in named]
            candidates = await self._candidates(tx, unnamed) if unnamed else {}
        return {nid: RoomSummary(*counts.get(nid, (0, 0)), candidates.get(nid)) for nid in nids}

    async def _candidates(self, tx: Transaction, room_nids: Sequence[int]) -> dict[int, list[str]]:
        """Those who are there or invited; where nobody is but one, also those who are gone."""
        present = (Membership.JOIN, Membership.INVITE)
        found = await sync_reads.first_members(tx, room_nids, present, MAX_HEROES + 1)
        lonely = [nid for nid, users in found.items() if len(users) <= 1]
        if lonely:
            gone = (Membership.LEAVE, Membership.BAN)
            for nid, users in (await sync_reads.first_members(tx, lonely, gone, MAX_HEROES)).items():
                found[nid] += users
        return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""
