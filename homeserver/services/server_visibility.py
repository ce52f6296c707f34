"""Which events another server may see, as a reader that all of its users are together.

The server is in the room, or was when these events came, or it would not be asked about. So where the
history was always open to members, nothing has to be known of its users. Otherwise what they were before an
event decides, by the same rule as for users: `homeserver.protocol.history_visibility`.
Source: Server-Server API, "Backfilling and retrieving missing events"; Client-Server API, "Room History
Visibility".
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from homeserver.protocol.events import Pdu
from homeserver.protocol.history_visibility import (
    HISTORY_VISIBILITY,
    View,
    may_see,
    strongest_membership,
    visibility_in,
)
from homeserver.protocol.identifiers import ServerName
from homeserver.services.client_events import ReadEvent
from storage import room_readers, room_timeline, server_views, state_deltas
from storage.database import Transaction
from storage.dictionaries import MEMBER_TYPE_NID
from storage.packed_state import REMOVED, Key
from storage.room_heads import RoomRef
from storage.server_views import MemberChange
from storage.state_deltas import Delta

MAX_USERS: Final = 10_000
"""Of a server's users in a room no more are looked at; an event that only others could see is not shown."""
USERS_AT_ONCE: Final = 500
MAX_CHANGES: Final = 20_000
"""Of the changes of some users no more are looked at; events after them are not shown on their account."""
DECODED_HERE: Final = 100


@dataclass(frozen=True, slots=True)
class _Place:
    """An event, the state before it, and the view in that state as far as it is known."""

    event: ReadEvent
    ver: int
    delta: Delta | None
    view: View

    def is_shown(self, server_name: ServerName) -> bool:
        """Whether the view shows the event; the server joined later or before."""
        return may_see(self.view, self.view.after(self.event.pdu, server_name), joined_later=True)

    def with_membership(self, membership: object) -> _Place:
        """The place with one more user's membership known."""
        both = strongest_membership((self.view.membership, membership))
        return replace(self, view=View(self.view.visibility, both))


class ServerVisibility:
    """Judges events for servers that are in their room, or were until after them."""

    def __init__(self) -> None:
        self._visibility_key: Key | None = None

    async def visible(
        self, tx: Transaction, room: RoomRef, server_name: ServerName, events: Sequence[ReadEvent]
    ) -> set[int]:
        """The numbers of those events that a server may see, of a room that it is in now, or left after them.

        All have a state before them: no outliers.
        """
        places = await self._places(tx, room, events)
        hidden = [place for place in places if not place.is_shown(server_name)]
        if hidden:
            hidden = await self._judged_by_users(tx, room, server_name, hidden)
        not_visible = {place.event.row.nid for place in hidden}
        return {event.row.nid for event in events} - not_visible

    async def _places(self, tx: Transaction, room: RoomRef, events: Sequence[ReadEvent]) -> list[_Place]:
        """The events with the visibility in the states before them, and nobody's membership."""
        befores = [event.row.state_before(room) for event in events]
        delta_ids = {before.delta for before in befores if before.delta is not None}
        deltas = await state_deltas.load(tx, delta_ids) if delta_ids else {}
        if self._visibility_key is None:
            self._visibility_key = await room_readers.state_key_of(tx, HISTORY_VISIBILITY)
        key, nids = self._visibility_key, []
        at_versions: dict[int, int] = {}
        if key is not None:
            at_versions = await server_views.entries_at(tx, room.nid, key, {before.ver for before in befores})
        for before in befores:
            nid = at_versions.get(before.ver, REMOVED)
            if key is not None and before.delta is not None:
                changed = deltas[before.delta].get(key)
                nid = nid if changed is None else changed
            nids.append(nid)
        known = await _pdus(tx, room, nids)
        views = [View(visibility_in(known[nid].content if nid in known else None)) for nid in nids]
        return [
            _Place(event, before.ver, None if before.delta is None else deltas[before.delta], view)
            for event, before, view in zip(events, befores, views, strict=True)
        ]

    async def _judged_by_users(
        self, tx: Transaction, room: RoomRef, server_name: ServerName, places: Sequence[_Place]
    ) -> list[_Place]:
        """Those of the places whose event stays hidden, whatever the server's users were before it."""
        hidden = list(places)
        users = await server_views.users_of_server(tx, room.nid, server_name, MAX_USERS)
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            first, last = min(place.ver for place in hidden), max(place.ver for place in hidden)
            changes = await server_views.member_changes(tx, room.nid, some, first, last, MAX_CHANGES + 1)
            forks = [_own_members(place.delta, some) for place in hidden]
            pdus = await _pdus(tx, room, (nid for fork in forks for nid in fork.values()))
            members = [
                {user: pdus[nid].membership if nid in pdus else None for user, nid in fork.items()}
                for fork in forks
            ]
            vers = [place.ver for place in hidden]
            if len(changes) > DECODED_HERE:
                held = await asyncio.to_thread(_memberships, changes, vers, members)
            else:
                held = _memberships(changes, vers, members)
            known = [place.with_membership(one) for place, one in zip(hidden, held, strict=True)]
            hidden = [place for place in known if not place.is_shown(server_name)]
            if not hidden:
                break
        return hidden


def _own_members(delta: Delta | None, users: Iterable[int]) -> dict[int, int]:
    """The member events of some users that a state has other than the trunk; 0 for one who has none there."""
    if delta is None:
        return {}
    found = ((user, delta.get((MEMBER_TYPE_NID, user))) for user in users)
    return {user: nid for user, nid in found if nid is not None}


def _memberships(
    changes: Sequence[MemberChange], vers: Sequence[int], members: Sequence[Mapping[int, object]]
) -> list[object]:
    """The strongest membership among some users in several states: trunk(ver), and who is otherwise there.

    Goes once through the versions. Where the changes were cut off nothing is known any more.
    """
    if len(changes) > MAX_CHANGES:
        cut_off_at = changes[MAX_CHANGES].ver
        changes = [change for change in changes if change.ver < cut_off_at]
    else:
        cut_off_at = max(vers, default=0) + 1
    found: list[object] = [None] * len(vers)
    of_user: dict[int, object] = {}
    done = 0
    for index in sorted(range(len(vers)), key=vers.__getitem__):
        while done < len(changes) and changes[done].ver <= vers[index]:
            of_user[changes[done].user_nid] = changes[done].membership
            done += 1
        if vers[index] < cut_off_at:
            held = Counter(of_user.values())
            for user, membership in members[index].items():
                held[of_user.get(user)] -= 1
                held[membership] += 1
            found[index] = strongest_membership(one for one, count in held.items() if count > 0)
    return found


async def _pdus(tx: Transaction, room: RoomRef, nids: Iterable[int]) -> dict[int, Pdu]:
    wanted = {nid for nid in nids if nid != REMOVED}
    if not wanted:
        return {}
    return {nid: row.pdu(room) for nid, row in (await room_timeline.by_nids(tx, wanted)).items()}
