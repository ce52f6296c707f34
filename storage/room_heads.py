"""RoomHead: what a room looks like after its newest event, as far as this process has loaded it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg

from homeserver.protocol.event_hashes import decode_event_id, reference_hash_text
from homeserver.protocol.events import MAX_PREV_EVENTS, Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.room_versions import RoomVersion, room_version
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.event_codec import decode_pdu
from storage.event_flags import EventFlag

MAX_LOADED_EVENTS: Final = 200_000
"""How many state events all heads together keep; the rooms that were used longest ago go first."""

FIRST_KEYS: Final[tuple[StateKey, ...]] = (
    ("m.room.create", ""),
    ("m.room.power_levels", ""),
    ("m.room.join_rules", ""),
    ("m.room.history_visibility", ""),
)
"""What nearly every decision reads, loaded with the head."""


@dataclass(frozen=True, slots=True)
class RoomRef:
    """A room that this database knows: its number, its ID and its version."""

    nid: int
    room_id: RoomId
    version: RoomVersion


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event and its number."""

    nid: int
    pdu: Pdu


@dataclass(frozen=True, slots=True)
class Extremity:
    """A forward extremity: what the next event has in prev_events."""

    nid: int
    event_id: EventId
    depth: int
    seq: int
    is_sole: bool = True
    """Whether it was the only one when it came: the state after it is trunk(seq)."""
    hash: str | None = None
    """Its reference hash in base64, where references have one."""


class Needs(Exception):
    """A decision asked for state that its head has not loaded: load it and ask again."""

    def __init__(self, keys: Iterable[StateKey]) -> None:
        self.keys = frozenset(keys)
        super().__init__(f"{len(self.keys)} keys of the state are not loaded")


