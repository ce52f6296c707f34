"""What the end of an account leaves to do: its user leaves every room.

Deactivating an account notes that in the database. Whoever did it, a request or a command beside the server,
a server that runs works it off, and goes on after a crash where it was.
Source: Client-Server API, "POST /_matrix/client/v3/account/deactivate".
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from homeserver.errors import MatrixError, Unavailable
from homeserver.protocol.identifiers import RoomId
from homeserver.services.clock import Clock
from homeserver.services.room_membership import RoomMembership
from storage import memberships, unfinished_deactivations
from storage.database import Database
from storage.memberships import Membership
from storage.unfinished_deactivations import UnfinishedDeactivation

log = logging.getLogger(__name__)

LEAVABLE: Final = (Membership.JOIN, Membership.INVITE, Membership.KNOCK)


@dataclass(frozen=True)
class Deactivations:
    """Finishes the deactivation of accounts."""

    database: Database
    room_membership: RoomMembership
    clock: Clock

    async def finish_all(self) -> None:
        """Take those users out of their rooms whose turn it is: joined, invited, or knocking.

        What fails is tried again later, and keeps no other room and no other user. Raises Unavailable when
        nothing can be written now.
        """
        while True:
            async with self.database.connection() as tx:
                taken = await unfinished_deactivations.take(tx, self.clock())
            if taken is None:
                return
            await self._leave_rooms(taken)

    async def _leave_rooms(self, user: UnfinishedDeactivation) -> None:
        rooms: list[RoomId] = []
        async with self.database.connection() as tx:
            for membership in LEAVABLE:
                rooms += await memberships.rooms_of(tx, user.user_nid, membership)
        for room_id in rooms:
            await self._leave(user, room_id)
        # The first look may have been too early for a join that was on its way when the account ended.
        if not rooms and user.attempts > 1:
            async with self.database.connection() as tx:
                await unfinished_deactivations.remove(tx, user.user_nid)

    async def _leave(self, user: UnfinishedDeactivation, room_id: RoomId) -> None:
        try:
            await self.room_membership.leave_as(user.user_id, room_id, {})
        except Unavailable:
            raise
        except MatrixError as error:
            log.warning("deactivated user %s does not get out of %s: %s", user.user_id, room_id, error.error)
        except Exception:
            log.exception("deactivated user %s does not get out of %s", user.user_id, room_id)
