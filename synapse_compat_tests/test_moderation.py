"""Who is kicked, banned or given power in rooms that a Lair and a Synapse share."""

from __future__ import annotations

from typing import Any

from synapse_compat_tests.room_views import (
    attempt,
    change_member,
    content_of,
    try_join,
    try_say,
    until,
    until_member,
    until_stands,
)
from synapse_compat_tests.sides import Sides, neighbour_of, server_of
from tests.shared_rooms import until_agreed, until_heard


async def test_a_kicked_guest_is_out_until_he_joins_again(sides: Sides) -> None:
    room_id = await sides.shared_room()
    await change_member(sides.host, room_id, "kick", sides.guest)

    await until_stands(sides.guest, room_id, "leave")
    assert (await try_say(sides.guest, room_id)).error == (403, "M_FORBIDDEN")
    await sides.enter(room_id)
    await until_agreed([sides.host, sides.guest], room_id)
    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "sorry"))


async def test_a_banned_guest_is_out_until_he_is_pardoned(sides: Sides) -> None:
    room_id = await sides.shared_room()
    await change_member(sides.host, room_id, "ban", sides.guest)

    await until_stands(sides.guest, room_id, "leave")
    assert (await try_say(sides.guest, room_id)).error == (403, "M_FORBIDDEN")
    assert (await try_join(sides.guest, room_id, server_of(sides.host))).error == (403, "M_FORBIDDEN")
    await change_member(sides.host, room_id, "unban", sides.guest)
    await sides.enter(room_id)
    await until_agreed([sides.host, sides.guest], room_id)
    await until_heard(sides.host, room_id, await sides.guest.say(room_id, "thank you"))


async def test_a_ban_is_kept_by_the_server_of_the_banned(sides: Sides) -> None:
    room_id = await sides.shared_room()
    rude = await neighbour_of(sides.guest, "rude")
    await rude.join(room_id)
    await until_member([sides.host], room_id, rude, "join")
    await change_member(sides.host, room_id, "ban", rude)
    await until_member([sides.guest], room_id, rude, "ban")

    assert (await try_say(rude, room_id)).status == 403
    assert (await try_join(rude, room_id)).status == 403
    assert (await try_join(rude, room_id, server_of(sides.host))).status == 403
    await until_agreed([sides.host, sides.guest], room_id)
    await change_member(sides.host, room_id, "unban", rude)
    await until_member([sides.guest], room_id, rude, "leave")
    await rude.join(room_id)
    await until_member([sides.host, sides.guest], room_id, rude, "join")
    await until_agreed([sides.host, sides.guest], room_id)


async def test_a_guest_with_power_uses_it(sides: Sides) -> None:
    room_id = await sides.shared_room()
    rude = await neighbour_of(sides.host, "rude")
    await rude.join(room_id)
    await until_member([sides.guest], room_id, rude, "join")
    refused = await attempt(sides.guest, "PUT", room_id, "state/m.room.topic", {"topic": "mine"})
    assert refused.error == (403, "M_FORBIDDEN")

    await give_power(sides, room_id, 50)
    await until_heard(sides.host, room_id, await sides.guest.set_state(room_id, *topic("ours")))
    for action, expected in (("kick", "leave"), ("ban", "ban"), ("unban", "leave")):
        await change_member(sides.guest, room_id, action, rude)
        await until_member([sides.host], room_id, rude, expected)
    message = await sides.host.say(room_id, "something rude")
    await until_heard(sides.guest, room_id, message)
    assert (
        await attempt(sides.guest, "POST", room_id, "kick", {"user_id": sides.host.user_id})
    ).status == 403

    await give_power(sides, room_id, 0)
    refused = await attempt(sides.guest, "PUT", room_id, "state/m.room.topic", {"topic": "mine"})
    assert refused.error == (403, "M_FORBIDDEN")
    await until_agreed([sides.host, sides.guest], room_id)


async def test_a_room_is_closed_behind_the_last_guest(sides: Sides) -> None:
    room_id = await sides.shared_room()
    await sides.host.set_state(room_id, "m.room.join_rules", {"join_rule": "invite"})
    await until_agreed([sides.host, sides.guest], room_id)
    await sides.guest.in_room("POST", room_id, "leave", {})
    await until_member([sides.host], room_id, sides.guest, "leave")

    assert (await try_join(sides.guest, room_id, server_of(sides.host))).error == (403, "M_FORBIDDEN")


async def test_a_server_that_is_shut_out_is_not_heard(sides: Sides) -> None:
    room_id = await sides.shared_room()
    acl = {"allow": ["*"], "deny": [server_of(sides.guest).rpartition(":")[0]]}
    await sides.host.set_state(room_id, "m.room.server_acl", acl)
    await until_heard(sides.guest, room_id, await sides.host.say(room_id, "goodbye"))
    await sides.guest.say(room_id, "can you hear me?")
    second = await sides.shared_room()
    await until_heard(sides.host, second, await sides.guest.say(second, "they do not answer"))

    heard = await sides.host.in_room("GET", room_id, "messages?dir=b&limit=1")
    assert heard["chunk"][0]["content"]["body"] == "goodbye"


async def give_power(sides: Sides, room_id: str, level: int) -> None:
    """The host gives the guest a power level, which both sides then know of."""
    levels: dict[str, Any] = await content_of(sides.host, room_id, "m.room.power_levels")
    levels["users"] = levels.get("users", {}) | {sides.guest.user_id: level}
    await sides.host.set_state(room_id, "m.room.power_levels", levels)

    async def is_known() -> bool:
        return (await content_of(sides.guest, room_id, "m.room.power_levels")) == levels

    await until(is_known)


def topic(text: str) -> tuple[str, dict[str, str]]:
    """The type and the content of a topic."""
    return "m.room.topic", {"topic": text}
