"""What is new for a device since it last asked.

Nearly every answer comes from memory: the notifier knows the user's rooms, the newest events are in a ring,
and whoever waits in the same room gets the same bytes. Only what the ring no longer covers, and rooms that
are new to the reader, are read from the database.
Source: Client-Server API, "Syncing".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from homeserver.errors import InvalidParam
from homeserver.protocol.filters import Filter
from homeserver.protocol.identifiers import RoomId
from homeserver.services.access_tokens import Requester
from homeserver.services.notifier import LocalUser, Notifier, UserRoom
from homeserver.services.recent_events import RecentEvents
from homeserver.services.sync_sections import Section, SyncSections
from homeserver.services.sync_tokens import SyncToken
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
        user = await self.notifier.user(requester.user_id, requester.user_nid)
        since = self._position(request.since)
        while True:
            upto = self.stream.position
            if since is None or request.full_state or user.news > since:
                rooms = await self._rooms(requester, user, since, upto, request)
                if rooms or since is None or request.full_state:
                    return self._body(upto, rooms)
            if loop.time() >= deadline or not await self.notifier.wait(user, upto, deadline - loop.time()):
                return self._body(upto, {})

    def _position(self, since: str | None) -> int | None:
        """The position that a token stands for; None says to begin anew: the database has another history."""
        if since is None:
            return None
        token = SyncToken.parse(since)
        if token is None:
            raise InvalidParam("since is no token of this server")
        if token.incarnation != self.incarnation:
            return None
        return min(token.pos, self.stream.position)

    async def _rooms(
        self, requester: Requester, user: LocalUser, since: int | None, upto: int, request: SyncRequest
    ) -> dict[str, dict[RoomId, bytes]]:
        """The parts of the response, by membership: those that have nothing new are left out."""
        wanted: dict[str, list[Section]] = {}
        allows = request.filter.room.allows_room
        for user_room in user.rooms.values():
            found = self._section(user_room, since, request)
            if found is not None and allows(user_room.room.room_id):
                kind, section = found
                wanted.setdefault(kind, []).append(section)
        if not wanted:
            return {}
        return await self.sections.render(requester, wanted, upto, request.filter, request.state_after_key)

    def _section(
        self, user_room: UserRoom, since: int | None, request: SyncRequest
    ) -> tuple[str, Section] | None:
        """Where a room belongs in the response, and from where on; None when it has nothing new."""
        frozen = replace(user_room)
        changed = since is None or frozen.pos > since
        match frozen.membership:
            case Membership.JOIN:
                last_pos = self.recent.last_pos(frozen.room.nid)
                covered = since is not None and since >= self.recent.start
                if covered and since is not None and last_pos <= since and not request.full_state:
                    return None
                return "join", Section(frozen, since, request.full_state)
            case Membership.INVITE if changed:
                return "invite", Section(frozen, since)
            case Membership.KNOCK if changed:
                return "knock", Section(frozen, since)
            case Membership.LEAVE | Membership.BAN if changed:
                if since is None and (frozen.forgotten or not request.filter.room.include_leave):
                    return None
                return "leave", Section(frozen, since)
        return None

    def _body(self, upto: int, rooms: dict[str, dict[RoomId, bytes]]) -> bytes:
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
