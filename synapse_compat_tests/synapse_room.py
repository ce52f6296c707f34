"""What a Synapse knows of a room and what is under way there, read from its database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from federation.outbound.signed_client import FederationError, uri_of
from homeserver.protocol.events import Pdu, StateKey, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, server_in
from homeserver.protocol.room_versions import RoomVersion, room_version
from tests.federation.cut_lines import Lines
from tests.server_process import HomeserverProcess
from tests.servers import RunningServer

_UNSENT: Final = """
    SELECT destination FROM destination_rooms JOIN destinations USING (destination)
    WHERE room_id = ? AND stream_ordering > coalesce(last_successful_stream_ordering, 0)
"""
_UNDISTRIBUTED: Final = """
    SELECT max(stream_ordering) FROM events
    HAVING max(stream_ordering) > (SELECT stream_id FROM federation_stream_position WHERE type = 'events')
"""
_WAITING: Final = """
    SELECT event_id FROM federation_inbound_events_staging WHERE room_id = :room_id
    UNION ALL SELECT 'members' FROM partial_state_rooms WHERE room_id = :room_id
"""
"""Events that came and are not looked at yet, and whether the members are still to be had after a join."""
_EVENTS: Final = "SELECT event_id, json FROM event_json WHERE room_id = ?"
_CURRENT: Final = """
    SELECT type, state_key, event_id, membership FROM current_state_events WHERE room_id = ?
"""
_EXTREMITIES: Final = "SELECT event_id FROM event_forward_extremities WHERE room_id = ?"
_VERSION: Final = "SELECT room_version FROM rooms WHERE room_id = ?"


@dataclass(frozen=True)
class SynapseRoom:
    """All that a Synapse has stored of a room, as far as it tells of it."""

    server_name: ServerName
    version: RoomVersion
    events: Mapping[EventId, Pdu]
    current: Mapping[StateKey, EventId]
    extremities: frozenset[EventId]
    servers: set[str]


@dataclass(frozen=True)
class SynapseServer:
    """A Synapse that has a part in a story, beside servers of ours."""

    process: HomeserverProcess
    ours: Sequence[RunningServer]

    @property
    def name(self) -> ServerName:
        return ServerName(self.process.name)

    @property
    def _database(self) -> Path:
        return self.process.folder / "synapse.db"

    async def unrest(self, room_id: str, others: Collection[ServerName], lines: Lines) -> list[object]:
        return await asyncio.to_thread(self._unrest, room_id, others, lines)

    async def known(self, room_id: str) -> SynapseRoom | None:
        return await asyncio.to_thread(self._known, room_id)

    def _unrest(self, room_id: str, others: Collection[ServerName], lines: Lines) -> list[object]:
        with reading(self._database) as database:
            unsent = [ServerName(name) for (name,) in database.execute(_UNSENT, (room_id,))]
            unrest: list[object] = [name for name in unsent if lines.works((self.name, name))]
            unrest += database.execute(_UNDISTRIBUTED)
            if all(lines.works((self.name, other)) for other in others):
                unrest += database.execute(_WAITING, {"room_id": room_id})
        return unrest

    def _known(self, room_id: str) -> SynapseRoom | None:
        with reading(self._database) as database:
            found = database.execute(_VERSION, (room_id,)).fetchone()
            if found is None or found[0] is None:
                return None
            version = room_version(found[0])
            state = list(database.execute(_CURRENT, (room_id,)))  # nothing where its last user has left
            events = {
                EventId(event_id): _pdu(version, room_id, event_id, json.loads(event))
                for event_id, event in database.execute(_EVENTS, (room_id,))
            }
            extremities = [EventId(event_id) for (event_id,) in database.execute(_EXTREMITIES, (room_id,))]
        return SynapseRoom(
            self.name,
            version,
            events,
            {(event_type, state_key): event_id for event_type, state_key, event_id, _ in state},
            frozenset(extremities),
            {server_in(state_key) for _, state_key, _, membership in state if membership == "join"},
        )

    async def hear(self, other: ServerName) -> None:
        """Let one of ours ask it for something: so it learns that that one is there."""
        for server in self.ours:
            if server.services.config.server_name == other:
                uri = uri_of(
                    "/_matrix/federation/v1/query/profile", query={"user_id": f"@nobody:{self.name}"}
                )
                with suppress(FederationError):  # whether it has heard is seen by what it sends
                    await server.services.lookups.client.send("GET", self.name, uri, ignore_back_off=True)


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A database that a Synapse writes to at the same time."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)) as database:
        database.execute("BEGIN")  # all is read of one moment
        yield database


def _pdu(version: RoomVersion, room_id: str, event_id: str, event: dict[str, Any]) -> Pdu:
    event.pop("unsigned", None)
    return stored_pdu(version, RoomId(room_id), EventId(event_id), event)