class NeedsWork(Exception):
    """A decision needs what has to be read or computed first: await `work`, then ask again."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        super().__init__("something has to be read or computed first")
        self.work = work


class NeedsCommit(Exception):
    """A decision needs a head that is committed, with nothing on top: ask it first in the next batch."""

    def __init__(self) -> None:
        super().__init__("the head has to be committed first")


class RoomHead:
    """The current state and the forward extremities of a room at one room_seq.

    A key of the state is loaded (an event, or known to be absent) or not loaded yet; asking for the latter
    raises Needs. A head over another one holds only what it adds.
    """

    __slots__ = ("_below", "_complete", "_state", "extremities", "room", "seq", "state_ver")

    def __init__(
        self,
        room: RoomRef,
        seq: int,
        extremities: tuple[Extremity, ...],
        *,
        state_ver: int = 0,
        state: dict[StateKey, StoredEvent | None] | None = None,
        complete: bool = False,
        below: RoomHead | None = None,
    ) -> None:
        self.room = room
        self.seq = seq
        self.state_ver = state_ver
        """The room_seq that changed the state last: the state is trunk(state_ver), and trunk(seq)."""
        self.extremities = extremities
        self._state = {} if state is None else state
        self._complete = complete
        self._below = below

    @classmethod
    def of_new_room(cls, room: RoomRef) -> RoomHead:
        """The head of a room that has no event yet."""
        return cls(room, 0, (), complete=True)

    @property
    def version(self) -> RoomVersion:
        """The room's version."""
        return self.room.version

    @property
    def prev_events(self) -> tuple[EventId, ...]:
        """The prev_events of the next event."""
        return tuple(extremity.event_id for extremity in self._joined)

    @property
    def prev_hashes(self) -> dict[EventId, str]:
        """The hashes that stand beside prev_events, where references have one."""
        return {
            extremity.event_id: extremity.hash for extremity in self._joined if extremity.hash is not None
        }

    @property
    def prev_nids(self) -> tuple[int, ...] | None:
        """The numbers of the next event's prev_events; None for exactly the event at `seq`."""
        joined = self._joined
        if len(joined) == 1 and joined[0].seq == self.seq:
            return None
        return tuple(extremity.nid for extremity in joined)

    @property
    def _joined(self) -> tuple[Extremity, ...]:
        """The extremities that the next event brings together: all, or the deepest that it may name."""
        if len(self.extremities) <= MAX_PREV_EVENTS:
            return self.extremities
        by_depth = sorted(self.extremities, key=lambda extremity: (extremity.depth, extremity.nid))
        return tuple(by_depth[-MAX_PREV_EVENTS:])

    @property
    def names_extremities(self) -> bool:
        """Whether the extremities have to be stored: they are other than just the event at `seq`."""
        return len(self.extremities) != 1 or self.extremities[0].seq != self.seq

    @property
    def is_committed(self) -> bool:
        """Whether nothing lies on top of what is committed."""
        head: RoomHead | None = self
        while head is not None and head._below is not None:
            if head.seq != head._below.seq:
                return False
            head = head._below
        return True

    @property
    def next_depth(self) -> int:
        """The depth of the next event: one more than its deepest parent's."""
        return 1 + max((extremity.depth for extremity in self.extremities), default=0)

    @property
    def loaded(self) -> int:
        """How many keys are loaded."""
        return len(self._state)

    def stored(self, key: StateKey) -> StoredEvent | None:
        """The current event of a key, None where there is none. Raises Needs."""
        head: RoomHead | None = self
        while head is not None:
            found = head._state.get(key, _NOT_LOADED)
            if found is not _NOT_LOADED:
                return found
            if head._complete:
                return None
            head = head._below
        raise Needs((key,))

    def event(self, event_type: str, state_key: str = "") -> Pdu | None:
        """The current event of a key, None where there is none. Raises Needs."""
        stored = self.stored((event_type, state_key))
        return None if stored is None else stored.pdu

    def has(self, pdu: Pdu) -> bool:
        """Whether this very Pdu is a current event that this head gave out."""
        if pdu.state_key is None:
            return False
        stored = self.stored(pdu.key)
        return stored is not None and stored.pdu is pdu

    def events(self, keys: Iterable[StateKey]) -> dict[StateKey, Pdu]:
        """The current events of keys, less those that have none. Raises Needs with all that are missing."""
        found: dict[StateKey, Pdu] = {}
        missing = []
        for key in keys:
            try:
                stored = self.stored(key)
            except Needs:
                missing.append(key)
            else:
                if stored is not None:
                    found[key] = stored.pdu
        if missing:
            raise Needs(missing)
        return found

    def overlay(self) -> RoomHead:
        """A head over this one, to be changed without touching it."""
        return RoomHead(self.room, self.seq, self.extremities, state_ver=self.state_ver, below=self)

    def add(self, pdu: Pdu, nid: int = 0) -> None:
        """Put one more event on top, which names the extremities as its prev_events."""
        joined = self._joined
        left = (
            () if joined is self.extremities else tuple(one for one in self.extremities if one not in joined)
        )
        changes = {} if pdu.state_key is None else {pdu.key: StoredEvent(nid, pdu)}
        self._put(pdu, nid, changes, left)

    def put(
        self,
        pdu: Pdu,
        nid: int,
        changes: Mapping[StateKey, StoredEvent | None],
        covers: Collection[EventId],
        *,
        is_extremity: bool = True,
    ) -> None:
        """Put one more live event into the room, which changes the state and takes extremities away."""
        left = tuple(extremity for extremity in self.extremities if extremity.event_id not in covers)
        self._put(pdu, nid, changes, left, is_extremity=is_extremity)

    def _put(
        self,
        pdu: Pdu,
        nid: int,
        changes: Mapping[StateKey, StoredEvent | None],
        left: tuple[Extremity, ...],
        *,
        is_extremity: bool = True,
    ) -> None:
        self.seq += 1
        if changes:
            self.state_ver = self.seq
            self._state.update(changes)
        if is_extremity:
            hash_ = reference_hash_text(self.version, pdu.json) if self.version.has_chosen_event_ids else None
            left = (*left, Extremity(nid, pdu.event_id, pdu.depth, self.seq, is_sole=not left, hash=hash_))
        self.extremities = left

    def absorb(self, overlay: RoomHead) -> None:
        """Take over what an overlay has added, now that it is stored."""
        self.seq = overlay.seq
        self.state_ver = overlay.state_ver
        self.extremities = overlay.extremities
        self._state |= overlay._state

    def learn(self, loaded: Mapping[StateKey, StoredEvent | None]) -> None:
        """Add what was loaded for keys as of a room_seq at or before this head's.

        What is known already is newer and stays.
        """
        for key, stored in loaded.items():
            self._state.setdefault(key, stored)


