"""HeadLoading: what decisions wait for is loaded beside the persister's loop, once for all of a room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import RoomId
from storage.decisions import Request, UnknownRoom
from storage.dictionaries import Dictionaries
from storage.new_events import UnknownTexts
from storage.room_heads import Needs, NeedsWork, RoomHeads


@dataclass(slots=True)
class _Wanted:
    """What the decisions on one room wait for."""

    requests: list[Request] = field(default_factory=list)
    keys: set[StateKey] = field(default_factory=set)
    atoms: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)


class HeadLoading:
    """The decisions that were set aside; each is asked again once it has what it needs, or refused."""

    def __init__(
        self,
        heads: RoomHeads,
        dictionaries: Dictionaries,
        tasks: asyncio.TaskGroup,
        ask_again: Callable[[Sequence[Request]], None],
        refuse: Callable[[Request, Exception], None],
    ) -> None:
        self._heads = heads
        self._dictionaries = dictionaries
        self._tasks = tasks
        self._ask_again = ask_again
        self._refuse = refuse
        self._wanted: dict[object, _Wanted] = {}

    def set_aside(self, request: Request, reason: Needs | NeedsWork | UnknownTexts) -> None:
        """Get what a decision has asked for. What needs of one room come together is loaded together."""
        if isinstance(reason, NeedsWork):
            self._tasks.create_task(self._do_work(request, reason.work))
            return
        wanted = self._wanted.get(request.room)
        if wanted is None:
            wanted = self._wanted[request.room] = _Wanted()
            self._tasks.create_task(self._load(request.room))
        wanted.requests.append(request)
        if isinstance(reason, Needs):
            wanted.keys |= reason.keys
        else:
            wanted.atoms |= reason.atoms
            wanted.types |= reason.types

    async def _do_work(self, request: Request, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._refuse(request, error)
        else:
            self._ask_again([request])

    async def _load(self, room: object) -> None:
        wanted = self._wanted.pop(room)
        try:
            if wanted.atoms:
                await self._dictionaries.atoms.nids(wanted.atoms)
            if wanted.types:
                await self._dictionaries.event_types.nids(wanted.types)
            if isinstance(room, str):
                await self._load_head(RoomId(room), wanted)
        except Exception as error:
            for request in wanted.requests:
                self._refuse(request, error)
        else:
            self._ask_again(wanted.requests)

    async def _load_head(self, room_id: RoomId, wanted: _Wanted) -> None:
        joining = any(request.joining for request in wanted.requests)
        head = await self._heads.get(room_id, joining=joining)
        if head is None:
            raise UnknownRoom(room_id)
        if wanted.keys:
            head.learn(await self._heads.load_keys(head, wanted.keys))
