"""The one loop that writes events: it drains all that waits into one call, which is one durable commit.

A service hands over a decision, a pure function of the room's head. The loop asks it when the room's turn
has come, and asks again on the newer head when another process was first. No decision ever waits in the
loop: what it needs is loaded beside it, and the decision is queued again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import asyncpg

from homeserver.errors import Unavailable
from homeserver.metrics import Metrics
from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.power_levels import PowerLevels
from homeserver.protocol.redaction import redact_pdu
from storage.database import CONNECTION_LOST, Database
from storage.dictionaries import Dictionaries
from storage.event_batch import (
    LOCAL_FLAGS,
    EventBatch,
    NewEvent,
    NewRoom,
    StateChange,
    TxnKey,
    is_for_servers_only,
    redacted_by,
)
from storage.event_codec import CODEC
from storage.event_flags import EventFlag
from storage.events import event_ids_of, stored_event_ids
from storage.nids import NidBlocks
from storage.persist_connection import RECONNECT_PAUSES_S, Outcome, PersistConnection
from storage.placement import Placed
from storage.room_heads import (
    Needs,
    NeedsCommit,
    NeedsWork,
    RoomHead,
    RoomHeads,
    RoomRef,
    StoredEvent,
)
from storage.state_deltas import row_of
from storage.stream import Stream, StreamEvent
from storage.txn_ids import find_txn

log = logging.getLogger(__name__)

Decision: TypeAlias = Callable[[RoomHead], Sequence[Pdu | Placed]]
"""What is to be added to a head: events, each on top of the one before it, or with a place of its own. Pure.

A current event of the head's state may be returned instead: it is there already, and its ID is the answer.
"""

T = TypeVar("T")

MAX_BATCH: Final = 300
MAX_BATCH_EVENTS: Final = 1000
"""A batch takes no further decision once it has so many events: the lock is held while they are stored."""
MAX_DECISION_EVENTS: Final = 2000
"""The most that one decision may add. createRoom needs the most."""
MAX_QUEUE: Final = 20_000
MAX_ROUNDS: Final = 100
"""How often a decision may ask for more, or be overtaken, before it fails."""


class UnknownRoom(LookupError):
    """A room that has no event here."""


class EventsStored(Exception):
    """Events from outside that a decision has placed are stored already: another process was first."""

    def __init__(self, event_ids: Iterable[EventId]) -> None:
        super().__init__()
        self.event_ids = frozenset(event_ids)


class AliasTaken(Exception):
    """The alias of a new room is another room's."""


@dataclass(slots=True, eq=False)
class _Item:
    target: RoomId | NewRoom
    decide: Decision
    key: TxnKey | None
    future: asyncio.Future[list[EventId]]
    joining: bool = False
    rounds: int = 0

    @property
    def room(self) -> object:
        """What groups the items of one room; every new room is one of its own."""
        return self if isinstance(self.target, NewRoom) else self.target


@dataclass(slots=True)
class _Wanted:
    """What the decisions on one room wait for."""

    items: list[_Item] = field(default_factory=list)
    keys: set[StateKey] = field(default_factory=set)
    atoms: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    works: list[tuple[_Item, Callable[[], Awaitable[None]]]] = field(default_factory=list)


@dataclass(slots=True)
class _Decided:
    """What a decision came to, told once the batch has shown that its head is the room's newest."""

    item: _Item
    event_ids: Sequence[EventId] = ()
    """The answer."""
    events: Sequence[NewEvent] = ()
    error: Exception | None = None


@dataclass(slots=True)
class _RoomBatch:
    """What one room gets in a batch: `head` lies over `base`, which stands for what is committed."""

    base: RoomHead
    head: RoomHead
    decided: list[_Decided] = field(default_factory=list)
    creator_nid: int = 0

    @property
    def items(self) -> list[_Item]:
        """Those whose decisions are in the batch."""
        return [decided.item for decided in self.decided]


