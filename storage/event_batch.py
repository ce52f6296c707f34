"""EventBatch: the arguments of one call of the database function `persist`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomAlias, UserId
from homeserver.protocol.room_versions import RoomVersion
from storage.event_codec import CODEC, encode_event
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomRef, StoredEvent

_ARGUMENTS: Final = ", ".join(f"${number}" for number in range(1, 49))
PERSIST: Final = f"SELECT kind, a, b FROM persist({_ARGUMENTS})"  # noqa: S608 -- nothing but parameters

LOCAL_FLAGS: Final = CODEC | EventFlag.SOLE | EventFlag.FED | EventFlag.UNSIGNED
"""An event of a local user on the only extremity: other servers are owed it, and it is signed later."""


@dataclass(frozen=True, slots=True)
class TxnKey:
    """What makes a request the same: the device, the room, endpoint and event type, and the client's ID."""

    device_nid: int
    room_id: str
    what: str
    txn_id: str


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event on top of a room's head, with the numbers that its row needs."""

    nid: int
    seq: int
    pdu: Pdu
    canonical: bytes
    """The event in canonical JSON."""
    type_nid: int
    sender_nid: int
    skey_nid: int | None
    auth_nids: tuple[int, ...] | None
    """Of state events only."""
    replaces: StoredEvent | None
    """The event that was current for this key before."""


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
        self._rooms: tuple[list[int], list[int]] = ([], [])
        self._new_rooms: tuple[list[Any], ...] = ([], [], [], [], [], [])
        self._event_columns: tuple[list[Any], ...] = tuple([] for _ in range(15))
        self._links: list[int] = []
        self._states: tuple[list[int], ...] = ([], [], [], [], [])
        self._members: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._txns: tuple[list[Any], ...] = ([], [], [], [], [])
        self._redactions: tuple[list[Any], ...] = ([], [], [])

    def __len__(self) -> int:
        return len(self.events)

    def add_room(self, room: RoomRef, expected_seq: int) -> None:
        """A room that events are added to, which must still be at `expected_seq`."""
        self._rooms[0].append(room.nid)
        self._rooms[1].append(expected_seq)

    def add_new_room(self, room: RoomRef, new_room: NewRoom, creator_nid: int) -> None:
        """A room that comes into being with its first events."""
        self.add_room(room, 0)
        row = (
            room.nid, room.room_id, room.version.version, new_room.alias, creator_nid, new_room.published,
        )  # fmt: skip
        for column, value in zip(self._new_rooms, row, strict=True):
            column.append(value)

    def add_event(self, room: RoomRef, event: NewEvent) -> None:
        """An event of a room that was added before."""
        pdu = event.pdu
        auth_from = auth_to = None
        if event.auth_nids:
            auth_from = len(self._links) + 1
            self._links.extend(event.auth_nids)
            auth_to = len(self._links)
        row = (
            event.nid, room.nid, event.seq, pdu.depth, pdu.origin_server_ts, event.type_nid, event.sender_nid,
            event.skey_nid, LOCAL_FLAGS, None, None, auth_from, auth_to,
            encode_event_id(pdu.event_id), encode_event(event.canonical),
        )  # fmt: skip
        for column, value in zip(self._event_columns, row, strict=True):
            column.append(value)
        self.events.append((room, event))
        if (redacts := redacted_by(pdu)) is not None:
            row_of_redaction = (room.nid, encode_event_id(redacts), event.nid)
            for redaction_column, part in zip(self._redactions, row_of_redaction, strict=True):
                redaction_column.append(part)
        if event.skey_nid is not None:
            row_of_state = (room.nid, event.seq, event.type_nid, event.skey_nid, event.nid)
            for state_column, number in zip(self._states, row_of_state, strict=True):
                state_column.append(number)
            if pdu.type == "m.room.member":
                membership = Membership.of(pdu.membership)
                self._members[event.skey_nid, room.nid] = (membership.value, event.nid, len(self))

    def add_key(self, key: TxnKey, room: RoomRef, event: NewEvent) -> None:
        """The transaction that made an event."""
        self.keys.append(key)
        row = (key.device_nid, room.nid, key.what.encode(), key.txn_id.encode(), event.nid)
        for column, value in zip(self._txns, row, strict=True):
            column.append(value)

    def arguments(self) -> list[Any]:
        """The arguments of PERSIST."""
        # unnest fills up shorter columns with NULL: one that holds nothing else is sent empty
        columns = [
            column if any(value is not None for value in column) else [] for column in self._event_columns
        ]
        (nid, room, seq, depth, ts, type_nid, sender, skey, flags, prev_from, prev_to, auth_from, auth_to,
         event_id, json) = columns  # fmt: skip
        return [
            *self._rooms,
            *self._new_rooms,
            nid, room, seq, depth, ts, self._recv_ts, type_nid, sender, skey, [], [], flags,
            prev_from, prev_to, auth_from, auth_to, self._links, event_id, json,
            *self._states,
            [user_nid for user_nid, _ in self._members],
            [room_nid for _, room_nid in self._members],
            *(list(column) for column in zip(*self._members.values(), strict=True)),
            *([[], [], []] if not self._members else []),
            *self._txns,
            [], [], [],
            *self._redactions,
        ]  # fmt: skip


def redacted_by(pdu: Pdu) -> EventId | None:
    """The event that a redaction of a local user takes the content from; None for all other events."""
    if pdu.type != "m.room.redaction" or pdu.state_key is not None:
        return None
    redacts = pdu.content.get("redacts")
    return EventId(redacts) if isinstance(redacts, str) else None
