"""What a room is, worked out anew from its events alone, and compared with what servers have stored of it.

Slow and plain: every event has the whole state before and after it, and every resolution is that of whole
states. What one server never got another has: so the states come from the events of all servers together.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, TypeAlias

from homeserver.protocol.auth_events import CREATE, auth_state_keys
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import resolve
from homeserver.services.missing_events import parents_first
from storage import room_state, room_timeline
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomHeads, RoomRef
from storage.room_state import StateAt
from storage.room_timeline import TimelineRow

State: TypeAlias = Mapping[StateKey, EventId]
Resolver: TypeAlias = Callable[
    [RoomVersion, Sequence[State], Mapping[EventId, Pdu], Container[EventId]], State
]
"""What states come to, given the events of the room and those that are rejected."""

_REFUSED: Final = EventFlag.REJECTED | EventFlag.SOFT_FAILED


class Member(NamedTuple):
    """A row of `memberships`: `event_id` is None for a user whom a resolution took out of the room."""

    membership: Membership
    event_id: EventId | None
    pos: int


class Stay(NamedTuple):
    """A row of `room_servers`."""

    server_name: str
    from_seq: int
    to_seq: int | None


class KnownRoom(Protocol):
    """What one server, of whatever kind, knows of a room."""

    @property
    def server_name(self) -> ServerName: ...

    @property
    def version(self) -> RoomVersion: ...

    @property
    def events(self) -> Mapping[EventId, Pdu]:
        """All events that it has got, refused ones too."""

    @property
    def current(self) -> State:
        """The state of today."""

    @property
    def extremities(self) -> frozenset[EventId]: ...

    @property
    def servers(self) -> set[str]:
        """The servers that are in the room."""


@dataclass(frozen=True)
class StoredRoom:
    """All that a server of ours has stored of a room."""

    server_name: ServerName
    ref: RoomRef
    pdus: Mapping[EventId, Pdu]
    rows: Mapping[EventId, TimelineRow]
    before: Mapping[EventId, State]
    """The state before each event that has one."""
    trunk: Sequence[State]
    """The current state at each room_seq."""
    members: Mapping[str, Member]
    stays: Sequence[Stay]
    positions: Mapping[int, int]
    """Of the live events in the stream, by their room_seq."""
    extremities: frozenset[EventId]

    @property
    def version(self) -> RoomVersion:
        return self.ref.version

    @property
    def events(self) -> dict[EventId, Pdu]:
        """All but the markers, which no other server has."""
        return {
            event_id: pdu
            for event_id, pdu in self.pdus.items()
            if not self.rows[event_id].flags & EventFlag.HIDDEN
        }

    @property
    def current(self) -> State:
        return self.trunk[-1]

    @property
    def live(self) -> list[TimelineRow]:
        """The live events, in their order."""
        found = [row for row in self.rows.values() if row.seq and row.sub == 0]
        return sorted(found, key=lambda row: row.seq)

    @property
    def servers(self) -> set[str]:
        """The servers that are in the room."""
        return {stay.server_name for stay in self.stays if stay.to_seq is None}

    def joined(self) -> set[str]:
        """The users who are in the room."""
        return {user for user, member in self.members.items() if member.membership is Membership.JOIN}


async def load_room(database: Database, server_name: ServerName, room_id: RoomId) -> StoredRoom | None:
    """What a server has stored of a room; None where it was never in it."""
    dictionaries = Dictionaries(database)
    head = await RoomHeads(database, dictionaries).get(room_id)
    if head is None:
        return None
    ref = head.room
    async with database.connection() as tx:
        nids = await tx.fetch("SELECT nid FROM events WHERE room_nid = $1", ref.nid)
        by_nid = await room_timeline.by_nids(tx, [row["nid"] for row in nids])
        rows = {row.event_id: row for row in by_nid.values()}
        reader = _Reader(tx, ref, by_nid, dictionaries)
        return StoredRoom(
            server_name,
            ref,
            {event_id: row.pdu(ref) for event_id, row in rows.items()},
            rows,
            {
                event_id: await reader.state(row.state_before(ref))
                for event_id, row in rows.items()
                if row.has_state_before
            },
            [await reader.state(StateAt(ref.nid, ver)) for ver in range(head.seq + 1)],
            await reader.members(),
            await reader.stays(),
            await reader.positions(),
            frozenset(extremity.event_id for extremity in head.extremities),
        )


@dataclass(frozen=True)
class _Reader:
    """Reads the numbers of a room as words."""

    tx: Transaction
    ref: RoomRef
    rows: Mapping[int, TimelineRow]
    dictionaries: Dictionaries

    async def state(self, at: StateAt) -> State:
        entries = await room_state.whole(self.tx, at)
        return {self._key(nid): self.rows[nid].event_id for nid in entries.values()}

    def _key(self, nid: int) -> StateKey:
        return self.rows[nid].pdu(self.ref).key

    async def members(self) -> dict[str, Member]:
        query = """
            SELECT s, membership, event_nid, pos FROM memberships JOIN atoms ON atoms.nid = user_nid
            WHERE room_nid = $1
        """
        return {
            row["s"].decode(): Member(
                Membership(row["membership"]),
                self.rows[row["event_nid"]].event_id if row["event_nid"] else None,
                row["pos"],
            )
            for row in await self.tx.fetch(query, self.ref.nid)
        }

    async def stays(self) -> list[Stay]:
        query = """
            SELECT s, from_seq, to_seq FROM room_servers JOIN atoms ON atoms.nid = server_nid
            WHERE room_nid = $1
        """
        rows = await self.tx.fetch(query, self.ref.nid)
        return [Stay(row["s"].decode(), row["from_seq"], row["to_seq"]) for row in rows]

    async def positions(self) -> dict[int, int]:
        query = "SELECT room_seq, pos FROM stream WHERE kind = 1 AND room_nid = $1"
        return {row["room_seq"]: row["pos"] for row in await self.tx.fetch(query, self.ref.nid)}


def as_specified(
    version: RoomVersion, states: Sequence[State], events: Mapping[EventId, Pdu], rejected: Container[EventId]
) -> State:
    """How states are resolved."""
    return resolve(version, states, events, rejected=rejected)


@dataclass
class TrueRoom:
    """The states of a room as the specification has them, or whoever resolves states otherwise."""

    version: RoomVersion
    events: Mapping[EventId, Pdu]
    resolver: Resolver
    before: dict[EventId, State] = field(default_factory=dict)
    after: dict[EventId, State] = field(default_factory=dict)
    rejected: set[EventId] = field(default_factory=set)

    @classmethod
    def of(cls, rooms: Sequence[KnownRoom], resolver: Resolver = as_specified) -> TrueRoom:
        """The room of which several servers have stored something."""
        events = {event_id: pdu for room in rooms for event_id, pdu in room.events.items()}
        room = cls(rooms[0].version, events, resolver)
        for pdu in parents_first(events.values()):
            if all(parent in room.after for parent in pdu.prev_events):
                room._add(pdu)
        return room

    def resolve(self, states: Sequence[State]) -> State:
        """The state that some states come to."""
        if len(states) < 2:
            return states[0] if states else {}
        return self.resolver(self.version, states, self.events, self.rejected)

    def allows(self, pdu: Pdu, state: State) -> bool:
        """Whether the auth rules allow an event in a state."""
        keys = auth_state_keys(self.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        known = {key: self.events[state[key]] for key in keys if key in state}
        return why_refused(self.version, pdu, known) is None

    def _add(self, pdu: Pdu) -> None:
        before = self.resolve([self.after[parent] for parent in pdu.prev_events])
        by_auth_events = {self.events[event_id].key: event_id for event_id in pdu.auth_events}
        if self.version.room_id_is_create_hash and CREATE in before:
            by_auth_events[CREATE] = before[CREATE]
        is_rejected = (
            not self.rejected.isdisjoint(pdu.auth_events)
            or not self.allows(pdu, by_auth_events)
            or not self.allows(pdu, before)
        )
        if is_rejected:
            self.rejected.add(pdu.event_id)
        changes = pdu.state_key is not None and not is_rejected
        self.before[pdu.event_id] = before
        self.after[pdu.event_id] = {**before, pdu.key: pdu.event_id} if changes else before


class Moment(NamedTuple):
    """A server's room when an event has got its place."""

    row: TimelineRow
    extremities: frozenset[EventId]
    state: State


