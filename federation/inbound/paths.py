"""What paths of the Server-Server API name: rooms, events and users."""

from __future__ import annotations

from homeserver.http.models import EventIdField, Path, RoomIdField, UserIdField


class RoomPath(Path):
    """Something in a room."""

    room_id: RoomIdField


class EventPath(Path):
    """An event, whatever its room."""

    event_id: EventIdField


class RoomEventPath(RoomPath):
    """An event, and the room that it is in, or is for."""

    event_id: EventIdField


class RoomUserPath(RoomPath):
    """A user, and the room that this user wants to enter or to leave."""

    user_id: UserIdField
