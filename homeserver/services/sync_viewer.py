"""Who looks at rooms in a response to /sync, how far, and what the filter says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from homeserver.protocol.filters import EventFilter, Filter
from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.event_formats import COMMON_FORMAT, EventFormat
from homeserver.services.notifier import UserRoom
from storage.room_heads import RoomRef

DEFAULT_LIMIT: Final = 10
LARGEST_LIMIT: Final = 1000

SectionKind: TypeAlias = Literal["join", "invite", "knock", "leave"]


@dataclass(frozen=True, slots=True)
class Section:
    """A room that belongs in a response. `user_room` does not change any more."""

    kind: SectionKind
    user_room: UserRoom
    full_state: bool = False

    @property
    def room(self) -> RoomRef:
        """The room."""
        return self.user_room.room


class Viewer:
    """What is the same for all rooms of one response. Positions are of the stream."""

    def __init__(
        self,
        requester: Requester,
        *,
        since: int | None,
        upto: int,
        now_ms: int,
        filter_: Filter,
        state_after_key: str | None,
    ) -> None:
        self.user_id = requester.user_id
        self.user_nid = requester.user_nid
        self.device_nid = requester.device_nid
        self.since = since
        """Where the response begins; None for all there is."""
        self.upto = upto
        """The newest position to show."""
        self.now_ms = now_ms
        self.state_after = state_after_key is not None
        """Whether the state is wanted as it is after the timeline, not as before it."""
        self.state_key = state_after_key or "state"
        timeline, state = filter_.room.timeline, filter_.room.state
        self.limit = DEFAULT_LIMIT if timeline.limit is None else min(timeline.limit, LARGEST_LIMIT)
        self.lazy_load_members = state.lazy_load_members
        self.include_redundant_members = state.include_redundant_members
        self.format = EventFormat.of(filter_)
        self.timeline_filter: EventFilter | None = None if timeline.allows_all else timeline
        self.state_filter: EventFilter | None = None if state.allows_all else state

    def loads_members_of(self, room_id: RoomId) -> bool:
        """Whether member events of a room are given only where they are needed, but then they are."""
        wanted = self.state_filter
        return self.lazy_load_members and (
            wanted is None or (wanted.allows_room(room_id) and wanted.allows_type("m.room.member"))
        )

    @property
    def is_common(self) -> bool:
        """Whether a room that has been joined all the time shows the same to all such viewers."""
        return self.timeline_filter is None and self.state_filter is None and self.format is COMMON_FORMAT
