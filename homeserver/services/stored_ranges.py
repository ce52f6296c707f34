"""Which part of a room a section shows, where that is read from the database.

A section begins where the reader's token stands and ends where the response does, or where the reader left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeserver.protocol.history_visibility import ViewHistory, Visibility, may_see, visibility_in
from homeserver.services.loaded_events import LoadedEvents
from homeserver.services.sync_viewer import Section, Viewer
from storage import sync_reads
from storage.database import Transaction
from storage.room_heads import RoomRef


@dataclass(frozen=True, slots=True)
class StoredRange:
    """The events of a section, a < room_seq <= b, and what its reader may know of them."""

    section: Section
    a: int
    b: int
    is_whole: bool
    """Whether all state is shown, not only what changed."""
    is_new: bool
    """Whether the reader was not in the room before: the timeline may then begin before `a`."""
    state_upto: int | None
    """The newest version of the state that the reader may know; None for one who did not join."""
    history: ViewHistory | None
    """How the reader's view changed up to `b`; None for one who was in the room all the time."""

    @property
    def room(self) -> RoomRef:
        """The room."""
        return self.section.room

    @property
    def timeline_from(self) -> int:
        """The timeline's events have a greater room_seq than this."""
        return 0 if self.is_new else self.a

    def shows(self, seq: int) -> bool:
        """Whether the reader may see the live event of a room_seq."""
        if self.history is None or self.history.shows(seq - 1):
            return True
        # An event that changes the view may also be seen for what it makes of it.
        before, after = self.history.view_at(seq - 1), self.history.view_at(seq)
        return may_see(before, after, joined_later=self.history.joined_after(seq - 1))

    def newest_visible(self, seq: int) -> int:
        """The newest room_seq, at or before this one, whose event may be visible; 0 where there is none."""
        while self.history is not None and seq > 0 and not self.shows(seq):
            seq = self.history.changed_at(seq - 1)  # what changed the view may be visible, all since is not
        return max(seq, 0)

    def was_in_room(self, seq: int) -> bool:
        """Whether the reader was in the room just before the event of a room_seq."""
        return self.history is None or self.history.view_at(seq - 1).membership == "join"

    def membership_after(self, seq: int) -> str:
        """The reader's membership after the event of a room_seq."""
        membership = "join" if self.history is None else self.history.view_at(seq).membership
        return membership if isinstance(membership, str) else "leave"


async def read_ranges(
    tx: Transaction, viewer: Viewer, sections: Sequence[Section], events: LoadedEvents
) -> list[StoredRange]:
    """The ranges of sections; those that certainly have nothing new are left out."""
    ends = [
        (section.room.nid, viewer.upto if section.kind == "join" else section.user_room.pos)
        for section in sections
    ]
    starts = [] if viewer.since is None else [(section.room.nid, viewer.since) for section in sections]
    seqs = await sync_reads.seqs_at(tx, [*ends, *starts])
    begins = seqs[len(ends) :] if starts else [0] * len(ends)
    ranges: list[StoredRange] = []
    others: list[tuple[Section, int, int]] = []
    for section, a, b in zip(sections, begins, seqs, strict=False):
        if section.kind == "join" and viewer.since is not None and section.user_room.pos <= viewer.since:
            if a < b or section.full_state:
                ranges.append(StoredRange(section, a, b, section.full_state, False, b, None))
        else:
            others.append((section, a, b))
    histories = await _histories(tx, viewer, others, events)
    for section, a, b in others:
        history = histories[section.room.nid]
        was_in = a > 0 and history.view.view_at(a).membership == "join"
        is_new = not was_in and any(version > a for version in history.joins)
        state_upto = b if section.kind == "join" else history.last_leave if was_in or is_new else None
        is_whole = state_upto is not None and (is_new or section.full_state)
        ranges.append(StoredRange(section, a, b, is_whole, is_new, state_upto, history.view))
    return ranges


@dataclass(frozen=True, slots=True)
class _History:
    """A reader's past in a room."""

    view: ViewHistory
    joins: Sequence[int]
    """The versions at which the reader joined."""
    last_leave: int | None
    """The version at which the reader's last stay ended."""


async def _histories(
    tx: Transaction, viewer: Viewer, sections: Sequence[tuple[Section, int, int]], events: LoadedEvents
) -> dict[int, _History]:
    """The reader's past in rooms, each up to the end of its section."""
    if not sections:
        return {}
    rooms = {section.room.nid: section.room for section, _, _ in sections}
    upto = {section.room.nid: end for section, _, end in sections}
    changes = await sync_reads.view_changes(tx, viewer.user_nid, upto)
    loaded = await events.load(tx, {nid: rooms[room_nid] for room_nid, _, _, nid in changes if nid})
    visibilities: dict[int, list[tuple[int, Visibility]]] = {nid: [] for nid in rooms}
    memberships: dict[int, list[tuple[int, object]]] = {nid: [] for nid in rooms}
    for room_nid, version, is_member, event_nid in changes:
        content = loaded[event_nid].content if event_nid else None
        if is_member:
            memberships[room_nid].append((version, None if content is None else content.get("membership")))
        else:
            visibilities[room_nid].append((version, visibility_in(content)))
    return {nid: _history(visibilities[nid], memberships[nid]) for nid in rooms}


def _history(
    visibilities: Sequence[tuple[int, Visibility]], memberships: Sequence[tuple[int, object]]
) -> _History:
    joins, last_leave, before = [], None, None
    for version, membership in memberships:
        if membership == "join" and before != "join":
            joins.append(version)
        elif membership != "join" and before == "join":
            last_leave = version
        before = membership
    return _History(ViewHistory(visibilities, memberships), joins, last_leave)
