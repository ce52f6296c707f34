"""Who of our users is in which room, and waking those who wait for news.

A user who synced lately is kept in memory with all rooms it has to do with, as of the stream's position: the
stream tells of each change. So finding whom an event concerns takes no look-up elsewhere. While a request
follows a user, the user stays.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

from homeserver.errors import Unavailable
from homeserver.protocol.identifiers import RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.services.single_flight import SingleFlight
from storage import memberships
from storage.database import Database
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_batch import StateChange
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomRef
from storage.stream import Stream, StreamEvent, StreamMembership

MAX_USER_ROOMS: Final = 500_000
"""Of (user, room): so many are kept in memory, and those of users whom requests follow."""
MAX_DROPPED: Final = 100
"""At most so many users are looked at for one who is loaded."""
MAX_WAITING: Final = 100_000


@dataclass(slots=True)
class UserRoom:
    """What a user is in a room. Positions are of the stream."""

    room: RoomRef
    membership: Membership
    pos: int
    """Where the user's newest member event is."""
    event_nid: int
    forgotten: bool = False
    since: int | None = None
    """Where the membership became what it is; None when that is not known: at or before `pos`."""
    out_of_band: bool = False
    """Whether this server was not in the room then: no event of the room's own tells of it."""


@dataclass(slots=True, eq=False)
class LocalUser:
    """A user of this server who syncs, and all rooms it has to do with."""

    user_id: UserId
    user_nid: int
    rooms: dict[int, UserRoom] = field(default_factory=dict)
    news: int = 0
    """Everything that concerns the user is at or before this position."""
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    followers: int = 0
    """How many requests are being answered for the user."""
    outside: dict[int, UserRoom] = field(default_factory=dict)
    """Those of the rooms of which only out-of-band memberships tell, the newest changes last."""

    def set_room(self, user_room: UserRoom) -> None:
        """Take over what the user is in a room now, after all other changes."""
        self.rooms[user_room.room.nid] = user_room
        self.outside.pop(user_room.room.nid, None)
        if user_room.out_of_band:
            self.outside[user_room.room.nid] = user_room

    def outside_after(self, pos: int) -> list[UserRoom]:
        """The rooms whose out-of-band membership changed after a position."""
        return list(takewhile(lambda user_room: user_room.pos > pos, reversed(self.outside.values())))


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A user's membership of a room became another one."""

    room: RoomRef
    membership: Membership
    pos: int
    event_nid: int
    """0 for whom a state resolution took out of the room."""
    out_of_band: bool = False

    @classmethod
    def of(cls, event: StreamEvent, change: StateChange) -> MemberChange:
        """What an event of the stream changed."""
        if change.now is None:
            return cls(event.room, Membership.LEAVE, event.pos, 0)
        return cls(event.room, Membership.of(change.now.pdu.membership), event.pos, change.now.nid)


@dataclass(slots=True)
class _Meanwhile:
    """What happened while a user was being loaded."""

    members: list[MemberChange] = field(default_factory=list)
    forgotten: list[RoomId] = field(default_factory=list)


