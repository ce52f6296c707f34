"""History visibility: every visibility against every change of a membership, for users and for servers."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import (
    View,
    ViewHistory,
    Visibility,
    may_see,
    strongest_membership,
    visibility_in,
)
from tests.protocol.rooms import V12, make_event

WORLD_READABLE, SHARED, INVITED, JOINED = Visibility
MEMBERSHIPS: Final = (None, "invite", "join", "knock", "leave", "ban")
READER: Final = "@reader:here.test"


def _event(event_type: str, state_key: str | None = None, content: dict[str, Any] | None = None) -> Pdu:
    return make_event(V12, event_type, "@alice:test", state_key, content, room_id="!room")


MESSAGE: Final = _event("m.room.message")


def _change_to(visibility: object) -> Pdu:
    return _event("m.room.history_visibility", "", {"history_visibility": visibility})


def _member(membership: object, user_id: str = READER) -> Pdu:
    return _event("m.room.member", user_id, {"membership": membership})


def _sees(view: View, event: Pdu, *, joined_later: bool = False, reader: str = READER) -> bool:
    return may_see(view, view.after(event, reader), joined_later=joined_later)


# Who sees a message, by membership at that time. "later": only those who joined afterwards.
MESSAGES: Final = {
    WORLD_READABLE: dict.fromkeys(MEMBERSHIPS, "yes"),
    SHARED: {**dict.fromkeys(MEMBERSHIPS, "later"), "join": "yes"},
    INVITED: {**dict.fromkeys(MEMBERSHIPS, "no"), "join": "yes", "invite": "yes"},
    JOINED: {**dict.fromkeys(MEMBERSHIPS, "no"), "join": "yes"},
}


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("membership", MEMBERSHIPS, ids=str)
@pytest.mark.parametrize("visibility", Visibility)
def test_sec_vis_1_who_sees_a_message(visibility: Visibility, membership: str | None) -> None:
    expected = MESSAGES[visibility][membership]
    view = View(visibility, membership)

    assert _sees(view, MESSAGE) is (expected == "yes")
    assert _sees(view, MESSAGE, joined_later=True) is (expected in ("yes", "later"))


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("joined_later", [False, True])
@pytest.mark.parametrize("after", MEMBERSHIPS[1:])
@pytest.mark.parametrize("before", MEMBERSHIPS, ids=str)
@pytest.mark.parametrize("visibility", Visibility)
def test_sec_vis_1_the_readers_own_member_events(
    visibility: Visibility, before: str | None, after: str, joined_later: bool
) -> None:
    """Seen if the membership before or after would show a message."""
    either = (MESSAGES[visibility][before], MESSAGES[visibility][after])

    seen = _sees(View(visibility, before), _member(after), joined_later=joined_later)

    assert seen is ("yes" in either or (joined_later and "later" in either))


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("joined_later", [False, True])
@pytest.mark.parametrize("membership", MEMBERSHIPS, ids=str)
@pytest.mark.parametrize("after", Visibility)
@pytest.mark.parametrize("before", Visibility)
def test_sec_vis_1_changes_of_the_visibility_itself(
    before: Visibility, after: Visibility, membership: str | None, joined_later: bool
) -> None:
    """Seen if the visibility before or after would show a message."""
    either = (MESSAGES[before][membership], MESSAGES[after][membership])

    seen = _sees(View(before, membership), _change_to(after.value), joined_later=joined_later)

    assert seen is ("yes" in either or (joined_later and "later" in either))


@pytest.mark.invariant("SEC-VIS-1")
def test_sec_vis_1_one_who_joins_and_leaves_always_sees_both() -> None:
    for visibility in Visibility:
        assert _sees(View(visibility, None), _member("join"))
        assert _sees(View(visibility, "join"), _member("leave"))
        assert _sees(View(visibility, "join"), _member("ban"))


@pytest.mark.parametrize("event", [_member("join", "@other:there.test"), _event("m.room.topic", "", {})])
def test_no_other_state_event_changes_the_view(event: Pdu) -> None:
    view = View(JOINED, "leave")

    assert view.after(event, READER) == view
    assert not _sees(view, event)


def test_a_member_event_without_a_state_key_is_a_message() -> None:
    assert not _sees(View(JOINED, None), _event("m.room.member", None, {"membership": "join"}))


@pytest.mark.parametrize(
    "content", [None, {}, *({"history_visibility": value} for value in ("x", None, 1, ["joined"]))]
)
def test_a_visibility_that_is_missing_or_not_understood_is_shared(content: dict[str, Any] | None) -> None:
    assert visibility_in(content) is SHARED


@pytest.mark.parametrize("visibility", Visibility)
def test_a_known_visibility_is_what_it_says(visibility: Visibility) -> None:
    assert visibility_in({"history_visibility": visibility.value}) is visibility


# --- Servers


@pytest.mark.parametrize(
    ("memberships", "strongest"),
    [
        ([], None),
        (["leave", "ban"], None),
        (["knock", "invite", "leave"], "invite"),
        (["invite", "join", "ban"], "join"),
        ([["join"]], None),
    ],
)
def test_a_server_sees_what_its_strongest_member_sees(memberships: list[object], strongest: object) -> None:
    assert strongest_membership(memberships) == strongest


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", Visibility)
def test_sec_vis_1_a_server_sees_how_its_users_come_and_go(visibility: Visibility) -> None:
    nobody_there = View(visibility, strongest_membership(["leave"]))

    assert _sees(nobody_there, _member("join"), reader="here.test")
    assert _sees(View(visibility, "join"), _member("leave"), reader="here.test")
    assert _sees(nobody_there, _member("join"), reader="there.test") is (visibility is WORLD_READABLE)
    assert _sees(nobody_there, _member("join"), reader="re.test") is (visibility is WORLD_READABLE)


# --- Pages


_changes_of_visibility = st.dictionaries(st.integers(0, 20), st.sampled_from(Visibility), max_size=5)
_changes_of_membership = st.dictionaries(st.integers(0, 20), st.sampled_from(MEMBERSHIPS), max_size=8)


@given(_changes_of_visibility, _changes_of_membership)
def test_a_history_of_views_answers_as_each_view_does(
    visibilities: dict[int, Visibility], memberships: dict[int, str | None]
) -> None:
    history = ViewHistory(sorted(visibilities.items()), sorted(memberships.items()))
    view = View()
    for version in range(-1, 23):
        view = View(visibilities.get(version, view.visibility), memberships.get(version, view.membership))
        joined_later = any(at > version and value == "join" for at, value in memberships.items())

        assert history.view_at(version) == view
        assert history.joined_after(version) is joined_later
        assert history.shows(version) is _sees(view, MESSAGE, joined_later=joined_later)


def test_a_page_shows_what_was_said_while_the_reader_was_there() -> None:
    history = ViewHistory(
        [(2, JOINED)], [(5, "join"), (9, "leave"), (14, "invite"), (16, "join"), (18, "ban")]
    )

    assert [version for version in range(25) if history.shows(version)] == [0, 1, 5, 6, 7, 8, 16, 17]
