"""EventBatch: the arguments of one call of the database function `persist`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomAlias, UserId
from homeserver.protocol.room_versions import RoomVersion
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_codec import encode_event
from storage.memberships import Membership
from storage.packed_state import REMOVED, Key
from storage.room_heads import RoomRef, StoredEvent
from storage.state_deltas import DeltaRow

_ARGUMENTS: Final = ", ".join(f"${number}" for number in range(1, 19))
PERSIST: Final = f"SELECT kind, a, b FROM persist({_ARGUMENTS})"  # noqa: S608 -- nothing but parameters

Rows: TypeAlias = list[tuple[Any, ...]]

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
    """The rows. Rooms come one after another, the events of each in the order of their room_seq."""

    def __init__(self, recv_ts: int) -> None:
        self._recv_ts = recv_ts
        self.events: list[tuple[RoomRef, NewEvent]] = []
        self.keys: list[TxnKey] = []
        self._rooms: Rows = []
        self._new_rooms: Rows = []
        self._event_rows: Rows = []
        self._promoted: list[int] = []
        self._from_outside: list[int] = []
        self._deltas: Rows = []
        self._states: Rows = []
        self._members: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self._arrived: dict[tuple[int, int], tuple[int, int]] = {}
        self._gone: dict[tuple[int, int], tuple[int, int]] = {}
        self._owed_extra: Rows = []
        self._txns: Rows = []
        self._reset: list[int] = []
        self._extremities: Rows = []
        self._redactions: Rows = []
        self._missing: Rows = []
        self._filled: Rows = []

    def __len__(self) -> int:
        return len(self.events)

    def add_room(self, room: RoomRef, expected_seq: int) -> None:
        """A room that events are added to, which must still be at `expected_seq`."""
        self._rooms.append((room.nid, expected_seq))

    def add_new_room(self, room: RoomRef, new_room: NewRoom, creator_nid: int) -> None:
        """A room that comes into being with its first events."""
        self._rooms.append((room.nid, None))
        self._new_rooms.append(
            (room.nid, room.room_id, room.version.version, new_room.alias, creator_nid, new_room.published)
        )

    def add_extremities(self, room: RoomRef, nids: Iterable[int]) -> None:
        """The forward extremities of a room are these now; none where that is just its newest event."""
        self._reset.append(room.nid)
        self._extremities += [(room.nid, nid) for nid in nids]

    def add_event(self, room: RoomRef, event: NewEvent) -> None:
        """An event of a room that was added before."""
        pdu = event.pdu
        stored_id = encode_event_id(pdu.event_id)
        self._event_rows.append((
            event.nid, room.nid, event.seq, pdu.depth, pdu.origin_server_ts, event.type_nid, event.sender_nid,
            event.skey_nid, event.state_ver, event.state_delta, event.flags, event.prev_nids, event.auth_nids,
            stored_id, encode_event(event.canonical),
        ))  # fmt: skip
        self.events.append((room, event))
        if event.is_promoted:
            self._promoted.append(event.nid)
        if not event.is_own:
            self._from_outside.append(event.nid)
        if event.delta is not None:
            self._deltas.append(event.delta)
        if event.fills_gap:
            self._filled.append((room.nid, stored_id))
        if event.seq is None:
            return
        self._missing += [(room.nid, encode_event_id(missing), event.nid) for missing in event.missing]
        if pdu.redacts is not None:
            self._redactions.append((room.nid, encode_event_id(pdu.redacts), event.nid, event.redacts_others))
        for change in event.changes:
            event_nid = REMOVED if change.now is None else change.now.nid
            self._states.append((room.nid, event.seq, *change.key, event_nid))
            if change.key[0] == MEMBER_TYPE_NID and not change.keeps_out:
                self._add_member(room, event.seq, change, event_nid)
        if event.rescinds_for is not None:
            self._owed_extra.append((room.nid, event.rescinds_for, event.seq, len(self)))

    def _add_member(self, room: RoomRef, seq: int, change: StateChange, event_nid: int) -> None:
        """What becomes of a user, and of the user's server. Whom a resolution takes out has left."""
        now = Membership.LEAVE if change.now is None else Membership.of(change.now.pdu.membership)
        was_in = change.before is not None and change.before.pdu.membership == "join"
        self._members[change.key[1], room.nid] = (change.server_nid, now.value, event_nid, len(self))
        if now is Membership.JOIN:  # after a join that broke off the state says so before its server is in
            self._arrived.setdefault((room.nid, change.server_nid), (seq, len(self)))
        elif was_in:
            self._gone[room.nid, change.server_nid] = (seq, len(self))

    def add_key(self, key: TxnKey, room: RoomRef, event: NewEvent) -> None:
        """The transaction that made an event."""
        self.keys.append(key)
        self._txns.append((key.device_nid, room.nid, key.what.encode(), key.txn_id.encode(), event.nid))

    def arguments(self) -> list[Any]:
        """The arguments of PERSIST; NULL stands for no rows, since there are mostly none."""
        arguments = [
            self._rooms,
            self._new_rooms,
            self._event_rows,
            self._promoted,
            self._from_outside,
            self._deltas,
            self._states,
            [(user, room, *row) for (user, room), row in self._members.items()],
            [(*key, *place) for key, place in self._arrived.items()],
            [(*key, *place) for key, place in self._gone.items()],
            self._owed_extra,
            self._txns,
            self._reset,
            self._extremities,
            self._redactions,
            self._missing,
            self._filled,
        ]
        return [self._recv_ts, *[argument or None for argument in arguments]]


def is_for_servers_only(pdu: Pdu) -> bool:
    """Whether clients are never shown an event, as far as that can be seen from itself."""
    if pdu.type not in _NOT_ALWAYS_SHOWN or pdu.state_key is not None:
        return False
    return pdu.type == DUMMY_TYPE or pdu.redacts is None
