"""Rooms that this server is not in, as a reader sees them who is invited to one, or was.

Of such a room nothing is known but what came with the invite, and the event that ended it.
Source: Client-Server API, "Syncing" (`invite_state`), "Stripped state".
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.protocol.events import Pdu
from homeserver.services.event_formats import closed_json
from homeserver.services.section_json import RoomPart, section_json, timeline_json
from homeserver.services.sync_tokens import RoomToken
from homeserver.services.sync_viewer import Section, Viewer
from storage import oob_memberships, room_timeline
from storage.database import Database


class OutOfBandSections:
    """Makes the sections of such rooms, each kind with one query."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def render(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, bytes]]:
        """The sections as bytes, less those of rooms whose own state tells of the reader by now."""
        left = [section for section in sections if section.kind == "leave"]
        invited = [section for section in sections if section.kind != "leave"]
        rendered = await self._invited(viewer, invited) if invited else []
        return rendered + (await self._left(viewer, left) if left else [])

    async def _invited(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, bytes]]:
        async with self._database.connection() as tx:
            stripped = await oob_memberships.stripped_states(
                tx, viewer.user_nid, [section.room.nid for section in sections]
            )
        return [
            (section, b'{"%s_state":{"events":%s}}' % (section.kind.encode(), stripped[section.room.nid]))
            for section in sections
            if section.room.nid in stripped
        ]

    async def _left(self, viewer: Viewer, sections: Sequence[Section]) -> list[tuple[Section, bytes]]:
        async with self._database.connection() as tx:
            rows = await room_timeline.by_nids(tx, [section.user_room.event_nid for section in sections])
        return [
            (section, _left_room(viewer, section, rows[section.user_room.event_nid].pdu(section.room)))
            for section in sections
            if section.user_room.event_nid in rows
        ]


def _left_room(viewer: Viewer, section: Section, member: Pdu) -> bytes:
    """The section of a room in which nothing can be seen but how the reader's invite ended."""
    wanted = viewer.timeline_filter
    is_wanted = wanted is None or (wanted.allows_room(section.room.room_id) and wanted.allows_in_room(member))
    unsigned = {
        "age": max(0, viewer.now_ms - member.origin_server_ts),
        "membership": section.user_room.membership.name.lower(),
    }
    shown = viewer.format.finish(closed_json(viewer.format.open(member), unsigned))
    in_timeline = [shown] if is_wanted and viewer.limit > 0 else []
    part = RoomPart(
        timeline=timeline_json(in_timeline, limited=False, prev_batch=RoomToken(1, 0)),
        state=[shown] if is_wanted and viewer.limit == 0 else [],
        is_empty=not is_wanted,
        limited=False,
        is_whole=False,
        changes_summary=False,
        speakers={},
        members=(),
        state_upto=0,
    )
    return section_json("leave", part, viewer.state_key, (), {})
