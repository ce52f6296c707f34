"""Which servers to ask about a room."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import RoomId, ServerName, parse_server_name, server_name_of
from storage import memberships
from storage.database import Database


async def servers_to_ask(
    database: Database,
    room_id: RoomId,
    named: Iterable[str],
    *,
    last: Iterable[str] = (),
    own: ServerName,
    most: int,
) -> list[ServerName]:
    """Servers that may be in a room, the best first: those named, then those with the most members, `last`.

    Ours is never among them; what is no server name is left out.
    """
    async with database.connection() as tx:
        of_members = await memberships.servers_of(tx, room_id, most + 1)  # ours may be among them
    found: dict[ServerName, None] = {}
    for name in (*named, *of_members, *last):
        with suppress(InvalidIdentifier):
            found[parse_server_name(name)] = None
    found.pop(own, None)
    return list(found)[:most]


def creators_server(room_id: RoomId) -> list[ServerName]:
    """The server that made a room, as its ID names it; the IDs of newer rooms name none."""
    try:
        return [server_name_of(room_id)]
    except InvalidIdentifier:
        return []