class _UnknownTexts(Exception):
    """Events name texts whose numbers are not in memory."""

    def __init__(self, additions: Iterable[Pdu | Placed]) -> None:
        super().__init__()
        self.atoms: set[str] = set()
        self.types: set[str] = set()
        for addition in additions:
            pdu, changes = (
                (addition.pdu, addition.changes or {}) if isinstance(addition, Placed) else (addition, {})
            )
            self.atoms.add(pdu.sender)
            self.types.add(pdu.type)
            keys = [*changes] if pdu.state_key is None else [pdu.key, *changes]
            for event_type, state_key in keys:
                self.types.add(event_type)
                self.atoms.add(state_key)
                if event_type == "m.room.member":
                    self.atoms.add(server_of_member(state_key))


class Persister:
    """Writes events; every process has one. `run` does the work, `append` and `create` hand it over."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        heads: RoomHeads,
        stream: Stream,
        metrics: Metrics,
        clock_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._heads = heads
        self._stream = stream
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._nids = NidBlocks(database)
        self._connection = PersistConnection(database)
        self._queue: deque[_Item] = deque()
        self._batches: deque[list[_Item]] = deque()
        """Items that are to be written together, before the queue."""
        self._work = asyncio.Event()
        self._txns: dict[TxnKey, asyncio.Future[list[EventId]]] = {}
        self._wanted: dict[object, _Wanted] = {}
        self._unborn: dict[RoomId, RoomHead] = {}
        """Heads of rooms that are being joined and have no live event, for whoever asks next."""
        self._tasks: asyncio.TaskGroup
        self._open: set[_Item] = set()
        self._closing = False

    async def append(
        self, room_id: RoomId, decide: Decision, *, key: TxnKey | None = None, joining: bool = False
    ) -> list[EventId]:
        """Add to a room what `decide` makes of its head; returns the IDs of the events once they are durable.

        With a key that was used before, the event that it made then. `joining`: the room may have no live
        event yet, just the state at trunk(0). Raises what `decide` raises, UnknownRoom, and Unavailable when
        too much waits or the database cannot be reached (the outcome is then unknown).
        """
        if key is not None and (running := self._txns.get(key)) is not None:
            return await asyncio.shield(running)
        return await self._submit(room_id, decide, key, joining=joining)

    async def consider(self, room_id: RoomId, decide: Callable[[RoomHead], T]) -> T:
        """What a pure function makes of a room's newest head, as far as this process knows; writes nothing.

        Raises what `decide` raises, and UnknownRoom.
        """
        for _ in range(MAX_ROUNDS):
            head = await self._heads.get(room_id)
            if head is None:
                raise UnknownRoom(room_id)
            try:
                return decide(head)
            except Needs as needs:
                head.learn(await self._heads.load_keys(head, needs.keys))
            except NeedsWork as needs:
                await needs.work()
        raise Unavailable("the room is too busy; try again")

    async def newest_head(self, room_id: RoomId) -> RoomHead:
        """A room's newest head, as far as this process knows; not to be changed. Raises UnknownRoom."""
        return await self.consider(room_id, lambda head: head)

    async def create(self, new_room: NewRoom, decide: Decision) -> list[EventId]:
        """Make a room out of what `decide` builds on an empty head: all of it or nothing.

        Raises AliasTaken, and what `append` raises.
        """
        return await self._submit(new_room, decide, None)

    async def run(self) -> None:
        """Write until `close`; returns when all that was handed over before is answered.

        If it ends in another way, what waits is answered with Unavailable: nobody will write it.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while not (self._closing and not self._open):
                    await self._work.wait()
                    self._work.clear()
                    while self._queue or self._batches:
                        await self._write(self._take())
        finally:
            self._closing = True
            for item in list(self._open):
                self._finish(item, Unavailable("the server stops; try again"))
            self._connection.close()

    def close(self) -> None:
        """Take nothing more; `run` ends once what waits is written."""
        self._closing = True
        self._work.set()

    @property
    def pending(self) -> int:
        """Decisions that are not answered yet."""
        return len(self._open)

    async def _submit(
        self, target: RoomId | NewRoom, decide: Decision, key: TxnKey | None, *, joining: bool = False
    ) -> list[EventId]:
        if len(self._open) >= MAX_QUEUE or self._closing:
            raise Unavailable("the server is busy; try again")
        item = _Item(target, decide, key, asyncio.get_running_loop().create_future(), joining)
        self._open.add(item)
        if key is not None:
            self._txns[key] = item.future
        self._queue.append(item)
        self._work.set()
        # A client that goes away does not undo what is being written: the answer then goes nowhere.
        return await asyncio.shield(item.future)

    def _finish(self, item: _Item, result: list[EventId] | BaseException) -> None:
        self._open.remove(item)
        if item.joining and isinstance(item.target, str):
            self._unborn.pop(item.target, None)
        if item.key is not None:
            del self._txns[item.key]
        if isinstance(result, BaseException):
            item.future.set_exception(result)
            item.future.exception()  # nobody may be waiting any more
        else:
            item.future.set_result(result)
        if self._closing:
            self._work.set()

    def _requeue(self, items: Iterable[_Item]) -> None:
        """Ask again, before all that came later; what was overtaken too often fails."""
        again = []
        for item in items:
            item.rounds += 1
            if item.rounds > MAX_ROUNDS:
                log.warning("a change of room %s was overtaken %d times", item.target, MAX_ROUNDS)
                self._finish(item, Unavailable("the room is too busy; try again"))
            else:
                again.append(item)
        self._queue.extendleft(reversed(again))
        self._work.set()

    def _take(self) -> list[_Item]:
        if self._batches:
            return self._batches.popleft()
        return [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]

    # -- from decisions to events

    async def _write(self, items: list[_Item]) -> None:
        rooms: dict[object, _RoomBatch] = {}
        events = 0
        first_of_next: list[_Item] = []
        for index, item in enumerate(items):
            if events >= MAX_BATCH_EVENTS:
                self._queue.extendleft(reversed(items[index:]))
                break
            try:
                await self._nids.reserve(1 + MAX_DECISION_EVENTS)
                events += self._decide(item, rooms)
            except Needs as needs:
                self._set_aside(item, keys=needs.keys)
            except NeedsWork as needs:
                self._set_aside(item, work=needs.work)
            except NeedsCommit:
                first_of_next.append(item)
            except _UnknownTexts as unknown:
                self._set_aside(item, atoms=unknown.atoms, types=unknown.types)
            except Exception as error:
                self._refuse(item, error)
        self._requeue(first_of_next)
        rooms = {target: room for target, room in rooms.items() if room.decided}
        if rooms:
            await self._store(rooms)

    def _decide(self, item: _Item, rooms: dict[object, _RoomBatch]) -> int:
        """Ask one decision, on top of what the batch has for its room so far; the number of its events.

        Raises Needs and _UnknownTexts, and for a new room what the decision raises. For a room that exists,
        that and "nothing to add" are answers about its newest head, which the batch is to confirm.
        """
        room = rooms.get(item.room)
        if room is None:
            if isinstance(item.target, NewRoom):
                base = RoomHead.of_new_room(RoomRef(self._nids.take(), RoomId(""), item.target.version))
            elif (cached := self._heads.cached(item.target)) is not None:
                base = cached
            elif item.joining and (unborn := self._unborn.get(item.target)) is not None:
                base = unborn
            else:
                raise Needs(())
            room = rooms[item.room] = _RoomBatch(base, base.overlay())
        try:
            additions = item.decide(room.head)
            if len(additions) > MAX_DECISION_EVENTS:
                raise ValueError(f"{len(additions)} events are too many for one decision")
        except (Needs, NeedsWork, NeedsCommit):
            raise
        except Exception as error:
            if isinstance(item.target, NewRoom):
                raise
            room.decided.append(_Decided(item, error=error))
            return 0
        trial = room.head.overlay()
        events = []
        for addition in additions:
            if isinstance(addition, Placed):
                event = self._placed_event(trial, addition)
            elif trial.has(addition):
                continue
            else:
                event = self._new_event(trial, addition)
            if event is None:
                raise _UnknownTexts(additions)
            events.append(event)
        event_ids = [_pdu_of(addition).event_id for addition in additions]
        if isinstance(item.target, NewRoom):
            room.creator_nid = events[0].sender_nid
            room.base.room = RoomRef(room.base.room.nid, events[0].pdu.room_id, item.target.version)
        room.head.absorb(trial)
        room.decided.append(_Decided(item, event_ids, events))
        return len(events)

    def _new_event(self, head: RoomHead, pdu: Pdu) -> NewEvent | None:
        """An event of a local user, put on top of a head; None where a text of it has no number in memory."""
        numbers = self._numbers(pdu)
        if numbers is None:
            return None
        nid = self._nids.take()
        auth_nids, replaces = None, None
        changes: tuple[StateChange, ...] = ()
        rescinds_for = None
        if pdu.state_key is not None:
            replaces = head.stored(pdu.key)
            keys = auth_state_keys(head.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
            named = [stored for key in keys if (stored := head.stored(key)) is not None]
            auth_nids = tuple(stored.nid for stored in named if stored.pdu.event_id in pdu.auth_events)
            change = self._change(pdu.key, StoredEvent(nid, pdu), replaces)
            if change is None:
                return None
            changes = (change,)
            if _rescinds(pdu, replaces):
                rescinds_for = change.server_nid
        redacts_others = pdu.type != "m.room.redaction" or _may_redact_others(head, pdu)
        prev_nids = head.prev_nids
        head.add(pdu, nid)
        flags = LOCAL_FLAGS if head.extremities[-1].is_sole else LOCAL_FLAGS & ~EventFlag.SOLE
        return NewEvent(
            nid=nid,
            seq=head.seq,
            pdu=pdu,
            canonical=canonical_json(pdu.json),
            type_nid=numbers[0],
            sender_nid=numbers[1],
            skey_nid=numbers[2],
            auth_nids=auth_nids,
            changes=changes,
            replaces=replaces,
            flags=flags | EventFlag.SERVERS_ONLY if is_for_servers_only(pdu) else flags,
            prev_nids=prev_nids,
            redacts_others=redacts_others,
            rescinds_for=rescinds_for,
        )

    def _placed_event(self, head: RoomHead, placed: Placed) -> NewEvent | None:
        """An event with a place of its own, put into a head; None where a text has no number in memory."""
        pdu = placed.pdu
        numbers = self._numbers(pdu)
        if numbers is None:
            return None
        nid = placed.nid
        replaces = None if pdu.state_key is None or not placed.is_live else head.stored(pdu.key)
        wanted = placed.changes
        if wanted is None:
            wanted = {} if pdu.state_key is None or not placed.is_live else {pdu.key: StoredEvent(nid, pdu)}
        changes = []
        for key, stored in wanted.items():
            change = self._change(key, stored, head.stored(key))
            if change is None:
                return None
            changes.append(change._replace(keeps_out=True) if key in placed.keeps_out else change)
        flags = placed.flags | CODEC
        if is_for_servers_only(pdu):
            flags |= EventFlag.SERVERS_ONLY
        if placed.is_live:
            covers = set(head.prev_events) if placed.covers is None else placed.covers
            head.put(pdu, nid, wanted, covers, is_extremity=placed.is_extremity)
            if placed.is_extremity and head.extremities[-1].is_sole:
                flags |= EventFlag.SOLE
            if pdu.state_key is None:
                by_itself = not wanted
            else:
                stored = wanted.get(pdu.key)
                by_itself = len(wanted) == 1 and stored is not None and stored.nid == nid
            if not by_itself:
                flags |= EventFlag.RESOLVED
        delta, state_ver, state_delta = None, None, None
        if (state := placed.state) is not None:
            delta = row_of(state, self._nids.take(), head.room.nid)
            state_ver, state_delta = state.ver, state.over_id if delta is None else delta.id
        return NewEvent(
            nid=nid,
            seq=head.seq if placed.is_live else None,
            pdu=pdu,
            canonical=canonical_json(pdu.json),
            type_nid=numbers[0],
            sender_nid=numbers[1],
            skey_nid=numbers[2],
            auth_nids=placed.auth_nids if pdu.state_key is not None else None,
            changes=tuple(changes),
            replaces=replaces,
            flags=flags,
            prev_nids=placed.prev_nids,
            state_ver=state_ver,
            state_delta=state_delta,
            delta=delta,
            is_promoted=placed.is_promoted,
            is_own=False,
            missing=placed.missing,
            fills_gap=placed.fills_gap,
            redacts_others=placed.redacts_others,
        )

    def _numbers(self, pdu: Pdu) -> tuple[int, int, int | None] | None:
        """The numbers of an event's type, sender and state key; None where one is not in memory."""
        atoms = self._dictionaries.atoms
        type_nid = self._dictionaries.event_types.known_nid(pdu.type)
        sender_nid = atoms.known_nid(pdu.sender)
        skey_nid = None if pdu.state_key is None else atoms.known_nid(pdu.state_key)
        if type_nid is None or sender_nid is None or (skey_nid is None and pdu.state_key is not None):
            return None
        return type_nid, sender_nid, skey_nid

    def _change(
        self, key: StateKey, now: StoredEvent | None, before: StoredEvent | None
    ) -> StateChange | None:
        """A change of the state with its numbers; None where one is not in memory."""
        event_type, state_key = key
        atoms = self._dictionaries.atoms
        type_nid = self._dictionaries.event_types.known_nid(event_type)
        skey_nid = atoms.known_nid(state_key)
        server_nid: int | None = 0
        if event_type == "m.room.member":
            server_nid = atoms.known_nid(server_of_member(state_key))
        if type_nid is None or skey_nid is None or server_nid is None:
            return None
        return StateChange((type_nid, skey_nid), key, now, before, server_nid)

    def _refuse(self, item: _Item, error: Exception) -> None:
        """A decision that fails fails only its own request; but its lost first try may have succeeded."""
        if item.key is None:
            self._finish(item, error)
        else:
            self._tasks.create_task(self._refuse_unless_sent(item, item.key, error))

    async def _refuse_unless_sent(self, item: _Item, key: TxnKey, error: Exception) -> None:
        try:
            async with self._database.connection() as tx:
                sent = await find_txn(tx, key)
        except Exception as unavailable:
            self._finish(item, unavailable)
        else:
            self._finish(item, error if sent is None else [sent])

    # -- loading beside the loop

    def _set_aside(
        self,
        item: _Item,
        *,
        keys: Iterable[StateKey] = (),
        atoms: Iterable[str] = (),
        types: Iterable[str] = (),
        work: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        wanted = self._wanted.get(item.room)
        if wanted is None:
            wanted = self._wanted[item.room] = _Wanted()
            self._tasks.create_task(self._load(item.room))
        if work is not None:
            wanted.works.append((item, work))
        else:
            wanted.items.append(item)
        wanted.keys.update(keys)
        wanted.atoms.update(atoms)
        wanted.types.update(types)

    async def _load(self, room: object) -> None:
        """Load what decisions on a room wait for, then ask them again."""
        wanted = self._wanted.pop(room)
        for item, work in wanted.works:
            self._tasks.create_task(self._do_work(item, work))
        try:
            if wanted.atoms:
                await self._dictionaries.atoms.nids(wanted.atoms)
            if wanted.types:
                await self._dictionaries.event_types.nids(wanted.types)
            if isinstance(room, str) and wanted.items:
                await self._load_head(RoomId(room), wanted)
        except Exception as error:
            for item in wanted.items:
                self._refuse(item, error)
        else:
            self._requeue(wanted.items)

    async def _load_head(self, room_id: RoomId, wanted: _Wanted) -> None:
        head = await self._heads.get(room_id)
        if head is None and any(item.joining for item in wanted.items):
            head = self._unborn.get(room_id) or await self._heads.load_unborn(room_id)
            if head is not None and head.seq == 0:
                self._unborn[room_id] = head
        if head is None:
            raise UnknownRoom(room_id)
        if wanted.keys:
            head.learn(await self._heads.load_keys(head, wanted.keys))

    async def _do_work(self, item: _Item, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._refuse(item, error)
        else:
            self._requeue([item])

    # -- from events to rows

    async def _store(self, rooms: dict[object, _RoomBatch]) -> None:
        started = time.perf_counter()
        try:
            batch, new_rooms = self._batch_of(rooms)
        except Exception as error:  # something that no row can be made of
            self._bisect(rooms, error)
            return
        try:
            outcome = await self._connection.persist(batch)
        except ValueError as error:  # what asyncpg could not even send
            self._bisect(rooms, error)
            return
        except CONNECTION_LOST:
            await self._after_lost_connection(rooms)
            return
        except asyncpg.PostgresError as error:
            self._bisect(rooms, error)
            return
        for index in outcome.taken_aliases:
            del rooms[new_rooms[index].room]
            self._finish(new_rooms[index], AliasTaken())
        published = self._sort_out(rooms, batch, outcome)
        if published:
            await self._publish(outcome, published)
            self._metrics.persist_batch_events.observe({}, len(published))
            self._metrics.persist_batch_seconds.observe({}, time.perf_counter() - started)
        for room in rooms.values():
            for decided in room.decided:
                if decided.error is None:
                    self._finish(decided.item, list(decided.event_ids))
                else:
                    self._refuse(decided.item, decided.error)

    def _batch_of(self, rooms: dict[object, _RoomBatch]) -> tuple[EventBatch, list[_Item]]:
        """The rows, and the items of the new rooms. A room that gets no event has its head confirmed."""
        batch = EventBatch(self._clock_ms())
        new_rooms = []
        for room in rooms.values():
            first_item = room.decided[0].item
            if isinstance(first_item.target, NewRoom):
                batch.add_new_room(room.base.room, first_item.target, room.creator_nid)
                new_rooms.append(first_item)
            else:
                batch.add_room(room.base.room, room.base.seq)
            if room.base.names_extremities or room.head.names_extremities:
                named = room.head.extremities if room.head.names_extremities else ()
                batch.add_extremities(room.base.room, [extremity.nid for extremity in named])
            for decided in room.decided:
                for event in decided.events:
                    batch.add_event(room.base.room, event)
                if decided.item.key is not None and decided.events:
                    batch.add_key(decided.item.key, room.base.room, decided.events[-1])
        return batch, new_rooms

    def _sort_out(
        self, rooms: dict[object, _RoomBatch], batch: EventBatch, outcome: Outcome
    ) -> list[StreamEvent]:
        """Advance the heads of the rooms that were stored; the others leave `rooms` and are asked again."""
        sent = {batch.keys[index]: nid for index, nid in outcome.known_txns}
        redacted = {target for target, _ in outcome.redacted}
        redacting = {by_nid for _, by_nid in outcome.redacted}
        known = {batch.events[index][1].nid for index, _ in outcome.known_events}
        moved = outcome.moved_rooms | {batch.events[index][0].nid for index, _ in outcome.known_events}
        for target, room in list(rooms.items()):
            if room.base.room.nid in moved or (sent and any(item.key in sent for item in room.items)):
                del rooms[target]
                self._ask_again(room, sent, known, moved=room.base.room.nid in moved)
            else:
                room.base.absorb(room.head)
                events = [event for decided in room.decided for event in decided.events]
                if any(redacted_by(event.pdu) or event.nid in redacted for event in events):
                    self._heads.forget(room.base.room.room_id)  # it may hold the content that is gone now
                else:
                    self._heads.keep(room.base)
        kept = {room.base.room.nid for room in rooms.values()}
        keys = {
            decided.events[-1].nid: decided.item.key
            for room in rooms.values()
            for decided in room.decided
            if decided.item.key is not None and decided.events
        }
        stored = [
            (room_ref, event)
            for room_ref, event in batch.events
            if room_ref.nid in kept and event.seq is not None
        ]
        return [
            _stream_event(
                outcome.first_pos + index, room_ref, event, keys.get(event.nid), redacted, redacting
            )
            for index, (room_ref, event) in enumerate(stored)
        ]

    def _ask_again(
        self, room: _RoomBatch, sent: Mapping[TxnKey, int], known: Collection[int], *, moved: bool
    ) -> None:
        """A room was left out: answer its repeated transactions, and ask its other decisions again.

        `known`: the numbers of events that are stored already, under other numbers or with a place.
        """
        others = []
        for decided in room.decided:
            stored = [one.pdu.event_id for one in decided.events if one.nid in known and not one.is_own]
            if stored:
                self._finish(decided.item, EventsStored(stored))
            elif decided.item.key not in sent:
                others.append(decided.item)
        if moved:
            self._unborn.pop(room.base.room.room_id, None)
            self._heads.forget(room.base.room.room_id)
            self._requeue(others)
        elif others:
            # By themselves, so that whoever repeats transactions delays them only once.
            self._batches.append(others)
        for item in room.items:
            if item.key is not None and item.key in sent:
                self._tasks.create_task(self._answer_with(item, sent[item.key]))

    async def _answer_with(self, item: _Item, nid: int) -> None:
        """Answer a repeated transaction with the event that it made the first time."""
        try:
            async with self._database.connection() as tx:
                event_id = (await event_ids_of(tx, [nid]))[nid]
        except Exception as error:
            self._finish(item, error)
        else:
            self._finish(item, [event_id])

    async def _publish(self, outcome: Outcome, events: Sequence[StreamEvent]) -> None:
        try:
            await self._stream.publish(outcome.first_pos, outcome.last_pos, events)
        except Unavailable as error:
            log.warning("what was stored cannot be told yet: %s", error.error)
            self._tasks.create_task(self._tell_later())

    async def _tell_later(self) -> None:
        """Tell what is stored when the database can be read again."""
        for pause_s in RECONNECT_PAUSES_S:
            await asyncio.sleep(pause_s)
            if self._closing:
                return
            try:
                await self._stream.catch_up()
            except Unavailable as error:
                log.warning("what was stored cannot be told yet: %s", error.error)
            else:
                return

    def _bisect(self, rooms: dict[object, _RoomBatch], error: Exception) -> None:
        """Find the one poisoned decision: it fails, the others are written."""
        items = [item for room in rooms.values() for item in room.items]
        if len(items) == 1:
            log.error("a change of room %s cannot be stored: %s", items[0].target, error)
            self._finish(items[0], error)
        else:
            middle = len(items) // 2
            self._batches.extend((items[:middle], items[middle:]))

    async def _after_lost_connection(self, rooms: dict[object, _RoomBatch]) -> None:
        """The batch may be stored or not: find out, answer what is, and ask again for what is not."""
        entries = [decided for room in rooms.values() for decided in room.decided]
        last_ids = [decided.events[-1].pdu.event_id for decided in entries if decided.events]
        for room in rooms.values():
            self._heads.forget(room.base.room.room_id)
        try:
            await self._connection.reconnect()
            async with self._database.connection() as tx:
                stored = await stored_event_ids(tx, last_ids)
            await self._stream.catch_up()
        except Exception as error:
            log.error("the database is gone and did not come back: %s", error or type(error).__name__)
            for decided in entries:
                self._finish(decided.item, Unavailable("the database cannot be reached; try again"))
            return
        again = []
        for decided in entries:
            if decided.events and decided.events[-1].pdu.event_id in stored:
                self._finish(decided.item, list(decided.event_ids))
            else:
                again.append(decided.item)
        self._requeue(again)


def server_of_member(state_key: str) -> str:
    """The server name in the state key of a member event; empty where there is none."""
    return state_key.partition(":")[2]


def _rescinds(pdu: Pdu, replaces: StoredEvent | None) -> bool:
    """Whether an event takes back the invite, or refuses the knock, of a user of another server."""
    return (
        pdu.type == "m.room.member"
        and pdu.membership in ("leave", "ban")
        and replaces is not None
        and replaces.pdu.membership in ("invite", "knock")
        and server_of_member(pdu.state_key or "") != server_of_member(pdu.sender)
    )


def _may_redact_others(head: RoomHead, redaction: Pdu) -> bool:
    """Whether the sender of a redaction has the level to redact what users of other servers have sent."""
    create = head.event(*CREATE)
    if create is None:
        return False
    levels = PowerLevels.of(head.version, create, head.event(*POWER_LEVELS))
    return levels.user_level(redaction.sender) >= levels.redact


def _pdu_of(addition: Pdu | Placed) -> Pdu:
    return addition.pdu if isinstance(addition, Placed) else addition


def _stream_event(
    pos: int,
    room: RoomRef,
    event: NewEvent,
    key: TxnKey | None,
    redacted: Collection[int],
    redacting: Collection[int],
) -> StreamEvent:
    assert event.seq is not None
    pdu, flags = event.pdu, event.flags
    redacts = redacted_by(pdu)
    if redacts is not None and event.nid not in redacting:
        redacts = None  # it has no effect, or none yet
        flags |= EventFlag.SERVERS_ONLY
    if event.nid in redacted:
        pdu = redact_pdu(room.version, pdu)
        flags |= EventFlag.REDACTED
    return StreamEvent(
        pos=pos,
        room=room,
        seq=event.seq,
        stored=StoredEvent(event.nid, pdu),
        replaces=event.replaces,
        size_bytes=len(event.canonical),
        flags=flags,
        has_own_state=event.state_ver is not None,
        changes=event.changes,
        redacts=redacts,
        key=key,
    )
