"""Several events of one user that are added to a room together: one decision, all or nothing."""

from __future__ import annotations

import secrets
import string
from typing import Final

from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, ServerName, UserId, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.event_building import build_event
from storage.room_heads import RoomHead

ROOM_ID_LENGTH: Final = 18


class EventSeries:
    """The next events of a room, each authorised on top of those before it."""

    def __init__(self, head: RoomHead, sender: UserId, origin_server_ts: int) -> None:
        self._head = head.overlay()
        self._sender = sender
        self.origin_server_ts = origin_server_ts
        """When the next event is sent."""
        self.pdus: list[Pdu] = []

    @classmethod
    def of_new_room(
        cls,
        head: RoomHead,
        creator: UserId,
        creation_content: JsonObject,
        profile: JsonObject,
        origin_server_ts: int,
    ) -> EventSeries:
        """The first two events of a room: it is created, and its creator joins. Raises what `add` raises.

        `creation_content`: what the create event says beside what only the server says.
        `profile`: what the creator's member event says beside the membership.
        """
        series = cls(head, creator, origin_server_ts)
        version = head.version
        content = create_content(version, creator, creation_content)
        room_id = None if version.room_id_is_create_hash else _new_room_id(server_name_of(creator))
        series._add(EventDraft("m.room.create", content, ""), room_id)
        series.add(EventDraft("m.room.member", {"membership": "join", **profile}, creator))
        return series

    def add(self, draft: EventDraft) -> Pdu:
        """Add an event. Raises what `build_event` raises, and then adds nothing."""
        return self._add(draft, self.pdus[0].room_id if self.pdus else None)

    def add_if_possible(self, draft: EventDraft) -> None:
        """Add an event, unless it is no valid one or not allowed."""
        try:
            self.add(draft)
        except ProtocolError:
            return

    def _add(self, draft: EventDraft, room_id: RoomId | None) -> Pdu:
        pdu = build_event(self._head, draft, self._sender, self.origin_server_ts, room_id=room_id)
        self._head.add(pdu)
        self.pdus.append(pdu)
        return pdu


def create_content(version: RoomVersion, creator: UserId, given: JsonObject) -> JsonObject:
    """The content of a create event: what is given, but for what only the server says."""
    content = {**given, "room_version": version.version}
    content.pop("creator", None)
    if version.creator_in_content:
        content["creator"] = creator
    return content


def _new_room_id(server_name: ServerName) -> RoomId:
    letters = "".join(secrets.choice(string.ascii_letters) for _ in range(ROOM_ID_LENGTH))
    return RoomId(f"!{letters}:{server_name}")
