"""One user's view of one room: which of its events the user may see, and which of its states.

It is built from two short lists, how the user's membership changed and how the history visibility changed,
and then filters whole pages of events. Nothing is read here; `room_visibility` loads what views are made of.
Source: Client-Server API, "Room History Visibility".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, TypeVar

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import View, ViewHistory, Visibility, may_see
from homeserver.protocol.identifiers import UserId
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_flags import EventFlag
from storage.packed_state import Key
from storage.room_heads import RoomRef

T = TypeVar("T")

NEWEST: Final = 2**62
"""A room_seq beyond all others."""


class JudgedEvent(Protocol):
    """What decides whether an event is shown, besides its content."""

    @property
    def nid(self) -> int:
        """Its number."""

    @property
    def seq(self) -> int:
        """Its room_seq; 0 for an event that has no place in the timeline."""

    @property
    def flags(self) -> int:
        """Bits of EventFlag."""

    @property
    def type_nid(self) -> int:
        """The number of its type."""

    @property
    def skey_nid(self) -> int | None:
        """The number of its state key; None for a message event."""

    @property
    def state_ver(self) -> int | None:
        """The version of the trunk that the state before it builds on; None for trunk(seq - 1)."""

    @property
    def state_delta(self) -> int | None:
        """The number of the differences to that."""


@dataclass(frozen=True, slots=True)
class Past:
    """How a reader's view of a room changed, and what follows from it. Versions are those of the trunk."""

    visibilities: tuple[tuple[int, Visibility], ...]
    memberships: tuple[tuple[int, object], ...]
    history: ViewHistory
    ranges: tuple[tuple[int, int], ...]
    """Where events may be visible: (first, last room_seq), ascending. None outside of them is shown: not even
    one that came while the room was closed to the reader, with a state of its own in which it was open."""
    removed_at: int | None
    """The version at which the reader's last stay ended; None for one who is in the room or never was."""

    @classmethod
    def of(
        cls,
        visibilities: Sequence[tuple[int, Visibility]] = (),
        memberships: Sequence[tuple[int, object]] = (),
    ) -> Self:
        """What follows from the two lists: (version, new value), ascending."""
        history = ViewHistory(visibilities, memberships)
        versions = sorted({version for version, _ in (*visibilities, *memberships)})
        return cls(
            tuple(visibilities),
            tuple(memberships),
            history,
            _ranges(history, versions),
            _removed_at(memberships),
        )

    def with_more(
        self, visibilities: Sequence[tuple[int, Visibility]], memberships: Sequence[tuple[int, object]]
    ) -> Past:
        """This and later changes; what changes nothing (a new display name) is left out."""
        if not visibilities and not memberships:
            return self
        return Past.of(_with_more(self.visibilities, visibilities), _with_more(self.memberships, memberships))

    def upto(self, version: int) -> Past:
        """What had happened by a version."""
        if all(changes[-1][0] <= version for changes in (self.visibilities, self.memberships) if changes):
            return self
        return Past.of(
            [change for change in self.visibilities if change[0] <= version],
            [change for change in self.memberships if change[0] <= version],
        )

    def without_memberships(self) -> Past:
        """The past of one who never had to do with the room."""
        return Past.of(self.visibilities)

    @property
    def size(self) -> int:
        """How many changes this holds."""
        return len(self.visibilities) + len(self.memberships)