def check_room(stored: StoredRoom, true: TrueRoom) -> None:
    """Compare all that a server has stored of a room with what follows from its events."""
    for event_id, before in stored.before.items():
        row = stored.rows[event_id]
        if not row.flags & EventFlag.HIDDEN:
            assert differences(before, true.before[event_id]) == {}, f"the state before {event_id}"
            assert bool(row.flags & EventFlag.REJECTED) == (event_id in true.rejected), event_id
    moments = list(_moments(stored, true))
    for moment in moments:
        told = f"the state after {moment.row.event_id}, the event {moment.row.seq}"
        assert differences(stored.trunk[moment.row.seq], moment.state) == {}, told
    assert stored.extremities == moments[-1].extremities
    _check_refused(stored, true, moments)
    _check_members(stored)


def differences(found: State, wanted: State) -> dict[StateKey, tuple[EventId | None, EventId | None]]:
    """Where two states differ."""
    return {
        key: (found.get(key), wanted.get(key))
        for key in found.keys() | wanted.keys()
        if found.get(key) != wanted.get(key)
    }


def _moments(stored: StoredRoom, true: TrueRoom) -> Iterator[Moment]:
    """What the room was after each live event."""
    extremities: frozenset[EventId] = frozenset()
    named: set[EventId] = set()
    is_coming_back = False
    live = stored.live
    for number, row in enumerate(live):
        if row.flags & EventFlag.HIDDEN:  # it stands for what happened while the server was away
            yield Moment(row, extremities, true.before[live[number + 1].event_id])
            is_coming_back = True
            continue
        pdu = stored.pdus[row.event_id]
        assert not row.flags & _REFUSED and row.event_id not in true.rejected
        states = [*(true.after[one] for one in extremities), true.before[row.event_id]]
        assert is_coming_back or true.allows(pdu, true.resolve(states)), f"{row.event_id} is soft-failed"
        covered = extremities if is_coming_back else extremities & _behind(stored, pdu)
        is_late = row.event_id in named and covered != extremities
        extremities = (extremities - covered) | (frozenset() if is_late else {row.event_id})
        named.update(pdu.prev_events)
        is_coming_back = False
        yield Moment(row, extremities, true.resolve([true.after[one] for one in extremities]))


