"""Which events of a room's history a reader may see.

The one place that decides it, for every endpoint and for other servers. A reader is a user, or a server:
its membership is the strongest among its users', and it joined later if one of them did. Rejected and
soft-failed events are shown to nobody, and events of ignored users not to those who ignore them: both are
left out before anyone asks here.
Source: Client-Server API, "Room History Visibility".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import server_in
from homeserver.protocol.strict_json import JsonObject

HISTORY_VISIBILITY: Final[StateKey] = ("m.room.history_visibility", "")


class Visibility(Enum):
    """The values of m.room.history_visibility, most permissive first."""

    WORLD_READABLE = "world_readable"
    SHARED = "shared"
    INVITED = "invited"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class View:
    """What a room's state says about one reader's view."""

    visibility: Visibility = Visibility.SHARED
    membership: object = None
    """content.membership of the reader's member event; None for one who was never a member."""

    def after(self, event: Pdu, reader: str) -> View:
        """The view after an event: other than before it only for a change of the visibility or of the reader.

        `reader`: a user ID, or the name of a server.
        """
        if event.state_key is None:
            return self
        if event.key == HISTORY_VISIBILITY:
            return View(visibility_in(event.content), self.membership)
        if event.type == "m.room.member":
            if event.state_key == reader:
                return View(self.visibility, event.membership)
            if server_in(event.state_key) == reader:
                return View(self.visibility, strongest_membership((self.membership, event.membership)))
        return self


def visibility_in(content: JsonObject | None) -> Visibility:
    """What the content of m.room.history_visibility says: *shared* if it is missing or not understood."""
    value = None if content is None else content.get("history_visibility")
    return _VISIBILITIES.get(value, Visibility.SHARED) if isinstance(value, str) else Visibility.SHARED


def strongest_membership(memberships: Iterable[object]) -> object:
    """The membership of a server, given those of its users: one that shows something, or None."""
    held = list(memberships)
    return next((membership for membership in ("join", "invite") if membership in held), None)


def may_see(before: View, after: View, *, joined_later: bool) -> bool:
    """Whether a reader may see an event.

    `before` and `after`: the reader's view in the states before and after the event. The specification lets
    an event be seen that either of them shows, if it changes the visibility or the reader's membership;
    before and after any other event the view is the same (`View.after`). The state before is the event's
    own, never the room's state of today. `joined_later`: the reader joined at any time after the event, even
    if the reader left since.
    """
    return _shows(before, joined_later) or (after != before and _shows(after, joined_later))


def _shows(view: View, joined_later: bool) -> bool:
    match view.visibility:
        case Visibility.WORLD_READABLE:
            return True
        case Visibility.SHARED:
            return view.membership == "join" or joined_later
        case Visibility.INVITED:
            return view.membership in ("join", "invite")
        case Visibility.JOINED:
            return view.membership == "join"


class ViewHistory:
    """One reader's view of a room at every version of its state, to filter whole pages of events with.

    Built once from the short lists of what changed, and asked for each event: a look-up by bisection.
    Versions are those of the room's resolved state, ascending; a change at a version holds from there on.
    Events whose state is none of these versions (a fork's own state) go to `may_see` one by one.
    """

    __slots__ = ("_last_join", "_versions", "_views", "_visible")

    def __init__(
        self, visibilities: Sequence[tuple[int, Visibility]], memberships: Sequence[tuple[int, object]]
    ) -> None:
        """`visibilities` and `memberships`: (version, new value), ascending.

        Where a resolution took the value away the new value is SHARED, or None.
        """
        self._last_join = max((version for version, value in memberships if value == "join"), default=-1)
        at_versions: dict[int, View] = {}
        visibility_at, membership_at = dict(visibilities), dict(memberships)
        view = View()
        for version in sorted({*visibility_at, *membership_at}):
            view = View(
                visibility_at.get(version, view.visibility), membership_at.get(version, view.membership)
            )
            at_versions[version] = view
        self._versions = list(at_versions)
        self._views = [View(), *at_versions.values()]
        # A join comes at a version of the list, so between two of them joined_later does not change.
        starts = [-1, *self._versions]
        self._visible = [
            _shows(view, start < self._last_join) for start, view in zip(starts, self._views, strict=True)
        ]

    def view_at(self, version: int) -> View:
        """The reader's view in a version of the state."""
        return self._views[bisect_right(self._versions, version)]

    def joined_after(self, version: int) -> bool:
        """Whether the reader joined at any time after a version."""
        return version < self._last_join

    def shows(self, version: int) -> bool:
        """Whether an event is visible whose state before is this version.

        The reader's own member events, and changes of the visibility, go to `may_see` one by one.
        """
        return self._visible[bisect_right(self._versions, version)]


_VISIBILITIES: Final = {visibility.value: visibility for visibility in Visibility}
