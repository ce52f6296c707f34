"""What answers /sync, as each process has it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from homeserver.services.notifier import Notifier
from homeserver.services.recent_events import RecentEvents
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.sync import Sync
from homeserver.services.sync_sections import SyncSections
from tests.storage.stores import Store

LATER_MS: Final = 4_000_000_000_000
INCARNATION: Final = "test"

asking: ContextVar[bool] = ContextVar("asking", default=False)
"""Whether the current task asks what is measured; servers of other tests use the database meanwhile."""


def later() -> int:
    return LATER_MS


def new_sync(store: Store, budget_bytes: int = 1 << 25) -> Sync:
    """What answers /sync in a process that has just started."""
    recent = RecentEvents(store.stream.position, budget_bytes)
    notifier = Notifier(store.database, store.stream)
    sections = SyncSections(store.database, recent, RoomVisibility())
    return Sync(notifier, recent, store.stream, sections, INCARNATION, later)


def listening(store: Store, sync: Sync) -> Sync:
    for listener in (sync.recent.add, sync.sections.listen, sync.notifier.listen):
        store.stream.listen(listener)
    return sync
