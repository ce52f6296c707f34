"""What a state that another server tells says of users of ours, when this server comes back into a room.

It brings none of them back. Where it has them in the room by a join that a user of ours has undone since, it
is no state of today: what was done here has not got to that server.
"""

from __future__ import annotations

from collections.abc import Mapping

from homeserver.protocol.errors import InvalidEvent
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import ServerName, server_in
from storage import room_state, stored_places
from storage.database import Database
from storage.room_heads import RoomRef, StoredEvent


def brought_in(
    changes: Mapping[StateKey, StoredEvent | None], join: Pdu, server_name: ServerName
) -> dict[StateKey, StoredEvent]:
    """The users of this server whom changes of a state have in the room, less the one whose join follows."""
    return {
        key: stored
        for key, stored in changes.items()
        if key[0] == "m.room.member"
        and key != join.key
        and stored is not None
        and stored.pdu.membership == "join"
        and server_in(key[1]) == server_name
    }


async def check_up_to_date(
    database: Database, room: RoomRef, joins: Mapping[StateKey, StoredEvent], server_name: ServerName
) -> None:
    """Raise InvalidEvent where one of some joins was undone here by a user of this server."""
    if not joins:
        return
    async with database.connection() as tx:
        later = await room_state.later_events(tx, [stored.nid for stored in joins.values()])
        bodies = await stored_places.bodies_by_nid(tx, room, later)
    for body in bodies.values():
        if body.pdu.membership != "join" and server_in(body.pdu.sender) == server_name:
            raise InvalidEvent(f"it does not know that {body.pdu.key[1]} has left")
