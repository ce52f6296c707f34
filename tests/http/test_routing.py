from __future__ import annotations

import pytest

from homeserver.http.routing import Router
from tests.http.conftest import Ask
from tests.http.tea_house import TeaHouse

ROOM = "/_matrix/client/v3/rooms/!tea:test"


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix",
        "/_matrix/unknown",
        "/_matrix/client/unknown",
        "/_matrix/client/v3/whoami/",
        "/_matrix/client/v3//whoami",
        "/_matrix/client/v3/../v3/whoami",
        "/_matrix/client/v3/./whoami",
        "/_matrix/client/v3/%77hoami",
        "/_matrix/client/v3/rooms//state/m.room.topic",
        f"{ROOM}/event/",
        "//",
    ],
)
async def test_an_unknown_path_is_not_found(ask: Ask, path: str) -> None:
    answer = await ask("GET", path)

    assert answer.error == (404, "M_UNRECOGNIZED")
    assert answer.headers["Content-Type"] == "application/json"


async def test_a_wrong_method_is_told_the_right_ones_before_authentication(ask: Ask) -> None:
    answer = await ask("DELETE", f"{ROOM}/send/m.room.message/1")

    assert answer.error == (405, "M_UNRECOGNIZED")
    assert answer.headers["Allow"] == "PUT"
    assert (await ask("PATCH", "/_matrix/media/v3/upload")).error == (405, "M_UNRECOGNIZED")


async def test_an_escaped_slash_belongs_to_the_segment(ask: Ask) -> None:
    answer = await ask("GET", f"{ROOM}/event/$a%2Fb%2Bc+d")

    assert answer.body == {"event_id": "$a/b+c+d"}


async def test_segments_are_decoded_once(ask: Ask) -> None:
    assert (await ask("GET", f"{ROOM}/state/m.x/%252F")).body["state_key"] == "%2F"
    assert (await ask("GET", f"{ROOM}/state/m.x/..")).body["state_key"] == ".."
    assert (await ask("GET", f"{ROOM}/state/m.x/%2E%2E%2F")).body["state_key"] == "../"
    assert (await ask("GET", f"{ROOM}/state/m.x/t%C3%A9")).body["state_key"] == "té"
    assert (await ask("GET", "/_matrix/client/v3/directory/room/%23t:test")).body == {"alias": "#t:test"}


async def test_a_state_key_may_be_empty_with_and_without_a_slash(ask: Ask) -> None:
    empty = {"type": "m.room.topic", "state_key": ""}

    assert (await ask("GET", f"{ROOM}/state/m.room.topic")).body == empty
    assert (await ask("GET", f"{ROOM}/state/m.room.topic/")).body == empty


@pytest.mark.parametrize("key", ["%", "%2", "%zz", "%ff", "%ed%a0%80", "%00", "a%00b", "%c0%af", "%%41"])
async def test_what_is_not_percent_encoded_text_is_refused(ask: Ask, key: str) -> None:
    assert (await ask("GET", f"{ROOM}/state/m.x/{key}")).error == (400, "M_INVALID_PARAM")
    assert (await ask("GET", f"{ROOM}/state/m.x/{key * 500}")).error == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix/client/v3/rooms/tea/event/$a",
        "/_matrix/client/v3/rooms/!tea/event/$a",
        f"{ROOM}/event/a",
        f"{ROOM}/event/${'a' * 255}",
        "/_matrix/client/v3/directory/room/tea",
    ],
)
async def test_an_identifier_in_a_path_is_checked(ask: Ask, path: str) -> None:
    assert (await ask("GET", path)).error == (400, "M_INVALID_PARAM")


async def test_the_last_parameter_may_take_all_that_follows(ask: Ask) -> None:
    assert (await ask("GET", "/static/css/tea.css")).body == {"file": "css/tea.css"}


async def test_head_is_get_without_the_body(ask: Ask, house: TeaHouse) -> None:
    whole = await ask("GET", "/_matrix/client/v3/raw")
    head = await ask("HEAD", "/_matrix/client/v3/raw")

    assert (head.status, head.content) == (201, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    assert (await ask("HEAD", "/_matrix/client/v3/order")).status == 405


def test_fixed_text_goes_before_a_parameter_and_leaves_a_way_back() -> None:
    router = Router[str]()
    router.add("GET", "/rooms/public", "public")
    router.add("GET", "/rooms/{room}", "room")
    router.add("PUT", "/rooms/{room}", "make")
    router.add("GET", "/rooms/public/old", "old")
    router.add("GET", "/rooms/{room}/{part}", "part")
    router.add("GET", "/rooms/{rest*}", "rest")

    assert router.find("GET", "/rooms/public") == ("public", {})
    assert router.find("GET", "/rooms/tea") == ("room", {"room": "tea"})
    assert router.find("PUT", "/rooms/public") == ("make", {"room": "public"})
    assert router.find("GET", "/rooms/public/new") == ("part", {"room": "public", "part": "new"})
    assert router.find("GET", "/rooms/a/b/c") == ("rest", {"rest": "a/b/c"})


def test_a_method_and_path_has_one_endpoint() -> None:
    router = Router[str]()
    router.add("GET", "/rooms/{room}", "a")

    with pytest.raises(ValueError, match="twice"):
        router.add("GET", "/rooms/{other}", "b")
