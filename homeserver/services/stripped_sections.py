"""Rooms that the reader is invited to, or knocks at: nothing but stripped state.

Source: Client-Server API, "Stripped state", "Syncing" (`invite_state`, `knock_state`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from homeserver.protocol.strict_json import JsonObject
from homeserver.services.loaded_events import LoadedEvent, LoadedEvents
from homeserver.services.sync_viewer import Section, Viewer
from storage import sync_reads
from storage.database import Database
from storage.sync_reads import StateQuestion

STRIPPED: Final = (
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
)
"""The state that someone sees who is invited, besides who invites."""


class StrippedSections:
    """Makes the sections of invites and knocks, all with the same few queries."""

    def __init__(self, database: Database, events: LoadedEvents) -> None:
        self._database = database
        self._events = events

    async def render(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, bytes]]:
        """The sections as bytes: rooms as they were when the reader was invited, or knocked."""
        rooms = {section.room.nid: section.room for section in sections}
        async with self._database.connection() as tx:
            own = await self._events.load(
                tx, {section.user_room.event_nid: section.room for section in sections}
            )
            questions = [
                StateQuestion(section.room.nid, own[section.user_room.event_nid].seq, *key)
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
                stripped[question.room_nid].append(_stripped(loaded[nid]))
        rendered = []
        for section in sections:
            events = [*stripped[section.room.nid], _stripped(own[section.user_room.event_nid])]
            rendered.append((section, orjson.dumps({f"{section.kind}_state": {"events": events}})))
        return rendered


def _keys(viewer: Viewer, member: LoadedEvent) -> list[tuple[str, str]]:
    keys = [(event_type, "") for event_type in STRIPPED]
    if member.sender != viewer.user_id:
        keys.append(("m.room.member", member.sender))
    return keys


def _stripped(event: LoadedEvent) -> JsonObject:
    """An event as someone sees it who is not in the room."""
    return {
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "content": event.content,
    }
