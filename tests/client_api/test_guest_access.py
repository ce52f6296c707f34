"""Client-Server API, section "Guest Access"."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from client_api.authentication import GUESTS_MAY
from homeserver.app import ENDPOINTS
from homeserver.http.application import routes
from tests.client_api.rooms import new_room, room_path
from tests.clients import REGISTER, Client
from tests.servers import RunningServer, StartServer, unique_name

V3 = "/_matrix/client/v3"


@pytest.fixture
async def open_server(start_server: StartServer) -> RunningServer:
    """A server with guests."""
    return await start_server(registration={"enabled": True, "require_token": False, "guests": True})


async def new_guest(server: RunningServer) -> Client:
    answer = await server.nobody.post(REGISTER, {}, {"kind": "guest"})
    assert answer.status == 200, answer.body
    guest = server.nobody.with_token(answer.body["access_token"])
    guest.user_id = answer.body["user_id"]
    return guest


def test_what_guests_may_call_exists() -> None:
    assert {route.handler for route in routes(ENDPOINTS)} >= GUESTS_MAY


async def test_guests_join_only_rooms_that_are_open_to_them(open_server: RunningServer) -> None:
    alice, guest = await open_server.nobody.register(unique_name("alice")), await new_guest(open_server)
    for content, status in [
        ({"guest_access": "can_join"}, 200),
        ({"guest_access": "forbidden"}, 403),
        ({"guest_access": ["can_join"]}, 403),
        ({}, 403),
    ]:
        state = [{"type": "m.room.guest_access", "content": content}]
        room_id = await new_room(alice, initial_state=state, invite=[guest.user_id])
        by_event = room_path(room_id, "state", "m.room.member", guest.user_id)
        answers = [
            await guest.post(room_path(room_id, "join"), {}),
            await guest.post(f"{V3}/join/{quote(room_id)}", {}),
            await guest.put(by_event, {"membership": "join"}),
        ]
        assert [answer.status for answer in answers] == [status] * 3
        if status == 403:
            assert {answer.body["errcode"] for answer in answers} == {"M_GUEST_ACCESS_FORBIDDEN"}


async def test_guests_take_part_in_rooms_and_do_little_else(open_server: RunningServer) -> None:
    alice, guest = await open_server.nobody.register(unique_name("alice")), await new_guest(open_server)
    state = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
    room_id = await new_room(alice, initial_state=state)
    await guest.join(room_id)
    allowed = [
        await guest.put(room_path(room_id, "send", "m.room.message", "1"), {"body": "tea?"}),
        await guest.get(room_path(room_id, "messages"), {"dir": "b"}),
        await guest.put(f"{V3}/profile/{guest.user_id}/displayname", {"displayname": "Guest"}),
        await guest.get(f"{V3}/sync"),
        await guest.post(room_path(room_id, "leave"), {}),
    ]
    refused = [
        await guest.post(f"{V3}/createRoom", {}),
        await guest.post(room_path(room_id, "invite"), {"user_id": alice.user_id}),
        await guest.post(room_path(room_id, "kick"), {"user_id": alice.user_id}),
        await guest.post(f"{V3}/account/password", {"new_password": "coffee"}),
        await guest.post(f"{V3}/account/deactivate", {}),
    ]

    assert [answer.status for answer in allowed] == [200] * 5
    assert {answer.error for answer in refused} == {(403, "M_GUEST_ACCESS_FORBIDDEN")}
