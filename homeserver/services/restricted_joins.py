"""Restricted rooms: who may enter one, and which member of it lets someone in.

Source: Client-Server API, "Restricted rooms"; Server-Server API, "Restricted rooms".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from homeserver.errors import Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin
from homeserver.protocol.identifiers import RoomId, ServerName, UserId, server_in
from homeserver.protocol.power_levels import PowerLevels, creators_of
from storage import memberships, shared_rooms
from storage.database import Database
from storage.memberships import Membership
from storage.room_heads import RoomHead

AUTHORISER_CANDIDATES: Final = 20


class NeedsHelpers(Exception):
    """A join needs an authoriser, and what finds one has not been loaded: see `load_helpers`."""

    def __init__(self, allowed: Iterable[RoomId] = ()) -> None:
        super().__init__("what finds an authoriser has to be loaded first")
        self.allowed = frozenset(allowed)
        """The rooms whose members may enter."""


@dataclass(frozen=True, slots=True)
class Helpers:
    """What decides how someone may enter a restricted room."""

    joined: frozenset[RoomId]
    """The rooms that the user is in, as far as that is known here."""
    members: tuple[UserId, ...]
    """Some local members of the room to be joined."""
    known: frozenset[RoomId] | None = None
    """The rooms whose members are known here; None for all: the user is one of ours."""


async def load_helpers(
    database: Database, user_nid: int, room_id: RoomId, server_name: ServerName
) -> Helpers:
    """What `authoriser` needs for a user of this server."""
    async with database.connection() as tx:
        joined = await memberships.rooms_of(tx, user_nid, Membership.JOIN)
        members = await memberships.joined_users_of_server(tx, room_id, server_name, AUTHORISER_CANDIDATES)
    return Helpers(frozenset(joined), tuple(members))


async def load_helpers_of_stranger(
    database: Database,
    user_nid: int | None,
    room_id: RoomId,
    server_name: ServerName,
    server_nid: int,
    allowed: Collection[RoomId],
) -> Helpers:
    """The same for a user of another server; `user_nid` is None for one whom nothing here names.

    `server_name` and `server_nid` are ours. Of a room that we are not in any more it is not known who is.
    """
    async with database.connection() as tx:
        joined = [] if user_nid is None else await memberships.rooms_of(tx, user_nid, Membership.JOIN)
        members = await memberships.joined_users_of_server(tx, room_id, server_name, AUTHORISER_CANDIDATES)
        found = await shared_rooms.find(tx, allowed, server_nid)
    known = frozenset(one for one, room in found.items() if room.is_resident)
    return Helpers(known.intersection(joined), tuple(members), known)


def is_restricted(head: RoomHead, user_id: UserId) -> bool:
    """Whether this user enters the room only by the conditions of its join rules."""
    rules = head.event("m.room.join_rules")
    own = head.event("m.room.member", user_id)
    return (
        rules is not None
        and rules.content.get("join_rule") in head.version.restricted_join_rules
        and (own is None or own.membership not in ("join", "invite"))
    )


def allowed_rooms(head: RoomHead) -> list[RoomId]:
    """The rooms whose members may enter; entries of `allow` that are malformed are met by nobody."""
    rules = head.event("m.room.join_rules")
    allow = rules.content.get("allow") if rules is not None else None
    named = (
        condition.get("room_id")
        for condition in (allow if isinstance(allow, list) else ())
        if isinstance(condition, dict) and condition.get("type") == "m.room_membership"
    )
    return [RoomId(room_id) for room_id in named if isinstance(room_id, str)]


def check_conditions(head: RoomHead, helpers: Helpers) -> None:
    """Check that a condition for entering the room is met.

    Raises Forbidden when none is, UnableToAuthoriseJoin when that is not known of all of them.
    """
    allowed = allowed_rooms(head)
    if not helpers.joined.isdisjoint(allowed):
        return
    if helpers.known is not None and not helpers.known.issuperset(allowed):
        raise UnableToAuthoriseJoin("this server is not in all rooms whose members may join: ask one that is")
    raise Forbidden("you are in none of the rooms whose members may join: join one, or be invited")


def authoriser(head: RoomHead, helpers: Helpers, server_name: ServerName) -> UserId:
    """The local user through whom someone enters a restricted room.

    Raises what check_conditions raises, and UnableToGrantJoin when nobody here may invite.
    """
    check_conditions(head, helpers)
    create = head.event("m.room.create")
    assert create is not None
    power_levels = head.event("m.room.power_levels")
    levels = PowerLevels.of(head.version, create, power_levels)
    named = power_levels.content.get("users") if power_levels is not None else None
    known: Iterable[str] = (*creators_of(head.version, create), *(named if isinstance(named, dict) else ()))
    able = [
        candidate
        for candidate in dict.fromkeys((*known, *helpers.members))
        if server_in(candidate) == server_name and levels.user_level(candidate) >= levels.invite
    ]
    members = head.events([("m.room.member", candidate) for candidate in able])
    for (_, candidate), member in members.items():
        if member.membership == "join":
            return UserId(candidate)
    raise UnableToGrantJoin("nobody of this server has the power to invite: join through another")
