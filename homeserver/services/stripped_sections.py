"""Rooms that the reader is invited to, or knocks at: nothing but stripped state.

Source: Client-Server API, "Stripped state", "Syncing" (`invite_state`, `knock_state`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from homeserver.protocol.canonical_json import write_json
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.stripped_state import STRIPPED, stripped_event
from homeserver.services.loaded_events import LoadedEvent, LoadedEvents
from homeserver.services.sync_viewer import Section, Viewer
from storage import sync_reads
from storage.database import Database
from storage.sync_reads import StateQuestion

_NEWEST: Final = 2**62
"""A version of any room's state that is newer than all: stands for the newest there is."""


class StrippedSections:
    """Makes the sections of invites and knocks, all with the same few queries."""

    def __init__(self, database: Database, events: LoadedEvents) -> None:
        self._database = database
        self._events = events

    async def render(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, bytes]]:
        """The sections as bytes: rooms as they were when the reader was invited, or knocked.

        Where that was before this server came into the room, as they are now.
        """
        rooms = {section.room.nid: section.room for section in sections}
        async with self._database.connection() as tx:
            own = await self._events.load(
                tx, {section.user_room.event_nid: section.room for section in sections}
            )
            questions = [
                StateQuestion(section.room.nid, own[section.user_room.event_nid].seq or _NEWEST, *key)
                for section in sections
                for key in _keys(viewer, own[section.user_room.event_nid])
            ]
            nids = await sync_reads.current_events(tx, questions)
            loaded = await self._events.load(
                tx, {nid: rooms[question.room_nid] for question, nid in nids.items()}
            )
        stripped: dict[int, list[JsonObject]] = {nid: [] for nid in rooms}
        for question in questions:
            if (nid := nids.get(question)) is not None:
                room = rooms[question.room_nid]
                stripped[question.room_nid].append(_stripped(room.version, loaded[nid]))
        rendered = []
        for section in sections:
            room = section.room
            events = [*stripped[room.nid], _stripped(room.version, own[section.user_room.event_nid])]
            rendered.append((section, write_json({f"{section.kind}_state": {"events": events}})))
        return rendered


def _keys(viewer: Viewer, member: LoadedEvent) -> list[tuple[str, str]]:
    keys = [(event_type, "") for event_type in STRIPPED]
    if member.sender != viewer.user_id:
        keys.append(("m.room.member", member.sender))
    return keys


def _stripped(version: RoomVersion, event: LoadedEvent) -> JsonObject:
    assert event.state_key is not None
    return stripped_event(
        version, event.type, event.state_key, event.sender, event.content, event.origin_server_ts
    )
