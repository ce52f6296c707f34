"""Client-Server API, section "Creation"."""

from __future__ import annotations

from typing import Literal

from client_api.endpoints import client_endpoints
from client_api.invite_limits import count_invites
from homeserver.errors import InvalidParam
from homeserver.http.models import Body, Reply, UserIdField
from homeserver.http.request import Request
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import Services
from homeserver.services.access_tokens import Requester
from homeserver.services.room_creation import InitialState, RoomRequest

endpoints = client_endpoints()


class StateEvent(Body):
    """An entry of initial_state."""

    type: str
    state_key: str = ""
    content: JsonObject


class NewRoom(Body):
    """What a room is to be."""

    visibility: Literal["public", "private"] = "private"
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[UserIdField] = []
    invite_3pid: list[JsonObject] = []
    room_version: str | None = None
    creation_content: JsonObject = {}
    initial_state: list[StateEvent] = []
    preset: str | None = None
    is_direct: bool = False
    power_level_content_override: JsonObject = {}


class NewRoomReply(Reply):
    """The room that was made."""

    room_id: RoomId


@endpoints.post("/_matrix/client/v3/createRoom", rate_limit="create_room")
async def create_room(
    services: Services, requester: Requester, body: NewRoom, request: Request
) -> NewRoomReply:
    """Create a new room."""
    if body.invite_3pid:
        raise InvalidParam("invite_3pid: this server uses no identity server; invite by user ID")
    count_invites(request, requester.user_id, set(body.invite))
    wanted = RoomRequest(
        preset=body.preset,
        visibility=body.visibility,
        room_version=body.room_version,
        room_alias_name=body.room_alias_name,
        name=body.name,
        topic=body.topic,
        invite=body.invite,
        initial_state=[
            InitialState(state.type, state.state_key, state.content) for state in body.initial_state
        ],
        creation_content=body.creation_content,
        power_level_content_override=body.power_level_content_override,
        is_direct=body.is_direct,
    )
    return NewRoomReply(room_id=await services.room_creation.create(requester, wanted))
