"""Setting a room's power levels: what is refused, and how."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client_api.rooms import join, new_room, room_path
from tests.clients import Client


@pytest.mark.parametrize(
    "malformed",
    [
        {"ban": "50"},
        {"ban": True},
        {"events": []},
        {"notifications": {"room": "20"}},
        {"users": {"alice": 1}},
        {"users": {"@bob:test": "1"}},
    ],
)
async def test_power_levels_that_are_malformed_are_a_bad_request(
    alice: Client, bob: Client, malformed: dict[str, Any]
) -> None:
    room_id = await new_room(alice)
    await join(bob, room_id)
    path = room_path(room_id, "state", "m.room.power_levels", "")
    assert (await alice.put(path, malformed)).error == (400, "M_BAD_JSON")
    assert (await bob.put(path, malformed)).error == (403, "M_FORBIDDEN")


async def test_power_levels_name_a_creator_up_to_version_11_only(alice: Client, bob: Client) -> None:
    for version, status in (("11", 200), ("12", 400)):
        room_id = await new_room(alice, room_version=version)
        path = room_path(room_id, "state", "m.room.power_levels", "")
        answer = await alice.put(path, {"users": {alice.user_id: 100}})
        assert answer.status == status, answer.body
    room_id = await new_room(
        alice, room_version="12", creation_content={"additional_creators": [bob.user_id]}
    )
    path = room_path(room_id, "state", "m.room.power_levels", "")
    assert (await alice.put(path, {"users": {bob.user_id: 100}})).error == (400, "M_BAD_JSON")


async def test_a_level_above_ones_own_is_forbidden(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, room_version="11")
    path = room_path(room_id, "state", "m.room.power_levels", "")
    answer = await alice.put(path, {"users": {alice.user_id: 100, bob.user_id: 101}})
    assert answer.error == (403, "M_FORBIDDEN")
