"""EventBatch: the arguments of one call of the database function `persist`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomAlias, UserId, parse_event_id
from homeserver.protocol.room_versions import RoomVersion
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_codec import encode_event
from storage.links import Links
from storage.memberships import Membership
from storage.packed_state import REMOVED, Key
from storage.room_heads import RoomRef, StoredEvent
from storage.state_deltas import DeltaRow

_ARGUMENTS: Final = ", ".join(f"${number}" for number in range(1, 73))
PERSIST: Final = f"SELECT kind, a, b FROM persist({_ARGUMENTS})"  # noqa: S608 -- nothing but parameters

DUMMY_TYPE: Final = "org.matrix.dummy_event"
"""Of events that do nothing but bring forward extremities together."""
_NOT_ALWAYS_SHOWN: Final = frozenset({DUMMY_TYPE, "m.room.redaction"})


@dataclass(frozen=True, slots=True)
class TxnKey:
    """What makes a request the same: the device, the room, endpoint and event type, and the client's ID."""

    device_nid: int
    room_id: str
    what: str
    txn_id: str


class StateChange(NamedTuple):
    """A key of a room's current state that is another event now, or none."""

    key: Key
    name: StateKey
    """The key in words."""
    now: StoredEvent | None
    before: StoredEvent | None
    server_nid: int = 0
    """Of a member event: the user's server."""
    keeps_out: bool = False
    """Whether the state has the user in the room now, but the user stays out of it as far as we go."""


class NewEvent(NamedTuple):
    """An event of a room, with the numbers that its row needs."""

    nid: int
    seq: int | None
    """None for an event that gets no place in the timeline."""
    pdu: Pdu
    canonical: bytes
    """The event in canonical JSON."""
    type_nid: int
    sender_nid: int
    skey_nid: int | None
    auth_nids: tuple[int, ...] | None
    """Of state events only."""
    changes: tuple[StateChange, ...]
    """How the room's current state changes with it."""
    replaces: StoredEvent | None
    """The event that was current for its own key before."""
    flags: int
    prev_nids: tuple[int, ...] | None = None
    """None for exactly the live event before it."""
    state_ver: int | None = None
    """The state before it, None for trunk(seq - 1): a version of the trunk, ..."""
    state_delta: int | None = None
    """... and the number of the differences to that."""
    delta: DeltaRow | None = None
    """The row with those differences, if it may not be stored yet."""
    is_promoted: bool = False
    """Whether its row is there already, as that of an outlier."""
    is_own: bool = True
    """Whether a user of this server sent it just now."""
    missing: frozenset[EventId] = frozenset()
    """Those of its prev_events that are not here."""
    fills_gap: bool = False
    redacts_others: bool = False
    rescinds_for: int | None = None
    """The server of a user whose invite it withdraws."""


@dataclass(frozen=True, slots=True)
class NewRoom:
    """What is fixed of a room before its create event is built."""

    version: RoomVersion
    creator: UserId
    alias: RoomAlias | None = None
    """An alias of this server that comes into being with the room."""
    published: bool = False
    """Whether the published room directory lists it from the start."""


