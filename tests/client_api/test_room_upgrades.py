"""Client-Server API, section "Room Upgrades"."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest

from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.decisions import Decision
from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client, Response
from tests.servers import RunningServer, StartServer, unique_name

NEWEST = list(ROOM_VERSIONS)[-1]
ALL_VERSIONS = pytest.mark.parametrize("version", ROOM_VERSIONS)
EACH_AND_NEWEST = pytest.mark.parametrize(
    ("old", "new"),
    sorted({pair for one in ROOM_VERSIONS for pair in ((one, one), (one, NEWEST), (NEWEST, one))}),
)
Happening: TypeAlias = Callable[[], Awaitable[None]]

UNKNOWN_ROOM = "!" + "a" * 43


async def ask(client: Client, room_id: str, version: str = NEWEST, **wanted: Any) -> Response:
    return await client.post(room_path(room_id, "upgrade"), {"new_version": version, **wanted})


async def upgrade(client: Client, room_id: str, version: str = NEWEST, **wanted: Any) -> str:
    """Upgrade a room and return the ID of the new one."""
    answer = await ask(client, room_id, version, **wanted)
    assert answer.status == 200, answer.body
    new_room_id: str = answer.body["replacement_room"]
    return new_room_id


async def content(client: Client, room_id: str, event_type: str, state_key: str = "") -> Any:
    """The content of a piece of a room's state; None where there is none."""
    answer = await client.get(room_path(room_id, "state", event_type, state_key))
    return answer.body if answer.status == 200 else None


async def levels_of(client: Client, room_id: str) -> Any:
    return await content(client, room_id, "m.room.power_levels")


async def leads_to(client: Client, alias: str) -> str:
    room_id: str = (await client.get(f"/_matrix/client/v3/directory/room/{quote(alias)}")).body["room_id"]
    return room_id


async def is_listed(client: Client, room_id: str) -> bool:
    answer = await client.get(f"/_matrix/client/v3/directory/list/room/{quote(room_id)}")
    return bool(answer.body["visibility"] == "public")


async def joined_rooms(client: Client) -> set[str]:
    return set((await client.get("/_matrix/client/v3/joined_rooms")).body["joined_rooms"])


async def room_with(creator: Client, version: str, users: dict[str, int], **levels: Any) -> str:
    """A room of these members, with these levels; the creator has 100 where nobody outranks everybody."""
    own = {} if ROOM_VERSIONS[version].privileged_creators else {creator.user_id: 100}
    override = {"users": {**own, **users}, **levels}
    return await new_room(creator, room_version=version, power_level_content_override=override)


@EACH_AND_NEWEST
async def test_a_room_of_any_version_is_replaced_by_one_of_any_version(
    alice: Client, old: str, new: str
) -> None:
    room_id = await new_room(alice, room_version=old)
    last = await alice.say(room_id, "the end")

    new_room_id = await upgrade(alice, room_id, new)

    tombstone = await content(alice, room_id, "m.room.tombstone")
    create = await content(alice, new_room_id, "m.room.create")
    expected: dict[str, Any] = {"room_version": new, "predecessor": {"room_id": room_id}}
    if not ROOM_VERSIONS[new].room_id_is_create_hash:
        expected["predecessor"]["event_id"] = last
    if ROOM_VERSIONS[new].creator_in_content:
        expected["creator"] = alice.user_id
    assert tombstone == {"body": "This room has been replaced", "replacement_room": new_room_id}
    assert create == expected
    assert await joined_rooms(alice) == {room_id, new_room_id}