def _behind(stored: StoredRoom, pdu: Pdu) -> set[EventId]:
    """The parents of an event, and those that it reaches through refused ones."""
    found: set[EventId] = set()
    ahead = list(pdu.prev_events)
    for event_id in ahead:  # grows as it is walked
        if event_id not in found:
            found.add(event_id)
            if event_id in stored.rows and stored.rows[event_id].flags & _REFUSED:
                ahead += stored.pdus[event_id].prev_events
    return found


def _check_refused(stored: StoredRoom, true: TrueRoom, moments: Sequence[Moment]) -> None:
    """An event that was soft-failed was not allowed at some time after its parents had come."""
    for event_id, row in stored.rows.items():
        if not row.flags & EventFlag.SOFT_FAILED:
            continue
        pdu = stored.pdus[event_id]
        since = max((stored.rows[parent].seq for parent in pdu.prev_events), default=0)
        tried = {moment.extremities for moment in moments if moment.row.seq >= since}
        before = true.before[event_id]
        assert any(
            not true.allows(pdu, true.resolve([*(true.after[one] for one in extremities), before]))
            for extremities in tried
        ), f"{event_id} was never to be soft-failed"


def _check_members(stored: StoredRoom) -> None:
    """Rows of members and of servers follow the trunk, but that moves no user of the server into a room."""
    members: dict[str, Member] = {}
    _follow(stored, members, {}, stored.trunk[0], None)
    history = [_servers(stored, members)]
    for (before, after), row in zip(pairwise(stored.trunk), stored.live, strict=True):
        _follow(stored, members, before if row.seq > 1 else _others(stored, before), after, row)
        history.append(_servers(stored, members))
    assert stored.members == members
    assert stored.servers == history[-1]
    for seq, servers in enumerate(history[:-1], start=1):
        due = {stay.server_name for stay in stored.stays if _is_in(stay, seq)}
        assert servers <= due, f"who is owed the event {seq}"


def _is_in(stay: Stay, seq: int) -> bool:
    return stay.from_seq < seq and (stay.to_seq is None or seq <= stay.to_seq)


def _others(stored: StoredRoom, state: State) -> State:
    """A state without the users of the server: what it says of them is published with the join."""
    return {key: one for key, one in state.items() if not _is_own(stored, key)}


def _is_own(stored: StoredRoom, key: StateKey) -> bool:
    return key[0] == "m.room.member" and key[1].partition(":")[2] == stored.server_name


def _follow(
    stored: StoredRoom, members: dict[str, Member], before: State, after: State, row: TimelineRow | None
) -> None:
    """What becomes of members when an event has changed the state; without a row the state is that before."""
    for key in differences(before, after):
        if key[0] != "m.room.member" or (row is None and _is_own(stored, key)):
            continue
        event_id = after.get(key)
        now = Membership.LEAVE if event_id is None else Membership.of(stored.pdus[event_id].membership)
        was = members.get(key[1])
        is_moved = row is not None and event_id != row.event_id and row.seq > 1
        comes_in = now is Membership.JOIN and (was is None or was.membership is not Membership.JOIN)
        if not (is_moved and comes_in and _is_own(stored, key)):
            members[key[1]] = Member(now, event_id, 0 if row is None else stored.positions[row.seq])


def _servers(stored: StoredRoom, members: Mapping[str, Member]) -> set[str]:
    return {
        user.partition(":")[2] for user, member in members.items() if member.membership is Membership.JOIN
    }
