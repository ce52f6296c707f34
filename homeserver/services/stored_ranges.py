"""Which part of a room a section shows, where that is read from the database.

A section begins where the reader's token stands and ends where the response does, or where the reader left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeserver.services.reader_views import RoomView
from homeserver.services.room_visibility import RoomVisibility
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
    view: RoomView
    """What the reader may see, as of `b`."""

    @property
    def room(self) -> RoomRef:
        """The room."""
        return self.section.room

    @property
    def timeline_from(self) -> int:
        """The timeline's events have a greater room_seq than this."""
        return 0 if self.is_new else self.a

    def was_in_room(self, seq: int) -> bool:
        """Whether the reader was in the room just before the event of a room_seq."""
        return self.view.history.view_at(seq - 1).membership == "join"


async def read_ranges(
    tx: Transaction, viewer: Viewer, sections: Sequence[Section], visibility: RoomVisibility
) -> list[StoredRange]:
    """The ranges of sections; those that certainly have nothing new are left out."""
    ends = [
        (section.room.nid, viewer.upto if section.kind == "join" else section.user_room.pos)
        for section in sections
    ]
    starts = [] if viewer.since is None else [(section.room.nid, viewer.since) for section in sections]
    seqs = await sync_reads.seqs_at(tx, [*ends, *starts])
    begins = seqs[len(ends) :] if starts else [0] * len(ends)
    shown = [
        (section, a, b)
        for section, a, b in zip(sections, begins, seqs, strict=False)
        if a < b or section.full_state or not _was_there_all_the_time(viewer, section)
    ]
    rooms = [section.room.room_id for section, _, _ in shown]
    views = await visibility.views(tx, rooms, viewer.user_id, viewer.user_nid)
    return [
        _range(viewer, section, a, b, view.as_of(b))
        for section, a, b in shown
        if (view := views.get(section.room.room_id)) is not None
    ]


def _was_there_all_the_time(viewer: Viewer, section: Section) -> bool:
    """Whether the reader has been in the room since its token."""
    return section.kind == "join" and viewer.since is not None and section.user_room.pos <= viewer.since


def _range(viewer: Viewer, section: Section, a: int, b: int, view: RoomView) -> StoredRange:
    if _was_there_all_the_time(viewer, section):
        return StoredRange(section, a, b, section.full_state, False, b, view)
    was_in = a > 0 and view.history.view_at(a).membership == "join"
    is_new = not was_in and view.history.joined_after(a)
    state_upto = b if section.kind == "join" else view.removed_at if was_in or is_new else None
    is_whole = state_upto is not None and (is_new or section.full_state)
    return StoredRange(section, a, b, is_whole, is_new, state_upto, view)
