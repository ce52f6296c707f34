"""The parts of a /sync response that stand for one room each.

Source: Client-Server API, "Syncing", "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.services.given_members import GivenMembers
from homeserver.services.loaded_events import LoadedEvents
from homeserver.services.out_of_band_sections import OutOfBandSections
from homeserver.services.recent_events import RecentEvents
from homeserver.services.recent_sections import RecentSections
from homeserver.services.room_summaries import RoomSummaries, RoomSummary
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.section_json import RoomPart, section_json
from homeserver.services.stored_sections import StoredSections
from homeserver.services.stripped_sections import StrippedSections
from homeserver.services.sync_viewer import Section, SectionKind, Viewer
from storage.database import Database
from storage.stream import StreamEvent


class SyncSections:
    """Makes the parts of responses, from memory where it can. Must hear of the stream before readers do."""

    def __init__(self, database: Database, recent: RecentEvents, visibility: RoomVisibility) -> None:
        self._events = LoadedEvents()
        self._summaries = RoomSummaries(database, self._events)
        self._recent = RecentSections(recent)
        self._stored = StoredSections(database, self._events, visibility)
        self._stripped = StrippedSections(database, self._events)
        self._out_of_band = OutOfBandSections(database)
        self._given = GivenMembers()

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Forget what the next events of the stream make untrue."""
        self._events.listen(events)
        self._summaries.listen(events)

    def redact(self, event_id: EventId) -> None:
        """From now on an event is shown pruned, although no event of the stream says so."""
        self._events.redact([event_id])

    async def render(
        self, viewer: Viewer, sections: Sequence[Section]
    ) -> dict[SectionKind, dict[RoomId, bytes]]:
        """The sections that have something to show, by kind and room."""
        parts: list[tuple[Section, RoomPart]] = []
        stored: list[Section] = []
        stripped: list[Section] = []
        out_of_band: list[Section] = []
        for section in sections:
            if section.user_room.out_of_band:
                out_of_band.append(section)
            elif section.kind in ("invite", "knock"):
                stripped.append(section)
            elif not self._recent.covers(viewer, section):
                stored.append(section)
            elif (part := self._recent.part(viewer, section)) is not None:
                parts.append((section, part))
        if stored:
            parts += await self._stored.parts(viewer, stored)
        parts = [(section, part) for section, part in parts if _is_shown(section, part)]
        rendered: dict[SectionKind, dict[RoomId, bytes]] = {}
        summaries = await self._summaries_of(parts)
        members = await self._members_of(viewer, parts, summaries) if viewer.lazy_load_members else {}
        for section, part in parts:
            summary = summaries.get(section.room.nid)
            rendered.setdefault(section.kind, {})[section.room.room_id] = section_json(
                section.kind,
                part,
                viewer.state_key,
                members.get(section.room.nid, ()),
                {} if summary is None else summary.json(viewer.user_id),
            )
        for section, json in await self._outside(viewer, stripped, out_of_band):
            rendered.setdefault(section.kind, {})[section.room.room_id] = json
        return rendered

    async def _outside(
        self, viewer: Viewer, stripped: Sequence[Section], out_of_band: Sequence[Section]
    ) -> list[tuple[Section, bytes]]:
        """The sections of rooms that the viewer is not in and sees nothing more of, as bytes."""
        rendered = []
        if out_of_band:
            rendered = await self._out_of_band.render(viewer, out_of_band)
            shown = {section.room.nid for section, _ in rendered}
            # This server has come into some of the rooms meanwhile, and their own state tells of the viewer.
            own = [section for section in out_of_band if section.room.nid not in shown]
            stripped = [*stripped, *(section for section in own if section.kind != "leave")]
        if stripped:
            rendered += await self._stripped.render(viewer, stripped)
        return rendered

    async def _summaries_of(self, parts: Sequence[tuple[Section, RoomPart]]) -> dict[int, RoomSummary]:
        rooms = [section.room for section, part in parts if part.changes_summary]
        return await self._summaries.of(rooms) if rooms else {}

    async def _members_of(
        self,
        viewer: Viewer,
        parts: Sequence[tuple[Section, RoomPart]],
        summaries: Mapping[int, RoomSummary],
    ) -> dict[int, list[bytes]]:
        """The member events that go with the sections, by rooms' numbers: those the device does not have."""
        wanted = {}
        for section, part in parts:
            room = section.room
            if not viewer.loads_members_of(room.room_id):
                continue
            needed = dict(part.speakers)
            others = list(summaries[room.nid].heroes(viewer.user_id)) if room.nid in summaries else []
            if part.is_whole:
                others.append(viewer.user_id)
            for user_id in others:
                if user_id not in part.members:
                    needed.setdefault(user_id, part.state_upto)
            afresh = part.is_whole or part.limited
            if not afresh and not viewer.include_redundant_members:
                missing = self._given.missing(viewer.device_nid, room.nid, needed, viewer.since)
                needed = {user_id: needed[user_id] for user_id in missing}
            if needed or part.members:
                given = {*needed, *part.members}
                self._given.give(viewer.device_nid, room.nid, given, viewer.upto, afresh=afresh)
            if needed:
                wanted[room.nid] = room, needed
        return await self._stored.members(viewer, wanted) if wanted else {}


def _is_shown(section: Section, part: RoomPart) -> bool:
    """Whether a section says anything: rooms in which a filter hides all that is new are left out."""
    says_something = not part.is_empty or part.limited or part.is_whole or part.changes_summary
    return says_something or section.kind == "leave"
