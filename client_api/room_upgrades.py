"""Client-Server API, section "Room Upgrades"."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from client_api.endpoints import client_endpoints
from homeserver.http.models import Body, Path, Reply, RoomIdField, UserIdField
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.services import Services
from homeserver.services.access_tokens import Requester

endpoints = client_endpoints()


class RoomPath(Path):
    """A room."""

    room_id: RoomIdField


class NewVersion(Body):
    """What a room is to become."""

    new_version: str
    additional_creators: list[UserIdField] = []

    @model_validator(mode="before")
    @classmethod
    def ignore_creators(cls, body: Any) -> Any:
        """Versions without additional creators ignore them, whatever they are."""
        if isinstance(body, dict) and isinstance(name := body.get("new_version"), str):
            version = ROOM_VERSIONS.get(name)
            if version is not None and not version.privileged_creators:
                return {key: value for key, value in body.items() if key != "additional_creators"}
        return body


class Replacement(Reply):
    """The room that takes the place of the old one."""

    replacement_room: RoomId


@endpoints.post("/_matrix/client/v3/rooms/{roomId}/upgrade", rate_limit="create_room")
async def upgrade_room(
    services: Services, requester: Requester, path: RoomPath, body: NewVersion
) -> Replacement:
    """Upgrade a room to another version."""
    replacement = await services.room_upgrades.upgrade(
        requester, path.room_id, body.new_version, body.additional_creators
    )
    return Replacement(replacement_room=replacement)