class EventBatch:
    """Rows as columns. Rooms come one after another, the events of each in the order of their room_seq."""

    def __init__(self, recv_ts: int) -> None:
        self._recv_ts = recv_ts
        self.events: list[tuple[RoomRef, NewEvent]] = []
        self.keys: list[TxnKey] = []
        self._rooms: tuple[list[Any], ...] = _columns(2)
        self._new_rooms: tuple[list[Any], ...] = _columns(6)
        self._event_columns: tuple[list[Any], ...] = _columns(17)
        self._links = Links()
        self._promoted: list[int] = []
        self._from_outside: list[int] = []
        self._deltas: tuple[list[Any], ...] = _columns(6)
        self._states: tuple[list[int], ...] = _columns(5)
        self._members: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self._arrived: dict[tuple[int, int], int] = {}
        self._gone: dict[tuple[int, int], int] = {}
        self._rescinded: tuple[list[int], ...] = _columns(3)
        self._txns: tuple[list[Any], ...] = _columns(5)
        self._reset: list[int] = []
        self._extremities: tuple[list[int], ...] = _columns(2)
        self._redactions: tuple[list[Any], ...] = _columns(4)
        self._missing: tuple[list[Any], ...] = _columns(3)
        self._filled: tuple[list[Any], ...] = _columns(2)

    def __len__(self) -> int:
        return len(self.events)

    def add_room(self, room: RoomRef, expected_seq: int) -> None:
        """A room that events are added to, which must still be at `expected_seq`."""
        _append(self._rooms, room.nid, expected_seq)

    def add_new_room(self, room: RoomRef, new_room: NewRoom, creator_nid: int) -> None:
        """A room that comes into being with its first events."""
        _append(self._rooms, room.nid, None)
        _append(
            self._new_rooms,
            room.nid, room.room_id, room.version.version, new_room.alias, creator_nid, new_room.published,
        )  # fmt: skip

    def add_extremities(self, room: RoomRef, nids: Iterable[int]) -> None:
        """The forward extremities of a room are these now; none where that is just its newest event."""
        self._reset.append(room.nid)
        for nid in nids:
            _append(self._extremities, room.nid, nid)

    def add_event(self, room: RoomRef, event: NewEvent) -> None:
        """An event of a room that was added before."""
        pdu = event.pdu
        prev_from, prev_to = (None, None) if event.prev_nids is None else self._links.add(event.prev_nids)
        auth_from, auth_to = (None, None) if event.auth_nids is None else self._links.add(event.auth_nids)
        stored_id = encode_event_id(pdu.event_id)
        _append(
            self._event_columns,
            event.nid, room.nid, event.seq, pdu.depth, pdu.origin_server_ts, event.type_nid, event.sender_nid,
            event.skey_nid, event.state_ver, event.state_delta, event.flags, prev_from, prev_to, auth_from,
            auth_to, stored_id, encode_event(event.canonical),
        )  # fmt: skip
        self.events.append((room, event))
        if event.is_promoted:
            self._promoted.append(event.nid)
        if not event.is_own:
            self._from_outside.append(len(self))
        if event.delta is not None:
            _append(self._deltas, *event.delta)
        if event.fills_gap:
            _append(self._filled, room.nid, stored_id)
        if event.seq is None:
            return
        for missing in event.missing:
            _append(self._missing, room.nid, encode_event_id(missing), event.nid)
        if (redacts := redacted_by(pdu)) is not None:
            _append(self._redactions, room.nid, encode_event_id(redacts), event.nid, event.redacts_others)
        for change in event.changes:
            event_nid = REMOVED if change.now is None else change.now.nid
            _append(self._states, room.nid, event.seq, *change.key, event_nid)
            if change.key[0] == MEMBER_TYPE_NID and not change.keeps_out:
                self._add_member(room, change, event_nid)
        if event.rescinds_for is not None:
            _append(self._rescinded, room.nid, event.rescinds_for, len(self))

    def _add_member(self, room: RoomRef, change: StateChange, event_nid: int) -> None:
        """What becomes of a user, and of the user's server. Whom a resolution takes out has left."""
        now = Membership.LEAVE if change.now is None else Membership.of(change.now.pdu.membership)
        was_in = change.before is not None and change.before.pdu.membership == "join"
        self._members[change.key[1], room.nid] = (change.server_nid, now.value, event_nid, len(self))
        if now is Membership.JOIN:  # after a join that broke off the state says so before its server is in
            self._arrived.setdefault((room.nid, change.server_nid), len(self))
        elif was_in:
            self._gone[room.nid, change.server_nid] = len(self)

    def add_key(self, key: TxnKey, room: RoomRef, event: NewEvent) -> None:
        """The transaction that made an event."""
        self.keys.append(key)
        _append(self._txns, key.device_nid, room.nid, key.what.encode(), key.txn_id.encode(), event.nid)

    def arguments(self) -> list[Any]:
        """The arguments of PERSIST; NULL stands for an empty array, since most of them are."""
        # unnest fills up shorter columns with NULL: one that holds nothing else is sent empty
        columns = [
            column if any(value is not None for value in column) else [] for column in self._event_columns
        ]
        (nid, room, seq, depth, ts, type_nid, sender, skey, state_ver, state_delta, flags, prev_from, prev_to,
         auth_from, auth_to, event_id, json) = columns  # fmt: skip
        members = [(user, room, *row) for (user, room), row in self._members.items()]
        arguments = [
            *self._rooms,
            *self._new_rooms,
            nid, room, seq, depth, ts, self._recv_ts, type_nid, sender, skey, state_ver, state_delta, flags,
            prev_from, prev_to, auth_from, auth_to, self._links.nids, event_id, json,
            self._promoted, self._from_outside,
            *self._deltas,
            *self._states,
            *_transposed(members, 6),
            *_transposed([(*key, index) for key, index in self._arrived.items()], 3),
            *_transposed([(*key, index) for key, index in self._gone.items()], 3),
            *self._rescinded,
            *self._txns,
            self._reset, *self._extremities,
            *self._redactions,
            *self._missing,
            *self._filled,
        ]  # fmt: skip
        return [None if argument == [] else argument for argument in arguments]


def is_for_servers_only(pdu: Pdu) -> bool:
    """Whether clients are never shown an event, as far as that can be seen from itself."""
    if pdu.type not in _NOT_ALWAYS_SHOWN or pdu.state_key is not None:
        return False
    return pdu.type == DUMMY_TYPE or redacted_by(pdu) is None


def redacted_by(pdu: Pdu) -> EventId | None:
    """The event that a redaction names as the one to take the content from; None for all other events."""
    if pdu.type != "m.room.redaction" or pdu.state_key is not None:
        return None
    redacts = pdu.content.get("redacts")
    return EventId(redacts) if isinstance(redacts, str) and _is_event_id(redacts) else None


def _is_event_id(text: str) -> bool:
    try:
        parse_event_id(text)
    except InvalidIdentifier:
        return False
    return True


def _columns(count: int) -> tuple[list[Any], ...]:
    return tuple([] for _ in range(count))


def _append(columns: tuple[list[Any], ...], *row: Any) -> None:
    for column, value in zip(columns, row, strict=True):
        column.append(value)


def _transposed(rows: Sequence[tuple[int, ...]], width: int) -> list[list[int]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
