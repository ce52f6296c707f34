"""What is new for a device since it last asked.

Nearly every answer comes from memory: the notifier knows the user's rooms, the newest events are in a ring,
and whoever waits in the same room gets the same bytes. Only what the ring no longer covers, and rooms that
are new to the reader, are read from the database.
Source: Client-Server API, "Syncing".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from homeserver.errors import InvalidParam
from homeserver.protocol.filters import Filter
from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.notifier import LocalUser, Notifier, UserRoom
from homeserver.services.recent_events import RecentEvents
from homeserver.services.sync_sections import SyncSections
from homeserver.services.sync_tokens import SyncToken
from homeserver.services.sync_viewer import Section, SectionKind, Viewer
from storage.memberships import Membership
from storage.stream import Stream

LONGEST_TIMEOUT_MS: Final = 300_000


@dataclass(frozen=True)
class SyncRequest:
    """What a client asks for, in the specification's names."""

    since: str | None = None
    timeout_ms: int = 0
    full_state: bool = False
    filter: Filter = field(default_factory=Filter)
    state_after_key: str | None = None
    """The name under which the state after the timeline is to be given, instead of the state before it."""


@dataclass(frozen=True)
class Sync:
    """Answers /sync."""

    notifier: Notifier
    recent: RecentEvents
    stream: Stream
    sections: SyncSections
    incarnation: str
    clock_ms: Callable[[], int]

    async def sync(self, requester: Requester, request: SyncRequest) -> bytes:
        """The response body: at once when something is new or nobody waits, else when something comes.

        Raises InvalidParam for a token that is none of ours.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.timeout_ms, LONGEST_TIMEOUT_MS) / 1000
        since = await self._position(request.since)
        user = await self.notifier.follow(requester.user_id, requester.user_nid)
        try:
            while True:
                upto = self.stream.position
                if since is None or request.full_state or user.news > since:
                    rooms = await self._rooms(requester, user, since, upto, request)
                    if rooms or since is None or request.full_state:
                        return self._body(upto, rooms)
                    since = upto  # nothing of all that is for this reader
                if loop.time() >= deadline or not await self.notifier.wait(
                    user, upto, deadline - loop.time()
                ):
                    return self._body(upto, {})
        finally:
            self.notifier.unfollow(user)

    async def _position(self, since: str | None) -> int | None:
        """The position that a token stands for; None says to begin anew: the database has another history."""
        if since is None:
            return None
        token = SyncToken.parse(since)
        if token is None:
            raise InvalidParam("since is no token of this server")
        if token.incarnation != self.incarnation:
            return None
        if token.pos > self.stream.position:
            await self.stream.catch_up()
        return min(token.pos, self.stream.position)

    async def _rooms(
        self, requester: Requester, user: LocalUser, since: int | None, upto: int, request: SyncRequest
    ) -> dict[SectionKind, dict[RoomId, bytes]]:
        """The parts of the response, by membership: those that have nothing new are left out."""
        allows = request.filter.room.allows_room
        sections = [
            section
            for user_room in self._changed(user, since, request)
            if (section := self._section(user_room, since, request)) is not None
            and allows(user_room.room.room_id)
        ]
        if not sections:
            return {}
        viewer = Viewer(
            requester,
            since=since,
            upto=upto,
            now_ms=self.clock_ms(),
            filter_=request.filter,
            state_after_key=request.state_after_key,
        )
        return await self.sections.render(viewer, sections)

    def _changed(self, user: LocalUser, since: int | None, request: SyncRequest) -> Iterable[UserRoom]:
        """The rooms of a user in which something may be new; all of them where those are found no sooner."""
        if since is None or request.full_state:
            return user.rooms.values()
        changed = self.recent.rooms_after(since, len(user.rooms))
        if changed is None:
            return user.rooms.values()
        found = {nid: user.rooms[nid] for nid in changed if nid in user.rooms}
        found |= {user_room.room.nid: user_room for user_room in user.outside_after(since)}
        return found.values()

    def _section(self, user_room: UserRoom, since: int | None, request: SyncRequest) -> Section | None:
        """Where a room belongs in the response; None when it has nothing new."""
        changed = since is None or user_room.pos > since
        kind: SectionKind
        match user_room.membership:
            case Membership.JOIN:
                covered = since is not None and since >= self.recent.start
                if covered and not changed and not request.full_state:
                    assert since is not None
                    if self.recent.last_pos(user_room.room.nid) <= since:
                        return None
                kind = "join"
            case Membership.INVITE if changed or request.full_state:
                kind = "invite"
            case Membership.KNOCK if changed or request.full_state:
                kind = "knock"
            case Membership.LEAVE | Membership.BAN if changed:
                if since is None and (user_room.forgotten or not request.filter.room.include_leave):
                    return None
                kind = "leave"
            case _:
                return None
        return Section(kind, replace(user_room), request.full_state)

    def _body(self, upto: int, rooms: Mapping[SectionKind, Mapping[RoomId, bytes]]) -> bytes:
        token = SyncToken(upto, self.clock_ms(), self.incarnation)
        kinds = [
            b'"%s":{%s}'
            % (
                kind.encode(),
                b",".join(orjson.dumps(room_id) + b":" + section for room_id, section in by_id.items()),
            )
            for kind, by_id in rooms.items()
        ]
        return b'{"next_batch":"%s","rooms":{%s},%s}' % (str(token).encode(), b",".join(kinds), _NOTHING_ELSE)


_NOTHING_ELSE: Final = (
    b'"account_data":{"events":[]},"presence":{"events":[]},"to_device":{"events":[]},'
    b'"device_lists":{"changed":[],"left":[]},"device_one_time_keys_count":{}'
)
"""Parts that clients read without looking whether they are there."""