@EACH_AND_NEWEST
async def test_what_a_room_is_moves_to_the_new_one(alice: Client, old: str, new: str) -> None:
    state: dict[str, Any] = {
        "m.room.name": {"name": "Tea"},
        "m.room.topic": {"topic": "Leaves"},
        "m.room.avatar": {"url": "mxc://test/tea"},
        "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
        "m.room.server_acl": {"allow": ["*"], "deny": ["coffee.test"]},
        "m.room.history_visibility": {"history_visibility": "joined"},
        "m.room.guest_access": {"guest_access": "can_join"},
        "m.room.join_rules": {"join_rule": "invite"},
    }
    left_behind: dict[str, Any] = {
        "m.room.pinned_events": {"pinned": ["$a"]},
        "org.example.colour": {"colour": "green"},
    }
    room_id = await new_room(alice, room_version=old)
    for event_type, value in (state | left_behind).items():
        await set_state(alice, room_id, event_type, value)

    new_room_id = await upgrade(alice, room_id, new)

    assert {event_type: await content(alice, new_room_id, event_type) for event_type in state} == state
    assert [await content(alice, new_room_id, event_type) for event_type in left_behind] == [None, None]


@ALL_VERSIONS
async def test_type_and_federation_of_a_room_stay_and_nothing_else_that_its_creator_said(
    alice: Client, version: str
) -> None:
    kept = {"type": "m.space", "m.federate": False}
    room_id = await new_room(alice, room_version=version, creation_content=kept)
    create = await content(alice, await upgrade(alice, room_id, version), "m.room.create")

    assert {key: create.get(key) for key in kept} == kept
    assert create.keys() <= {*kept, "room_version", "predecessor", "creator"}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"new_version": "tea"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({}, (400, "M_MISSING_PARAM")),
        ({"new_version": 12}, (400, "M_BAD_JSON")),
        ({"new_version": NEWEST, "additional_creators": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"new_version": NEWEST, "additional_creators": "@bob:test"}, (400, "M_BAD_JSON")),
    ],
)
async def test_what_is_no_upgrade_is_refused(alice: Client, body: Any, error: tuple[int, str]) -> None:
    room_id = await new_room(alice)

    assert (await alice.post(room_path(room_id, "upgrade"), body)).error == error
    assert await joined_rooms(alice) == {room_id}


@ALL_VERSIONS
async def test_who_may_not_send_a_tombstone_upgrades_nothing(
    alice: Client, bob: Client, version: str
) -> None:
    room_id = await new_room(alice, room_version=version)
    outside = await ask(bob, room_id)
    await join(bob, room_id)
    inside = await ask(bob, room_id)
    unknown = await ask(bob, UNKNOWN_ROOM)

    assert (outside.error, inside.error) == ((403, "M_FORBIDDEN"), (403, "M_FORBIDDEN"))
    assert unknown.error == (404, "M_NOT_FOUND")
    assert await joined_rooms(bob) == {room_id}


async def test_upgrades_count_as_rooms_that_are_made(start_server: StartServer) -> None:
    server = await start_server(
        rate_limits={"enabled": True, "create_room": {"per_second": 0.001, "burst": 2}}
    )
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(carol)
    await upgrade(carol, room_id)

    assert (await ask(carol, room_id)).error == (429, "M_LIMIT_EXCEEDED")


# -- power levels


@EACH_AND_NEWEST
async def test_power_levels_move_and_ordinary_users_are_silenced_in_the_old_room(
    alice: Client, bob: Client, old: str, new: str
) -> None:
    room_id = await room_with(
        alice, old, {bob.user_id: 20}, users_default=10, kick=30, notifications={"room": 5}
    )
    await join(bob, room_id)
    before = await levels_of(alice, room_id)

    new_room_id = await upgrade(alice, room_id, new)

    expected = before
    if not ROOM_VERSIONS[new].privileged_creators:
        own_level = 150 if ROOM_VERSIONS[old].privileged_creators else 100
        expected = {**before, "users": {**before["users"], alice.user_id: own_level}}
    else:
        users = {bob.user_id: 20}
        expected = {**before, "users": users, "events": {**before["events"], "m.room.tombstone": 150}}
    assert await levels_of(alice, new_room_id) == expected
    assert await levels_of(alice, room_id) == {**before, "events_default": 50, "invite": 50}
    said = await bob.put(room_path(room_id, "send", "m.room.message", "1"), {"body": "still here"})
    invited = await bob.post(room_path(room_id, "invite"), {"user_id": "@carol:test"})
    assert (said.error, invited.error) == ((403, "M_FORBIDDEN"), (403, "M_FORBIDDEN"))


