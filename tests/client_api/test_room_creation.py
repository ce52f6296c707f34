"""Client-Server API, section "Creation"."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.client_api.rooms import CREATE_ROOM, new_room, room_path
from tests.clients import Client, Response
from tests.room_versions import versions_of_each_form
from tests.servers import unique_name

ODD_LEVEL: list[Any] = ["50", True, 1.5, None, 2**53, [5]]
ODD_MAP: list[Any] = [None, [], 5, {"@bob:test": "5"}]
ODD_LEVELS: list[dict[str, Any]] = [
    *({"ban": odd} for odd in ODD_LEVEL),
    *({key: odd} for key in ("users", "events", "notifications") for odd in ODD_MAP),
    {"users": {"bob": 5}},
    {"users_default": "0"},
]


async def ask(creator: Client, **wanted: Any) -> Response:
    """Ask for a room that is like no other."""
    content = wanted.pop("creation_content", {})
    unique = content if not isinstance(content, dict) else {"org.example.number": uuid4().hex, **content}
    return await creator.post(CREATE_ROOM, {"creation_content": unique, **wanted})


async def content_of(client: Client, room_id: str, event_type: str, state_key: str = "") -> Any:
    answer = await client.get(room_path(room_id, "state", event_type, state_key))
    assert answer.status == 200, answer.body
    return answer.body


def state(event_type: str, content: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """An initial_state of one event."""
    return [{"type": event_type, "content": content, **more}]


@versions_of_each_form
async def test_a_room_begins_with_its_events_in_the_order_of_the_specification(
    alice: Client, bob: Client, version: str
) -> None:
    room_id = await new_room(
        alice,
        preset="private_chat",
        room_version=version,
        room_alias_name=unique_name("tea"),
        name="Tea",
        topic="Green",
        invite=[bob.user_id, bob.user_id],
        initial_state=state("org.example.colour", {"colour": "green"}),
    )
    page = await alice.get(room_path(room_id, "messages"), {"dir": "f", "limit": "50"})

    assert [(event["type"], event["state_key"]) for event in page.body["chunk"]] == [
        ("m.room.create", ""),
        ("m.room.member", alice.user_id),
        ("m.room.power_levels", ""),
        ("m.room.canonical_alias", ""),
        ("m.room.join_rules", ""),
        ("m.room.history_visibility", ""),
        ("m.room.guest_access", ""),
        ("org.example.colour", ""),
        ("m.room.name", ""),
        ("m.room.topic", ""),
        ("m.room.member", bob.user_id),
    ]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"room_version": 12}, (400, "M_BAD_JSON")),
        ({"room_version": ""}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"room_version": "0"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"preset": "tea_party"}, (400, "M_INVALID_PARAM")),
        ({"visibility": "secret"}, (400, "M_INVALID_PARAM")),
        ({"invite": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"invite": "@bob:test"}, (400, "M_BAD_JSON")),
        ({"room_alias_name": "a:b"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "#a"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "a b"}, (400, "M_INVALID_PARAM")),
        ({"creation_content": []}, (400, "M_BAD_JSON")),
        ({"creation_content": {"a": 1.5}}, (400, "M_BAD_JSON")),
        ({"creation_content": {"a": "x" * 65536}}, (413, "M_TOO_LARGE")),
        ({"name": "x" * 65536}, (413, "M_TOO_LARGE")),
        ({"name": "nothing \0 more"}, (400, "M_INVALID_PARAM")),
        ({"initial_state": [{"type": "org.example.a"}]}, (400, "M_MISSING_PARAM")),
        ({"initial_state": state("org.example.a", {"a": 2**53})}, (400, "M_BAD_JSON")),
        ({"initial_state": state("org.example.a", {}, state_key="@bob:test")}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("a" * 256, {})}, (400, "M_INVALID_PARAM")),
        ({"initial_state": state("org.example.a", {}, state_key="é" * 128)}, (400, "M_INVALID_PARAM")),
        ({"initial_state": state("m.room.create", {})}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("m.room.member", {"membership": "join"})}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("m.room.redaction", {"redacts": "$a"})}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("m.room.power_levels", {"ban": "50"})}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("m.room.server_acl", {"allow": ["b"]})}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": state("m.room.canonical_alias", {"alias": "tea"})}, (400, "M_INVALID_PARAM")),
        ({"initial_state": state("m.room.canonical_alias", {"alias": "#no:test"})}, (400, "M_BAD_ALIAS")),
        ({"initial_state": state("m.room.canonical_alias", {"alt_aliases": ["#a:b"]})}, (400, "M_BAD_ALIAS")),
    ],
)
async def test_what_is_no_room_is_refused(
    alice: Client, wanted: dict[str, Any], error: tuple[int, str]
) -> None:
    answer = await ask(alice, **wanted)
    rooms = await alice.get("/_matrix/client/v3/joined_rooms")

    assert (answer.status, answer.body["errcode"]) == error
    assert rooms.body == {"joined_rooms": []}


async def test_a_new_room_may_name_its_own_alias(alice: Client) -> None:
    name = unique_name("tea")
    content = {"alias": f"#{name}:test", "alt_aliases": [f"#{name}:test"]}
    room_id = await new_room(
        alice, room_alias_name=name, initial_state=state("m.room.canonical_alias", content)
    )

    assert await content_of(alice, room_id, "m.room.canonical_alias") == content


async def test_a_taken_alias_leaves_no_room_behind(alice: Client) -> None:
    name = unique_name("tea")
    first = await new_room(alice, room_alias_name=name)
    answer = await ask(alice, room_alias_name=name)
    rooms = await alice.get("/_matrix/client/v3/joined_rooms")

    assert answer.error == (400, "M_ROOM_IN_USE")
    assert rooms.body == {"joined_rooms": [first]}


@versions_of_each_form
async def test_what_only_the_server_says_of_a_room_cannot_be_given(
    alice: Client, bob: Client, version: str
) -> None:
    given = {"room_version": "1", "creator": bob.user_id, "type": "m.space", "m.federate": False}
    room_id = await new_room(alice, room_version=version, creation_content=given)
    content = await content_of(alice, room_id, "m.room.create")

    del content["org.example.number"]
    creator = {} if version in ("11", "12") else {"creator": alice.user_id}
    assert content == {"room_version": version, "type": "m.space", "m.federate": False, **creator}


@pytest.mark.invariant("SEC-JSON-2")
@versions_of_each_form
@pytest.mark.parametrize("odd", ODD_LEVELS)
async def test_sec_json_2_power_levels_of_wrong_types_make_no_room(
    alice: Client, version: str, odd: dict[str, Any]
) -> None:
    answer = await ask(alice, room_version=version, power_level_content_override=odd)

    assert answer.status == 400
    assert answer.body["errcode"] in {"M_BAD_JSON", "M_INVALID_PARAM", "M_INVALID_ROOM_STATE"}


async def test_power_levels_name_the_creator_up_to_version_11_and_not_from_12(alice: Client) -> None:
    named = {"users": {alice.user_id: 100}}
    answers = {
        (version, bool(users)): (
            await ask(alice, room_version=version, power_level_content_override={"users": users})
        ).status
        for version in ("11", "12")
        for users in (named["users"], {})
    }

    assert answers == {("11", True): 200, ("11", False): 400, ("12", True): 400, ("12", False): 200}


@pytest.mark.parametrize("odd", ["@bob:test", [5], ["bob"], ["@bob:no server"], None, {}])
async def test_additional_creators_are_a_list_of_user_ids(alice: Client, odd: Any) -> None:
    answer = await ask(alice, room_version="12", creation_content={"additional_creators": odd})

    assert answer.error == (400, "M_INVALID_PARAM")


async def test_a_trusted_chat_makes_creators_of_those_invited(alice: Client, bob: Client) -> None:
    room_id = await new_room(
        alice,
        preset="trusted_private_chat",
        room_version="12",
        invite=[bob.user_id],
        creation_content={"additional_creators": [bob.user_id, "@carol:test"]},
    )
    content = await content_of(alice, room_id, "m.room.create")

    assert content["additional_creators"] == [bob.user_id, "@carol:test"]


async def test_initial_state_overrides_the_preset_and_the_name_overrides_it(alice: Client) -> None:
    room_id = await new_room(
        alice,
        preset="private_chat",
        name="Tea",
        initial_state=[
            *state("m.room.join_rules", {"join_rule": "public"}),
            *state("m.room.name", {"name": "Coffee"}),
            *state("m.room.topic", {"topic": "Beans"}),
        ],
    )

    assert await content_of(alice, room_id, "m.room.join_rules") == {"join_rule": "public"}
    assert await content_of(alice, room_id, "m.room.name") == {"name": "Tea"}
    assert await content_of(alice, room_id, "m.room.topic") == {"topic": "Beans"}


async def test_the_visibility_stands_for_a_preset(alice: Client) -> None:
    rules = {}
    for visibility in ("public", "private"):
        answer = await ask(alice, visibility=visibility)
        room_id = answer.body["room_id"]
        listed = await alice.get(f"/_matrix/client/v3/directory/list/room/{quote(room_id)}")
        join_rules = await content_of(alice, room_id, "m.room.join_rules")
        rules[visibility] = (join_rules["join_rule"], listed.body["visibility"])

    assert rules == {"public": ("public", "public"), "private": ("invite", "private")}
