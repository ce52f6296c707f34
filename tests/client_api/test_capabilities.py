"""Client-Server API, "Capabilities negotiation"."""

from __future__ import annotations

from tests.clients import Client
from tests.servers import RunningServer, StartServer, unique_name

CAPABILITIES = "/_matrix/client/v3/capabilities"


async def test_capabilities_tell_what_is_possible(alice: Client) -> None:
    answer = await alice.get(CAPABILITIES)

    assert (answer.status, answer.body) == (
        200,
        {
            "capabilities": {
                "m.room_versions": {
                    "default": "12",
                    "available": dict.fromkeys(map(str, range(1, 13)), "stable"),
                },
                "m.change_password": {"enabled": True},
                "m.profile_fields": {"enabled": True},
                "m.set_displayname": {"enabled": True},
                "m.set_avatar_url": {"enabled": True},
                "m.3pid_changes": {"enabled": False},
                "m.get_login_token": {"enabled": False},
                "m.forget_forced_upon_leave": {"enabled": False},
            }
        },
    )


async def test_capabilities_need_a_token(server: RunningServer) -> None:
    assert (await server.nobody.get(CAPABILITIES)).error == (401, "M_MISSING_TOKEN")


async def test_the_default_room_version_is_the_configured_one(start_server: StartServer) -> None:
    server = await start_server(rooms={"default_version": "11"})
    alice = await server.nobody.register(unique_name())

    versions = (await alice.get(CAPABILITIES)).body["capabilities"]["m.room_versions"]

    assert versions["default"] == "11"


async def test_who_has_no_password_cannot_change_it(start_server: StartServer) -> None:
    server = await start_server(registration={"enabled": True, "require_token": False, "guests": True})
    guest = await server.nobody.post("/_matrix/client/v3/register", {}, {"kind": "guest"})
    assert guest.status == 200, guest.body

    answer = await server.nobody.with_token(guest.body["access_token"]).get(CAPABILITIES)

    assert answer.body["capabilities"]["m.change_password"] == {"enabled": False}