async def test_a_room_is_silenced_although_its_power_levels_hold_what_is_no_json_today(alice: Client) -> None:
    room_id = await new_room(alice, room_version="5")
    odd = {"users": {alice.user_id: 100}, "foo": {"x": 1.5}}
    await set_state(alice, room_id, "m.room.power_levels", odd)

    new_room_id = await upgrade(alice, room_id)

    assert (await levels_of(alice, room_id))["events_default"] == 50
    assert "foo" not in await levels_of(alice, new_room_id)


@pytest.mark.parametrize(
    ("given", "events_default", "invite"),
    [
        ({"users_default": 80, "ban": 100}, 81, 81),
        ({"events_default": 60}, 60, 50),
        ({"events_default": 50, "invite": 75}, 50, 75),
    ],
)
async def test_levels_that_are_high_enough_stay(
    alice: Client, given: dict[str, int], events_default: int, invite: int
) -> None:
    room_id = await room_with(alice, "11", {}, **given)
    before = await levels_of(alice, room_id)
    await upgrade(alice, room_id)

    levels = {"events_default": events_default, "invite": invite}
    assert await levels_of(alice, room_id) == {**before, **levels}


@EACH_AND_NEWEST
async def test_a_moderator_who_may_upgrade_is_no_admin_after_it(
    alice: Client, bob: Client, old: str, new: str
) -> None:
    """Up to version 11; from 12 on, who makes a room outranks everybody in it."""
    room_id = await room_with(
        alice, old, {bob.user_id: 50}, events={"m.room.tombstone": 50, "m.room.power_levels": 100}
    )
    await join(bob, room_id)
    await set_state(alice, room_id, "m.room.name", {"name": "Tea"})
    before = await levels_of(alice, room_id)

    new_room_id = await upgrade(bob, room_id, new)

    after = await levels_of(bob, new_room_id)
    assert await levels_of(bob, room_id) == before
    assert await content(bob, new_room_id, "m.room.name") == {"name": "Tea"}
    if not ROOM_VERSIONS[new].privileged_creators:
        assert after == {**before, "users": {alice.user_id: 100, bob.user_id: 50}}
    elif ROOM_VERSIONS[old].privileged_creators:
        assert (after["users"], after["events"]["m.room.tombstone"]) == ({}, 150)
    else:
        assert (after["users"], after["events"]["m.room.tombstone"]) == ({alice.user_id: 100}, 150)


async def test_additional_creators_are_those_of_the_request(alice: Client, bob: Client) -> None:
    carol = "@carol:test"
    room_id = await new_room(
        alice, room_version="12", creation_content={"additional_creators": ["@dave:test"]}
    )
    await set_state(alice, room_id, "m.room.power_levels", {"users": {bob.user_id: 100, carol: 50}})
    new_room_id = await upgrade(
        alice, room_id, "12", additional_creators=[bob.user_id, bob.user_id, "@erin:test"]
    )
    again = await new_room(alice, room_version="12", creation_content={"additional_creators": [carol]})

    create = await content(alice, new_room_id, "m.room.create")
    without = await content(alice, await upgrade(alice, again, "12"), "m.room.create")
    assert create["additional_creators"] == [bob.user_id, "@erin:test"]
    assert (await levels_of(alice, new_room_id))["users"] == {carol: 50}
    assert "additional_creators" not in without


@pytest.mark.parametrize("creators", [["@bob:test"], ["bob"], [5], "@bob:test"])
async def test_versions_without_additional_creators_ignore_them(alice: Client, creators: Any) -> None:
    room_id = await new_room(alice, room_version="11")
    new_room_id = await upgrade(alice, room_id, "11", additional_creators=creators)

    assert "additional_creators" not in await content(alice, new_room_id, "m.room.create")