class Notifier:
    """Keeps the users who sync and wakes them. `listen` is told of every event, in order."""

    def __init__(self, database: Database, stream: Stream) -> None:
        self._database = database
        self._stream = stream
        self._users: OrderedDict[UserId, LocalUser] = OrderedDict()
        self._loading: SingleFlight[UserId, None] = SingleFlight()
        self._meanwhile: dict[UserId, _Meanwhile] = {}
        self._in_room: dict[int, set[LocalUser]] = {}
        self._user_rooms = 0
        self._waiting = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many requests wait for news."""
        return self._waiting

    @property
    def users(self) -> int:
        """How many users are in memory."""
        return len(self._users)

    async def follow(self, user_id: UserId, user_nid: int) -> LocalUser:
        """A user with its rooms, as of the stream's position, and kept so until `unfollow`."""
        while (user := self._users.get(user_id)) is None:
            await self._loading.do(user_id, lambda: self._load(user_id, user_nid))
        self._users.move_to_end(user_id)
        user.followers += 1
        return user

    def unfollow(self, user: LocalUser) -> None:
        """A request that follows a user ends."""
        user.followers -= 1

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Take over what the next events of the stream change, and wake whom they concern."""
        for event in events:
            for change in event.changes:
                if change.key[0] == MEMBER_TYPE_NID and not change.keeps_out:
                    self._take_member(MemberChange.of(event, change), UserId(change.name[1]))
            if event.changes or not event.flags & EventFlag.NOT_FOR_CLIENTS:
                self._wake(self._in_room.get(event.room.nid, ()), event.pos)

    def listen_memberships(self, change: StreamMembership) -> None:
        """Take over what a user has become in a room that this server is not in."""
        self._take_member(
            MemberChange(change.room, change.membership, change.pos, change.event_nid, out_of_band=True),
            change.user_id,
        )

    def forgotten(self, user_id: UserId, room_id: RoomId) -> None:
        """A user has forgotten a room."""
        if (meanwhile := self._meanwhile.get(user_id)) is not None:
            meanwhile.forgotten.append(room_id)
        user = self._users.get(user_id)
        for user_room in user.rooms.values() if user is not None else ():
            if user_room.room.room_id == room_id:
                user_room.forgotten = True

    async def wait(self, user: LocalUser, after: int, timeout_s: float) -> bool:
        """Wait until something after a position may be new for a user; False when nothing was for so long.

        Raises Unavailable when too many wait: an empty answer at once would be asked for again at once.
        """
        if user.news > after:
            return True
        if self._closed:
            return False
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many requests wait for news")
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, woken)
        user.waiting.add(woken)
        self._waiting += 1
        try:
            await woken
        except TimeoutError:
            return False
        finally:
            timer.cancel()
            user.waiting.discard(woken)
            self._waiting -= 1
        return not self._closed

    def close(self) -> None:
        """Wake all who wait, and let nobody wait any more: the server stops."""
        self._closed = True
        self._wake(self._users.values(), 0)

    async def _load(self, user_id: UserId, user_nid: int) -> None:
        meanwhile = self._meanwhile[user_id] = _Meanwhile()
        try:
            async with self._database.connection() as tx:
                rows = await memberships.of_user(tx, user_nid)
            if any(row.pos > self._stream.position for row in rows):
                await (
                    self._stream.catch_up()
                )  # nobody may be ahead of the stream: what it tells would be lost
        finally:
            del self._meanwhile[user_id]
        # From here on nothing is awaited: the user is complete as of the stream's position.
        user = LocalUser(user_id, user_nid, news=self._stream.position)
        for row in rows:
            if row.version in ROOM_VERSIONS:
                room = RoomRef(row.room_nid, row.room_id, ROOM_VERSIONS[row.version])
                user.set_room(
                    UserRoom(
                        room,
                        row.membership,
                        row.pos,
                        row.event_nid,
                        row.forgotten,
                        out_of_band=row.out_of_band,
                    )
                )
        self._users[user_id] = user
        self._user_rooms += 1 + len(user.rooms)
        for user_room in user.rooms.values():
            if user_room.membership is Membership.JOIN:
                self._in_room.setdefault(user_room.room.nid, set()).add(user)
        for room_id in meanwhile.forgotten:
            self.forgotten(user_id, room_id)
        for change in meanwhile.members:
            self._take_member(change, user_id)
        self._drop_unused()

    def _take_member(self, change: MemberChange, user_id: UserId) -> None:
        if (meanwhile := self._meanwhile.get(user_id)) is not None:
            meanwhile.members.append(change)
        user = self._users.get(user_id)
        if user is None:
            return
        membership = change.membership
        known = user.rooms.get(change.room.nid)
        if known is None:
            known = UserRoom(change.room, membership, 0, 0, since=change.pos)
            self._user_rooms += 1
        elif known.pos >= change.pos:
            return
        elif known.membership is not membership:
            known.since = change.pos
        known.membership, known.pos, known.event_nid = membership, change.pos, change.event_nid
        known.forgotten, known.out_of_band = False, change.out_of_band
        user.set_room(known)
        in_room = self._in_room.setdefault(change.room.nid, set())
        if membership is Membership.JOIN:
            in_room.add(user)
        else:
            in_room.discard(user)
            if not in_room:
                del self._in_room[change.room.nid]
        self._wake((user,), change.pos)

    def _wake(self, users: Iterable[LocalUser], pos: int) -> None:
        for user in users:
            user.news = max(user.news, pos)
            for woken in user.waiting:
                if not woken.done():
                    woken.set_result(None)

    def _drop_unused(self) -> None:
        """Forget the users who synced longest ago, but none whom a request follows, nor the newest."""
        for user in list(islice(self._users.values(), min(MAX_DROPPED, len(self._users) - 1))):
            if self._user_rooms <= MAX_USER_ROOMS:
                return
            if user.followers:
                self._users.move_to_end(user.user_id)
            else:
                self._drop(user)

    def _drop(self, user: LocalUser) -> None:
        del self._users[user.user_id]
        self._user_rooms -= 1 + len(user.rooms)
        for room_nid in user.rooms:
            in_room = self._in_room.get(room_nid)
            if in_room is not None:
                in_room.discard(user)
                if not in_room:
                    del self._in_room[room_nid]


def _expire(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_exception(TimeoutError())
