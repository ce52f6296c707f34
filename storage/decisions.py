"""Decisions: what a service asks the persister to add to a room, and what may come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, RoomAlias, RoomId
from storage.event_batch import NewRoom, TxnKey
from storage.placement import Placed
from storage.room_heads import RoomHead

Decision: TypeAlias = Callable[[RoomHead], Sequence[Pdu | Placed]]
"""What is to be added to a head: events, each on top of the one before it, or with a place of its own. Pure.

A current event of the head's state may be returned instead: it is there already, and its ID is the answer.
"""


class UnknownRoom(LookupError):
    """A room that has no event here."""

    def __init__(self, room_id: RoomId) -> None:
        super().__init__(f"{room_id} has no event here")


class EventsStored(Exception):
    """Events from outside that a decision has placed are stored already: another process was first."""

    def __init__(self, event_ids: Iterable[EventId]) -> None:
        self.event_ids = frozenset(event_ids)
        super().__init__(f"stored already: {', '.join(sorted(self.event_ids))}")


class AliasTaken(Exception):
    """The alias of a new room is another room's."""

    def __init__(self, alias: RoomAlias) -> None:
        super().__init__(f"{alias} is another room's")


@dataclass(slots=True, eq=False)
class Request:
    """A decision that is to be asked, and who waits for the IDs of its events."""

    target: RoomId | NewRoom
    decide: Decision
    key: TxnKey | None
    answer: asyncio.Future[list[EventId]]
    joining: bool = False
    """Whether the room may have no live event yet, just the state at trunk(0)."""
    rounds: int = 0
    """How often it was asked again."""

    @property
    def room(self) -> object:
        """What groups the requests of one room; every new room is one of its own."""
        return self if isinstance(self.target, NewRoom) else self.target