async def test_a_room_is_not_replaced_by_one_without_its_server_acl(
    server: RunningServer, alice: Client
) -> None:
    """Who has a long name has less room for the same list."""
    longer = await server.nobody.register(unique_name("x" * 150))
    room_id = await room_with(alice, "11", {longer.user_id: 100})
    await join(longer, room_id)
    path, size = room_path(room_id, "state", "m.room.server_acl", ""), 64_500
    while (await alice.put(path, {"allow": ["*"], "deny": ["x" * size]})).status == 200:
        size += 50

    assert (await ask(longer, room_id)).error == (413, "M_TOO_LARGE")
    assert await content(alice, room_id, "m.room.tombstone") is None


async def test_a_room_is_not_replaced_by_one_without_its_power_levels(alice: Client) -> None:
    """In version 12 they do not name creators; named as well, they are more than an event can hold."""
    creators = [f"@{'creator' * 30}-{number}:test" for number in range(20)]
    room_id = await new_room(alice, room_version="12", creation_content={"additional_creators": creators})
    users = {f"@user-{number}:test": 10 for number in range(3000)}
    await set_state(alice, room_id, "m.room.power_levels", {"users": users})

    assert (await ask(alice, room_id, "11")).error == (413, "M_TOO_LARGE")
    assert await joined_rooms(alice) == {room_id}


# -- bans and links


@EACH_AND_NEWEST
async def test_bans_move_and_other_memberships_do_not(
    alice: Client, bob: Client, server: RunningServer, old: str, new: str
) -> None:
    carol = await server.nobody.register(unique_name("carol"))
    room_id = await new_room(alice, room_version=old)
    await join(bob, room_id)
    await join(carol, room_id)
    for user_id in (bob.user_id, "@spam:far.test"):
        answer = await alice.post(room_path(room_id, "ban"), {"user_id": user_id, "reason": "spam"})
        assert answer.status == 200

    new_room_id = await upgrade(alice, room_id, new)

    state = (await alice.get(room_path(new_room_id, "state"))).body
    members = {one["state_key"]: one["content"] for one in state if one["type"] == "m.room.member"}
    assert {user_id: member["membership"] for user_id, member in members.items()} == {
        alice.user_id: "join",
        bob.user_id: "ban",
        "@spam:far.test": "ban",
    }
    assert members[bob.user_id]["reason"] == "spam"
    assert (await bob.post(room_path(new_room_id, "join"), {})).error == (403, "M_FORBIDDEN")
    await join(carol, new_room_id)