_NOT_LOADED: Final = StoredEvent(-1, None)  # type: ignore[arg-type]  # a mark, told apart by identity


class RoomHeads:
    """The heads that this process keeps; the newest state that it knows to be committed."""

    def __init__(self, database: Database, dictionaries: Dictionaries) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._heads: OrderedDict[RoomId, RoomHead] = OrderedDict()
        self._unborn: dict[RoomId, RoomHead] = {}
        """Heads of rooms that are being joined and have no live event, until the attempt ends."""
        self._sizes: dict[RoomId, int] = {}
        self._loaded = 0
        self._loading: dict[RoomId, object] = {}
        """Rooms that are being loaded; one that is kept or forgotten meanwhile leaves: too late."""

    def __len__(self) -> int:
        return len(self._heads)

    def cached(self, room_id: RoomId, *, joining: bool = False) -> RoomHead | None:
        """The head if it is in memory."""
        head = self._heads.get(room_id)
        if head is not None:
            self._heads.move_to_end(room_id)
        elif joining:
            head = self._unborn.get(room_id)
        return head

    def keep(self, head: RoomHead) -> None:
        """Remember a head, and forget those used longest ago where there is no room for all."""
        room_id = head.room.room_id
        self._loading.pop(room_id, None)
        self._heads[room_id] = head
        self._heads.move_to_end(room_id)
        self._loaded += head.loaded - self._sizes.get(room_id, 0)
        self._sizes[room_id] = head.loaded
        while self._loaded > MAX_LOADED_EVENTS:
            dropped, _ = self._heads.popitem(last=False)
            self._loaded -= self._sizes.pop(dropped)

    def forget(self, room_id: RoomId) -> None:
        """Drop a head: it is not, or may not be, the room's newest."""
        self._loading.pop(room_id, None)
        self._unborn.pop(room_id, None)
        if self._heads.pop(room_id, None) is not None:
            self._loaded -= self._sizes.pop(room_id)

    def forget_unborn(self, room_id: RoomId) -> None:
        """An attempt to join a room has ended; the next one finds another state."""
        self._unborn.pop(room_id, None)

    async def get(self, room_id: RoomId, *, joining: bool = False) -> RoomHead | None:
        """The head of a room, from memory or the database; None for a room that is not known here.

        A room without live events is known only to those who are `joining` it: it has the state at trunk(0).
        What is read is remembered, unless the room was forgotten meanwhile: it may be an older head. One that
        was kept meanwhile is as new or newer.
        """
        if (cached := self.cached(room_id, joining=joining)) is not None:
            return cached
        token = self._loading.setdefault(room_id, object())
        try:
            head = await self._read(room_id)
            if head is not None and self._loading.get(room_id) is token:
                if head.seq > 0:
                    self.keep(head)
                elif joining:
                    self._unborn[room_id] = head
        finally:
            if self._loading.get(room_id) is token:
                del self._loading[room_id]
        if head is not None and head.seq == 0 and not joining:
            head = None
        return self._heads.get(room_id) or head

    async def _read(self, room_id: RoomId) -> RoomHead | None:
        async with (
            self._database.connection() as tx,
            tx.transaction(isolation="repeatable_read", readonly=True),
        ):
            room = await tx.fetchrow("SELECT nid, version FROM rooms WHERE room_id = $1", room_id)
            if room is None:
                return None
            extremities = await tx.fetch(
                """
                SELECT room_seq, nid, event_id, depth, flags, json FROM events
                WHERE nid IN (SELECT event_nid FROM room_ext WHERE room_nid = $1) ORDER BY room_seq
                """,
                room["nid"],
            )
            newest = await tx.fetchrow(
                """
                SELECT room_seq, nid, event_id, depth, flags, json FROM events
                WHERE room_nid = $1 AND room_seq IS NOT NULL ORDER BY room_seq DESC, sub DESC LIMIT 1
                """,
                room["nid"],
            )
            state_ver = await tx.fetchval(
                "SELECT coalesce(max(ver), 0) FROM room_state_log WHERE room_nid = $1", room["nid"]
            )
        ref = RoomRef(room["nid"], room_id, room_version(room["version"]))
        if newest is None:
            return RoomHead(ref, 0, (), state_ver=state_ver)
        head = RoomHead(
            ref,
            newest["room_seq"],
            tuple(_extremity(ref, row) for row in (extremities or [newest])),
            state_ver=state_ver,
        )
        head.learn(await self.load_keys(head, FIRST_KEYS))
        return head

    async def load_keys(self, head: RoomHead, keys: Iterable[StateKey]) -> dict[StateKey, StoredEvent | None]:
        """Read the current events of keys, as of the head's room_seq."""
        keys = list(keys)
        loaded: dict[StateKey, StoredEvent | None] = dict.fromkeys(keys)
        types = await self._dictionaries.event_types.find_nids({event_type for event_type, _ in keys})
        state_keys = await self._dictionaries.atoms.find_nids({state_key for _, state_key in keys})
        by_nid = {
            (types[event_type], state_keys[state_key]): (event_type, state_key)
            for event_type, state_key in keys
            if event_type in types and state_key in state_keys
        }
        if not by_nid:
            return loaded
        async with self._database.connection() as tx:
            rows = await tx.fetch(
                """
                SELECT key.type_nid, key.skey_nid, events.nid, event_id, flags, json
                FROM unnest($3::int[], $4::bigint[]) AS key(type_nid, skey_nid)
                CROSS JOIN LATERAL (
                    SELECT event_nid FROM room_state_log AS log
                    WHERE log.room_nid = $1 AND log.type_nid = key.type_nid AND log.skey_nid = key.skey_nid
                      AND log.ver <= $2
                    ORDER BY log.ver DESC LIMIT 1
                ) AS newest
                JOIN events ON events.nid = newest.event_nid
                """,
                head.room.nid,
                head.seq,
                [type_nid for type_nid, _ in by_nid],
                [skey_nid for _, skey_nid in by_nid],
            )
        for row in rows:
            loaded[by_nid[row["type_nid"], row["skey_nid"]]] = stored_event(head.room, row)
        return loaded


def _extremity(room: RoomRef, row: asyncpg.Record) -> Extremity:
    hash_ = None
    if room.version.has_chosen_event_ids:
        hash_ = reference_hash_text(room.version, stored_event(room, row).pdu.json)
    return Extremity(
        row["nid"],
        decode_event_id(row["event_id"]),
        row["depth"],
        row["room_seq"],
        is_sole=bool(row["flags"] & EventFlag.SOLE),
        hash=hash_,
    )


def stored_event(room: RoomRef, row: asyncpg.Record) -> StoredEvent:
    """A row with nid, event_id, flags and json as an event; a redacted one comes pruned."""
    pdu = decode_pdu(room.version, room.room_id, row["event_id"], row["flags"], row["json"])
    return StoredEvent(row["nid"], pdu)