@dataclass(frozen=True, slots=True)
class RoomView:
    """A user's view of a room, as of the event at `head_seq`.

    Whoever reads further must not read beyond `head_seq`: what came later is not judged.
    """

    room: RoomRef
    head_seq: int
    user_id: UserId
    user_nid: int
    past: Past
    visibility_key: Key
    """The key of m.room.history_visibility, in numbers."""

    @property
    def history(self) -> ViewHistory:
        """The view at every version of the room's state."""
        return self.past.history

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Where events may be visible: (first, last room_seq), ascending."""
        return self.past.ranges

    @property
    def removed_at(self) -> int | None:
        """The version at which the user's last stay ended; None for one who is in the room or never was."""
        return self.past.removed_at

    @property
    def membership(self) -> object:
        """What the user is in the room; None for one who never had to do with it, or forgot it."""
        return self.history.view_at(self.head_seq).membership

    @property
    def is_joined(self) -> bool:
        """Whether the user is in the room."""
        return self.membership == "join"

    @property
    def state_version(self) -> int | None:
        """The newest version of the room's state that the user may read; None for one who may read none.

        A member reads the current state, one who left reads it as it was then, and anyone that of a room
        which is readable by the world.
        """
        if self.is_joined:
            return self.head_seq
        if self.removed_at is not None:
            return self.removed_at
        world_readable = self.history.view_at(self.head_seq).visibility is Visibility.WORLD_READABLE
        return self.head_seq if world_readable else None

    def as_of(self, seq: int) -> RoomView:
        """The view as it was after the event at an earlier room_seq."""
        return replace(self, head_seq=seq, past=self.past.upto(seq))

    def newest_in_range(self, seq: int) -> int:
        """The newest room_seq, at or before this one, whose event may be visible; 0 where there is none."""
        for first, last in reversed(self.ranges):
            if first <= seq:
                return min(last, seq)
        return 0

    def membership_after(self, seq: int, event: Pdu | None = None) -> str:
        """What the user was after the event at a room_seq; `event`: another one, which follows that state."""
        view = self.history.view_at(seq)
        membership = (view if event is None else view.after(event, self.user_id)).membership
        return membership if isinstance(membership, str) else "leave"

    def may_change_view(self, event: JudgedEvent) -> bool:
        """Whether an event changes the visibility or the reader's own membership."""
        if event.skey_nid is None:
            return False
        key = (event.type_nid, event.skey_nid)
        return key in (self.visibility_key, (MEMBER_TYPE_NID, self.user_nid))

    def has_own_state(self, event: JudgedEvent) -> bool:
        """Whether an event must be judged by the state before it, which is not that of its arrival.

        Where that state shows the history to all members, whoever was one when the event came may see it.
        """
        if event.state_ver is None:
            return False
        return not event.flags & EventFlag.OPEN or self.history.view_at(event.seq - 1).membership != "join"

    def needs_content(self, event: JudgedEvent) -> bool:
        """Whether an event may change the view otherwise than the room's state changed with it."""
        changes_apart = event.state_ver is not None or event.flags & EventFlag.RESOLVED
        return bool(changes_apart) and self.may_change_view(event)

    def shows(self, event: JudgedEvent, own: View | None = None, content: Pdu | None = None) -> bool:
        """Whether the reader may see an event.

        `own`: the view in the state before the event, where it `has_own_state`; `content`: the event itself,
        where it `needs_content`. An event on a fork that arrived after the reader had left is judged by that:
        whoever has left gets nothing more, even if the event's sender had not heard of it.
        """
        if event.seq <= 0 or event.flags & EventFlag.NOT_FOR_CLIENTS:
            return False
        arrival, history = event.seq - 1, self.past.history
        if event.state_ver is None and history.shows(arrival):
            return True
        before, joined_later = history.view_at(arrival), history.joined_after(arrival)
        if own is not None:
            if before.membership == "join":
                joined_later = True
            elif not joined_later:
                own = View(own.visibility, before.membership)
            before = own
            if self.newest_in_range(event.seq) != event.seq:
                return False
        elif event.state_ver is not None and not self.has_own_state(event):
            return True
        if not self.may_change_view(event):
            after = before
        elif content is not None:
            after = before.after(content, self.user_id)
        else:
            after = self.history.view_at(event.seq)
        return may_see(before, after, joined_later=joined_later)


def _with_more(known: Sequence[tuple[int, T]], later: Sequence[tuple[int, T]]) -> list[tuple[int, T]]:
    changes = list(known)
    for version, value in later:
        if not changes or changes[-1][1] != value:
            changes.append((version, value))
    return changes


def _ranges(history: ViewHistory, versions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where a reader sees anything, by room_seq; exact for rooms without forks.

    Between two changes of the view the answer is the same for all events; the event that makes a change may
    be visible although those before it are not.
    """
    ranges: list[tuple[int, int]] = []

    def add(first: int, last: int) -> None:
        if last < max(first, 1):
            return
        if ranges and ranges[-1][1] >= first - 1:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((max(first, 1), last))

    for start, change in zip([-1, *versions], [*versions, NEWEST], strict=True):
        if history.shows(start):
            add(start + 1, change)
        elif change != NEWEST:
            before, after = history.view_at(change - 1), history.view_at(change)
            if may_see(before, after, joined_later=history.joined_after(change - 1)):
                add(change, change)
    return tuple(ranges)


def _removed_at(memberships: Sequence[tuple[int, object]]) -> int | None:
    """The version at which a user last stopped being joined; None for one who is joined or never was."""
    for (_, before), (version, after) in zip(reversed(memberships[:-1]), reversed(memberships), strict=False):
        if after == "join":
            return None
        if before == "join":
            return version
    return None
