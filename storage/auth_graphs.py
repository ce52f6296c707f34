"""The auth graph of a room by the numbers of its events, in memory, as far as it was needed.

The state events of a room are read all together when its graph is needed for the first time. What is stored
later is added when somebody asks for it, and so is a message event, which only other servers ask about.
Source: STORAGE, "Auth chains and state resolution".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

import asyncpg

from homeserver.protocol.auth_events import POWER_LEVELS
from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import referenced_ids
from homeserver.protocol.state_resolution import AuthGraph
from storage.database import Database, Transaction
from storage.dictionaries import Dictionaries
from storage.event_codec import decode_event
from storage.event_flags import EventFlag
from storage.packed_state import Key

MAX_EVENTS: Final = 300_000
"""How many events all graphs together hold; the rooms that were used longest ago go first.

The graph of a room with more state events than that is made for each use, of no more than what is asked for.
"""

_BUILT_HERE: Final = 1000
"""A graph of more events is built in a thread."""

_Node: TypeAlias = tuple[int, Sequence[int], bool]
"""An event, its auth events, and whether it sets power levels."""


class AuthGraphs:
    """The graphs of the rooms that were used last. An event is in one together with its whole auth chain."""

    def __init__(self, database: Database, max_events: int = MAX_EVENTS) -> None:
        self._dictionaries = Dictionaries(database)
        self._max_events = max_events
        self._graphs: OrderedDict[int, AuthGraph[int]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._held = 0
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._power_levels: Key | None = None
        """The key of power levels, once any are stored."""

    @property
    def held(self) -> int:
        """How many events all graphs together hold."""
        return self._held

    @asynccontextmanager
    async def using(self, room_nid: int) -> AsyncIterator[None]:
        """For the block, the room's graph is the caller's alone: nobody else makes it grow meanwhile.

        Ask for the graph in such a block and do not use it outside: a thread may walk it there. To be entered
        before a connection is taken, so that none is held while waiting for another one.
        """
        if self._power_levels is None:
            self._power_levels = await self._key_of_power_levels()
        lock = self._locks.get(room_nid)
        if lock is None:
            lock = self._locks[room_nid] = asyncio.Lock()
        async with lock:
            yield

    async def graph(self, tx: Transaction, room_nid: int, nids: Collection[int]) -> AuthGraph[int]:
        """The room's graph, which holds these events and their whole auth chains; to be used in `using`.

        An event that is not stored is not in it, whoever names it.
        """
        graph = self._graphs.get(room_nid)
        if graph is None:
            graph = await self._read(tx, room_nid)
        missing = {nid for nid in nids if nid not in graph}
        if missing:
            _add(graph, await self._read_chains(tx, room_nid, graph, missing))
        self._keep(room_nid, graph)
        return graph

    async def _read(self, tx: Transaction, room_nid: int) -> AuthGraph[int]:
        """The graph of all state events of a room; an empty one where they are too many."""
        graph: AuthGraph[int] = AuthGraph()
        count = await tx.fetchval(
            """
            SELECT count(*) FROM (
                SELECT FROM events WHERE room_nid = $1 AND skey_nid IS NOT NULL LIMIT $2
            ) AS counted
            """,
            room_nid,
            self._max_events + 1,
        )
        if count > self._max_events:
            return graph
        rows = await tx.fetch(
            """
            SELECT nid, auth, type_nid, skey_nid FROM events
            WHERE room_nid = $1 AND skey_nid IS NOT NULL AND flags & $2 = 0
            """,
            room_nid,
            EventFlag.UNCHECKED,  # its auth events are not known yet
        )
        key = self._power_levels
        nodes = ((nid, auth or (), (type_nid, skey_nid) == key) for nid, auth, type_nid, skey_nid in rows)
        if len(rows) > _BUILT_HERE:
            await asyncio.to_thread(_add, graph, nodes)
        else:
            _add(graph, nodes)
        return graph

    async def _read_chains(
        self, tx: Transaction, room_nid: int, graph: AuthGraph[int], missing: set[int]
    ) -> list[_Node]:
        """Events that a graph lacks, and what it lacks of their auth chains, one level after another."""
        found: list[_Node] = []
        asked: set[int] = set()
        while missing:
            asked |= missing
            rows = await tx.fetch(
                """
                SELECT nid, auth, type_nid, skey_nid, flags, CASE WHEN auth IS NULL THEN json END AS json
                FROM events WHERE nid = ANY($1::bigint[])
                """,
                list(missing),
            )
            named = await _nids_of_named(tx, room_nid, (row for row in rows if row["auth"] is None))
            level = [
                (
                    row["nid"],
                    named[row["nid"]] if row["auth"] is None else row["auth"],
                    (row["type_nid"], row["skey_nid"]) == self._power_levels,
                )
                for row in rows
            ]
            found += level
            missing = {nid for _, auth, _ in level for nid in auth if nid not in graph} - asked
        return found

    async def _key_of_power_levels(self) -> Key | None:
        event_type, state_key = POWER_LEVELS
        type_nid = await self._dictionaries.event_types.find_nid(event_type)
        skey_nid = await self._dictionaries.atoms.find_nid(state_key)
        return None if type_nid is None or skey_nid is None else (type_nid, skey_nid)

    def _keep(self, room_nid: int, graph: AuthGraph[int]) -> None:
        self._graphs[room_nid] = graph
        self._graphs.move_to_end(room_nid)
        self._held += len(graph) - self._sizes.get(room_nid, 0)
        self._sizes[room_nid] = len(graph)
        while self._held > self._max_events:
            dropped, _ = self._graphs.popitem(last=False)
            self._held -= self._sizes.pop(dropped)


async def _nids_of_named(
    tx: Transaction, room_nid: int, rows: Iterable[asyncpg.Record]
) -> dict[int, list[int]]:
    """The auth events of message events, which name them in their JSON only, as far as they are stored."""
    named = {
        row["nid"]: [
            encode_event_id(event_id)
            for event_id in referenced_ids(decode_event(row["flags"], row["json"])["auth_events"])
        ]
        for row in rows
    }
    if not named:
        return {}
    found = await tx.fetch(
        "SELECT room_nid, event_id, nid FROM events WHERE event_id = ANY($1::bytea[])",
        [stored_id for stored_ids in named.values() for stored_id in stored_ids],
    )
    nids = {row["event_id"]: row["nid"] for row in found if row["room_nid"] == room_nid}
    return {
        nid: [nids[stored_id] for stored_id in stored_ids if stored_id in nids]
        for nid, stored_ids in named.items()
    }


def _add(graph: AuthGraph[int], nodes: Iterable[_Node]) -> None:
    """Add events, mostly after their auth events. Equal numbers become one object, to save memory."""
    objects: dict[int, int] = {}
    one_object = objects.setdefault
    for nid, auth, is_power_levels in sorted(nodes):
        graph.add(
            one_object(nid, nid), [one_object(ref, ref) for ref in auth], is_power_levels=is_power_levels
        )
