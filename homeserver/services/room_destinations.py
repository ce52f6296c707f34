"""Which other servers are owed the events of rooms, from memory where nobody came or went since.

The times that servers spent in a room say it for each of its events, those that will come included until a
server comes or goes; so what is read once stays true until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, parse_server_name, server_in
from homeserver.server_policy import ServerPolicy
from homeserver.services.bounded_cache import BoundedCache
from storage import room_servers, sent_positions
from storage.database import Database
from storage.dictionaries import MEMBER_TYPE_NID
from storage.event_flags import EventFlag
from storage.room_heads import StoredEvent
from storage.room_servers import Interval, Server
from storage.stream import StreamEvent

MAX_INTERVALS: Final = 500_000
_WITHOUT_JOIN: Final = ("leave", "ban")
_UNTOLD_CHANGES: Final = EventFlag.HIDDEN | EventFlag.GAP
"""Events that come with changes of their room which they may not tell of."""

Intervals: TypeAlias = Sequence[Interval]


class RoomDestinations:
    """Says to whom events go: to servers that we talk to, never to this one."""

    def __init__(self, database: Database, policy: ServerPolicy) -> None:
        self._database = database
        self._policy = policy
        self._rooms: BoundedCache[int, Intervals] = BoundedCache(MAX_INTERVALS)

    def may_send(self, server_name: ServerName) -> bool:
        """Whether we send to a server at all; who names one in a user ID may name anything."""
        try:
            parse_server_name(server_name)
        except InvalidIdentifier:
            return False
        return self._policy.permits(server_name)

    def forget(self) -> None:
        """Ask the database again for every room: who came and went meanwhile is not known."""
        self._rooms.clear()

    async def of(self, events: Sequence[StreamEvent]) -> list[Sequence[Server]]:
        """For each event the servers that are owed it. The events follow those of the call before."""
        for event in events:
            if self._moves_servers(event):
                self._rooms.drop(event.room.nid)
        rooms = await self._intervals(events)
        destinations: list[Sequence[Server]] = []
        rescinding: dict[tuple[int, int], int] = {}
        for index, event in enumerate(events):
            servers: list[Server] = []
            if event.flags & EventFlag.FED:
                author = server_in(event.stored.pdu.sender)  # who has it already
                servers = [
                    interval.server
                    for interval in rooms[event.room.nid]
                    if interval.is_owed(event.seq) and interval.server.name != author
                ]
                if _may_rescind(event):
                    rescinding[event.room.nid, event.pos] = index
            destinations.append(servers)
        if rescinding:
            async with self._database.connection() as tx:
                extra = await sent_positions.extra_servers(tx, list(rescinding))
            for (_, pos), index in rescinding.items():
                more = [server for server in extra.get(pos, ()) if self.may_send(server.name)]
                destinations[index] = [*destinations[index], *more]
        return destinations

    async def _intervals(self, events: Sequence[StreamEvent]) -> Mapping[int, Intervals]:
        """The servers of the rooms of all events that other servers are owed."""
        found: dict[int, Intervals] = {}
        unknown: dict[int, int] = {}
        for event in events:
            room_nid = event.room.nid
            if not event.flags & EventFlag.FED or room_nid in found or room_nid in unknown:
                continue
            known = self._rooms.get(room_nid)
            if known is None:
                unknown[room_nid] = event.seq
            else:
                found[room_nid] = known
        if unknown:
            async with self._database.connection() as tx:
                loaded = await room_servers.intervals(tx, unknown)
            for room_nid, intervals in loaded.items():
                known = [interval for interval in intervals if self.may_send(interval.server.name)]
                self._rooms.put(room_nid, known, 1 + len(known))
                found[room_nid] = known
        return found

    def _moves_servers(self, event: StreamEvent) -> bool:
        """Whether with an event servers may have come into its room, or gone."""
        if event.flags & _UNTOLD_CHANGES:
            return True
        is_ours = bool(event.flags & EventFlag.FED)
        return any(
            change.key[0] == MEMBER_TYPE_NID
            and _is_join(change.before) != _is_join(change.now)
            and not (is_ours and server_in(change.name[1]) == self._policy.server_name)
            for change in event.changes
        )


def _is_join(stored: StoredEvent | None) -> bool:
    return stored is not None and stored.pdu.membership == "join"


def _may_rescind(event: StreamEvent) -> bool:
    """Whether an event may take back an invite that a server knows of which is not in the room."""
    pdu = event.stored.pdu
    return (
        pdu.state_key is not None
        and pdu.type == "m.room.member"
        and pdu.membership in _WITHOUT_JOIN
        and server_in(pdu.state_key) != server_in(pdu.sender)
    )
