"""Writing snapshots of rooms' states, beside the sending of events.

Rooms whose state has changed often are looked at one after another. A process that ends loses no more than
its counts, and such a room is looked at after as many changes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from storage import room_state, state_snapshots
from storage.database import Database
from storage.packed_state import PackedState
from storage.room_state import StateAt
from storage.state_snapshots import MIN_CHANGES
from storage.stream import StreamEvent

log = logging.getLogger(__name__)

MAX_COUNTED_ROOMS: Final = 20_000
MAX_DUE_ROOMS: Final = 10_000


class StateSnapshots:
    """Counts changes of state, as a listener of the stream, and writes what is due in `run`."""

    def __init__(self, database: Database, check_every: int = MIN_CHANGES) -> None:
        self._database = database
        self._check_every = check_every
        self._counts: OrderedDict[int, int] = OrderedDict()
        self._due: OrderedDict[int, None] = OrderedDict()
        self._work = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many rooms are still to be looked at."""
        return len(self._due)

    def listen(self, events: Sequence[StreamEvent]) -> None:
        """Count what the next events of the stream change."""
        for event in events:
            if event.changes:
                self._count(event.room.nid)

    def consider(self, room_nid: int) -> None:
        """Look at a room soon, whatever was counted: much of its state has changed at once."""
        self._counts.pop(room_nid, None)
        self._due[room_nid] = None
        if len(self._due) > MAX_DUE_ROOMS:
            self._due.popitem(last=False)
        self._work.set()

    async def run(self) -> None:
        """Write snapshots for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._due:
                room_nid, _ = self._due.popitem(last=False)
                try:
                    await self.write_if_due(room_nid)
                except Exception:
                    log.exception("no snapshot could be made of the state of room number %d", room_nid)

    async def write_if_due(self, room_nid: int) -> bool:
        """Write a snapshot of a room's newest state if one is due; whether it was."""
        async with self._database.connection() as tx:
            version = await state_snapshots.due_version(tx, room_nid)
            if version is None:
                return False
            entries = await room_state.whole(tx, StateAt(room_nid, version))
            packed = await asyncio.to_thread(PackedState.of, entries)
            await state_snapshots.insert(tx, room_nid, version, packed)
        return True

    def _count(self, room_nid: int) -> None:
        count = self._counts.pop(room_nid, 0) + 1
        if count >= self._check_every:
            self.consider(room_nid)
            return
        self._counts[room_nid] = count
        if len(self._counts) > MAX_COUNTED_ROOMS:
            self._counts.popitem(last=False)