async def test_more_bans_than_one_decision_takes_move_too(
    alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeserver.services.room_upgrades.EVENTS_AT_ONCE", 3)
    room_id = await room_with(alice, "11", {bob.user_id: 50}, events={"m.room.tombstone": 50}, ban=51)
    await join(bob, room_id)
    banned = [f"@spam-{number}:test" for number in range(10)]
    for user_id in banned:
        await alice.post(room_path(room_id, "ban"), {"user_id": user_id})

    new_room_id = await upgrade(bob, room_id, "11")

    members = [await content(bob, new_room_id, "m.room.member", user_id) for user_id in banned]
    assert [member["membership"] for member in members] == ["ban"] * 10
    assert (await levels_of(bob, new_room_id))["ban"] == 51


async def test_bans_move_to_a_room_of_which_nothing_is_in_memory(
    alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeserver.services.room_upgrades.EVENTS_AT_ONCE", 150)
    room_id = await new_room(alice, room_version="11")
    banned = [f"@spam-{number}:test" for number in range(290)]
    for user_id in banned:
        await alice.post(room_path(room_id, "ban"), {"user_id": user_id})

    monkeypatch.setattr("storage.room_heads.MAX_LOADED_EVENTS", 100)
    new_room_id = await upgrade(alice, room_id, "11")

    assert (await content(alice, new_room_id, "m.room.member", banned[-1]))["membership"] == "ban"


@ALL_VERSIONS
async def test_a_space_keeps_its_rooms_in_their_order(
    server: RunningServer, alice: Client, version: str
) -> None:
    room_id = await new_room(alice, room_version=version, creation_content={"type": "m.space"})
    children = [f"!{name}:test" for name in ("c", "a", "b")]
    for child in children:
        server.clock.advance(1000)
        await set_state(alice, room_id, "m.space.child", {"via": ["test"], "suggested": True}, child)
    await set_state(alice, room_id, "m.space.child", {}, "!removed:test")

    state = (await alice.get(room_path(await upgrade(alice, room_id, version), "state"))).body

    links = sorted(
        (one for one in state if one["type"] == "m.space.child"), key=lambda one: one["origin_server_ts"]
    )
    assert len({one["origin_server_ts"] for one in links}) == 3
    assert [(one["state_key"], one["content"]) for one in links] == [
        (child, {"via": ["test"], "suggested": True}) for child in children
    ]


async def test_the_space_of_a_room_is_said_again_only_by_who_said_it(alice: Client, bob: Client) -> None:
    room_id = await room_with(alice, "11", {bob.user_id: 100})
    await join(bob, room_id)
    own, others = {"via": ["test"], "canonical": True}, {"via": ["test"]}
    await set_state(alice, room_id, "m.space.parent", own, "!own:test")
    await set_state(bob, room_id, "m.space.parent", others, "!others:test")
    await set_state(alice, room_id, "m.space.child", others, "!no-space:test")

    new_room_id = await upgrade(alice, room_id)

    assert await content(alice, new_room_id, "m.space.parent", "!own:test") == own
    assert await content(alice, new_room_id, "m.space.parent", "!others:test") is None
    assert await content(alice, new_room_id, "m.space.child", "!no-space:test") is None


# -- aliases and the directory


@ALL_VERSIONS
async def test_aliases_and_the_entry_of_the_directory_move(alice: Client, bob: Client, version: str) -> None:
    names = [unique_name("tea") for _ in range(3)]
    first, second, unnamed = (f"#{name}:test" for name in names)
    room_id = await new_room(alice, room_version=version, room_alias_name=names[0], visibility="public")
    for alias in (second, unnamed):
        await alice.put(f"/_matrix/client/v3/directory/room/{quote(alias)}", {"room_id": room_id})
    await set_state(alice, room_id, "m.room.canonical_alias", {"alias": first, "alt_aliases": [second]})

    new_room_id = await upgrade(alice, room_id, version)

    assert [await leads_to(bob, alias) for alias in (first, second, unnamed)] == [new_room_id] * 3
    assert await content(alice, room_id, "m.room.canonical_alias") == {}
    assert await content(alice, new_room_id, "m.room.canonical_alias") == {
        "alias": first,
        "alt_aliases": [second],
    }
    assert (await is_listed(bob, room_id), await is_listed(bob, new_room_id)) == (False, True)


async def test_a_room_that_is_not_listed_is_not_listed_after_it(alice: Client) -> None:
    room_id = await new_room(alice)
    new_room_id = await upgrade(alice, room_id)

    assert await is_listed(alice, new_room_id) is False
    assert await content(alice, new_room_id, "m.room.canonical_alias") is None


async def test_what_one_may_not_say_in_the_old_room_hinders_no_upgrade(alice: Client, bob: Client) -> None:
    name = unique_name("tea")
    room_id = await new_room(
        alice,
        room_version="11",
        room_alias_name=name,
        power_level_content_override={
            "users": {alice.user_id: 100, bob.user_id: 50},
            "events": {"m.room.tombstone": 50, "m.room.canonical_alias": 100, "m.room.power_levels": 100},
        },
    )
    await join(bob, room_id)
    before = await levels_of(alice, room_id)

    new_room_id = await upgrade(bob, room_id, "11")

    assert await content(bob, room_id, "m.room.canonical_alias") == {"alias": f"#{name}:test"}
    assert await content(bob, new_room_id, "m.room.canonical_alias") == {"alias": f"#{name}:test"}
    assert await leads_to(bob, f"#{name}:test") == new_room_id
    assert await levels_of(bob, room_id) == before


# -- once, and all of it


@ALL_VERSIONS
async def test_asking_again_gives_the_same_room_and_finishes_what_was_begun(
    alice: Client, version: str
) -> None:
    room_id = await new_room(alice, room_version=version)
    new_room_id = await upgrade(alice, room_id, version)
    alias = f"#{unique_name('late')}:test"
    await alice.put(f"/_matrix/client/v3/directory/room/{quote(alias)}", {"room_id": room_id})

    assert await upgrade(alice, room_id, version) == new_room_id
    assert await leads_to(alice, alias) == new_room_id
    assert await joined_rooms(alice) == {room_id, new_room_id}


async def test_a_room_is_replaced_once(alice: Client, bob: Client) -> None:
    room_id = await room_with(alice, "11", {bob.user_id: 100})
    await join(bob, room_id)
    new_room_id = await upgrade(alice, room_id, "11")
    answers = [
        await ask(alice, room_id, "12"),
        await ask(bob, room_id, "11"),
        await ask(bob, room_id, "12"),
    ]

    assert [answer.error for answer in answers] == [(400, "M_UNKNOWN")] * 3
    assert new_room_id in answers[0].body["error"]
    assert (await joined_rooms(alice), await joined_rooms(bob)) == ({room_id, new_room_id}, {room_id})


async def test_a_tombstone_leads_no_alias_and_no_listing_to_a_room_that_is_no_successor(
    alice: Client, bob: Client
) -> None:
    name = unique_name("tea")
    hidden = await new_room(bob)
    room_id = await new_room(alice, room_version="11", room_alias_name=name, visibility="public")
    await set_state(alice, room_id, "m.room.tombstone", {"body": "over", "replacement_room": hidden})

    assert (await ask(alice, room_id, "12")).error == (400, "M_UNKNOWN")
    assert await leads_to(bob, f"#{name}:test") == room_id
    assert (await is_listed(bob, room_id), await is_listed(bob, hidden)) == (True, False)


@pytest.mark.parametrize("replacement", [None, 5, "", "nowhere", "itself"])
async def test_a_tombstone_that_names_no_other_room_hinders_nothing(alice: Client, replacement: Any) -> None:
    room_id = await new_room(alice)
    named = room_id if replacement == "itself" else replacement
    await set_state(alice, room_id, "m.room.tombstone", {"body": "over", "replacement_room": named})
    new_room_id = await upgrade(alice, room_id)

    assert (await content(alice, room_id, "m.room.tombstone"))["replacement_room"] == new_room_id


@ALL_VERSIONS
async def test_of_two_who_upgrade_at_once_one_wins_and_the_other_leaves_no_room_behind(
    alice: Client, bob: Client, version: str
) -> None:
    name = unique_name("tea")
    users = {bob.user_id: 100}
    room_id = await room_with(alice, version, users, events={"m.room.tombstone": 100})
    await join(bob, room_id)
    alias = f"#{name}:test"
    await alice.put(f"/_matrix/client/v3/directory/room/{quote(alias)}", {"room_id": room_id})

    answers = await asyncio.gather(
        *(ask(client, room_id, version) for client in (alice, bob) for _ in range(2))
    )

    tombstone = await content(alice, room_id, "m.room.tombstone")
    winner = tombstone["replacement_room"]
    given = [answer.body["replacement_room"] for answer in answers if answer.status == 200]
    assert given == [winner, winner]
    assert [answer.error for answer in answers if answer.status != 200] == [(400, "M_UNKNOWN")] * 2
    assert await leads_to(alice, alias) == winner
    assert (await joined_rooms(alice) | await joined_rooms(bob)) == {room_id, winner}


class BeforeTheTombstone:
    """Makes something happen when the new room is there and the old one is about to name it."""

    def __init__(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch, room_id: str, happening: Happening
    ) -> None:
        self.happening: Happening | None = happening
        append = server.services.room_upgrades.persister.append

        async def appending(of_room: RoomId, decide: Decision, **more: Any) -> list[EventId]:
            if of_room == room_id and self.happening is not None:
                happening, self.happening = self.happening, None
                await happening()
            return await append(of_room, decide, **more)

        monkeypatch.setattr(server.services.room_upgrades.persister, "append", appending)


@ALL_VERSIONS
async def test_who_is_overtaken_leaves_the_new_room(
    server: RunningServer, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    room_id = await room_with(alice, version, {bob.user_id: 100}, events={"m.room.tombstone": 100})
    await join(bob, room_id)

    async def overtake() -> None:
        await upgrade(alice, room_id, version)

    BeforeTheTombstone(server, monkeypatch, room_id, overtake)
    answer = await ask(bob, room_id, version)

    [winner] = await joined_rooms(alice) - {room_id}
    assert answer.error == (400, "M_UNKNOWN")
    assert (await content(alice, room_id, "m.room.tombstone"))["replacement_room"] == winner
    assert await joined_rooms(bob) == {room_id}


async def test_who_loses_the_power_meanwhile_leaves_the_new_room(
    server: RunningServer, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique_name("tea")
    room_id = await room_with(alice, "11", {bob.user_id: 100})
    await join(bob, room_id)
    alias = f"#{name}:test"
    await alice.put(f"/_matrix/client/v3/directory/room/{quote(alias)}", {"room_id": room_id})

    async def demote() -> None:
        await set_state(bob, room_id, "m.room.power_levels", {"users": {alice.user_id: 100}})

    BeforeTheTombstone(server, monkeypatch, room_id, demote)
    answer = await ask(bob, room_id)

    assert answer.error == (403, "M_FORBIDDEN")
    assert await content(alice, room_id, "m.room.tombstone") is None
    assert await leads_to(alice, alias) == room_id
    assert await joined_rooms(bob) == {room_id}


@ALL_VERSIONS
async def test_what_changes_while_the_new_room_is_made_is_not_lost(
    server: RunningServer, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    room_id = await new_room(alice, room_version=version, name="Tea", topic="Leaves")

    async def change() -> None:
        await join(bob, room_id)
        answer = await alice.post(room_path(room_id, "ban"), {"user_id": bob.user_id})
        assert answer.status == 200
        await set_state(alice, room_id, "m.room.topic", {"topic": "Coffee"})

    BeforeTheTombstone(server, monkeypatch, room_id, change)
    new_room_id = await upgrade(alice, room_id, version)

    assert (await content(alice, room_id, "m.room.tombstone"))["replacement_room"] == new_room_id
    assert (await content(alice, new_room_id, "m.room.member", bob.user_id))["membership"] == "ban"
    assert await content(alice, new_room_id, "m.room.topic") == {"topic": "Coffee"}
    page = await alice.get(room_path(new_room_id, "messages"), {"dir": "b", "limit": "2"})
    assert {event["type"] for event in page.body["chunk"]} == {"m.room.member", "m.room.topic"}


async def test_a_room_that_changes_all_the_time_is_upgraded_too(
    alice: Client, bob: Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await new_room(alice)
    persister = server.services.room_upgrades.persister
    append = persister.append

    async def appending(of_room: RoomId, decide: Decision, **more: Any) -> list[EventId]:
        if of_room == room_id:
            monkeypatch.setattr(persister, "append", append)
            await set_state(alice, room_id, "m.room.topic", {"topic": unique_name("topic")})
            monkeypatch.setattr(persister, "append", appending)
        return await append(of_room, decide, **more)

    monkeypatch.setattr(persister, "append", appending)
    new_room_id = await upgrade(alice, room_id)

    assert (await content(alice, room_id, "m.room.tombstone"))["replacement_room"] == new_room_id


@ALL_VERSIONS
async def test_an_upgrade_that_broke_off_is_made_anew(
    server: RunningServer, alice: Client, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    name = unique_name("tea")
    room_id = await new_room(alice, room_version=version, room_alias_name=name, visibility="public")

    async def break_off() -> None:
        raise Unavailable("the database cannot be reached; try again")

    BeforeTheTombstone(server, monkeypatch, room_id, break_off)
    broken_off = await ask(alice, room_id, version)
    before = await content(alice, room_id, "m.room.tombstone"), await leads_to(alice, f"#{name}:test")
    listed = await is_listed(alice, room_id)
    new_room_id = await upgrade(alice, room_id, version)

    assert broken_off.status == 503
    assert (before, listed) == ((None, room_id), True)
    assert await leads_to(alice, f"#{name}:test") == new_room_id
    assert (await content(alice, room_id, "m.room.tombstone"))["replacement_room"] == new_room_id
