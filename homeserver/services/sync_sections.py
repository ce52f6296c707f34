"""The parts of a /sync response that stand for one room each.

Source: Client-Server API, "Syncing", "Lazy-loading room members", "Room History Visibility".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import Pdu, StateKey, client_event
from homeserver.protocol.filters import Filter
from homeserver.protocol.history_visibility import ViewHistory
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.notifier import UserRoom
from homeserver.services.recent_events import RecentEvent, RecentEvents, closed_json, open_json
from homeserver.services.single_flight import SingleFlight
from homeserver.services.sync_tokens import RoomToken
from storage import sync_reads
from storage.database import Database, Transaction
from storage.event_batch import redacted_by
from storage.event_flags import EventFlag
from storage.memberships import Membership
from storage.room_heads import RoomHead, RoomHeads, RoomRef, StoredEvent
from storage.stream import StreamEvent
from storage.sync_reads import TimelineEvent

DEFAULT_LIMIT: Final = 10
LARGEST_LIMIT: Final = 1000
MAX_HEROES: Final = 5
CACHED_SECTIONS: Final = 2000
CACHED_STATE_BYTES: Final = 64 * 1024 * 1024
CACHED_SUMMARIES: Final = 5000
REMEMBERED_LAZY_MEMBERS: Final = 20_000
"""For how many (device, room) pairs it is known which members the device was given."""

STRIPPED: Final = (
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
)
"""The state that someone sees who is invited. Source: "Stripped state"."""


@dataclass(frozen=True, slots=True)
class Section:
    """A room that belongs in a response, and from where on. `user_room` does not change any more."""

    user_room: UserRoom
    since: int | None
    """The position of the reader's token; None for all there is."""
    full_state: bool = False

    @property
    def room(self) -> RoomRef:
        """The room."""
        return self.user_room.room


@dataclass(slots=True)
class _Range:
    """The part of a room that a section shows: a < room_seq <= b; whether the room is new to its reader."""

    section: Section
    kind: str
    a: int
    b: int
    is_new: bool


@dataclass(slots=True)
class _RoomState:
    """The state of a room at one version, as clients get it."""

    members: dict[str, bytes] = field(default_factory=dict)
    others: dict[StateKey, bytes] = field(default_factory=dict)
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Summary:
    """What a room's summary says, but for leaving out the reader."""

    joined: int
    invited: int
    heroes: Sequence[str] | None

    def for_reader(self, user_id: str) -> JsonObject:
        summary: JsonObject = {
            "m.joined_member_count": self.joined,
            "m.invited_member_count": self.invited,
        }
        if self.heroes is not None:
            summary["m.heroes"] = [hero for hero in self.heroes if hero != user_id][:MAX_HEROES]
        return summary


class SyncSections:
    """Makes the parts of responses, and remembers those that many readers share."""

    def __init__(
        self, database: Database, heads: RoomHeads, recent: RecentEvents, clock_ms: Callable[[], int]
    ) -> None:
        self._database = database
        self._heads = heads
        self._recent = recent
        self._clock_ms = clock_ms
        self._shared: OrderedDict[tuple[object, ...], tuple[int, bytes]] = OrderedDict()
        self._states: OrderedDict[tuple[int, int], _RoomState] = OrderedDict()
        self._states_bytes = 0
        self._summaries: OrderedDict[tuple[int, int], _Summary] = OrderedDict()
        self._loading: SingleFlight[tuple[int, int], _Summary] = SingleFlight()
        self._lazy_members: OrderedDict[tuple[int, int], set[str]] = OrderedDict()

    async def render(
        self,
        requester: Requester,
        wanted: Mapping[str, Sequence[Section]],
        upto: int,
        filter_: Filter,
        state_after_key: str | None,
    ) -> dict[str, dict[RoomId, bytes]]:
        """The sections that have something to show, by kind and room. `upto`: the newest position to show."""
        response = _Response(requester, upto, self._clock_ms(), filter_, state_after_key)
        rendered: dict[str, dict[RoomId, bytes]] = {}
        from_database: list[tuple[str, Section]] = []
        for kind, sections in wanted.items():
            for section in sections:
                if kind == "invite":
                    rendered.setdefault(kind, {})[section.room.room_id] = await self._invite(
                        requester, section
                    )
                elif kind == "join" and self._is_in_memory(section):
                    shown = await self._joined_from_memory(response, section)
                    if shown is not None:
                        rendered.setdefault(kind, {})[section.room.room_id] = shown
                else:
                    from_database.append((kind, section))
        if from_database:
            async for kind, room_id, shown in self._from_database(response, from_database):
                rendered.setdefault(kind, {})[room_id] = shown
        return rendered

    def forget_redacted(self, events: Sequence[StreamEvent]) -> None:
        """Forget what is remembered of rooms in which something was redacted."""
        for room_nid in {event.room.nid for event in events if redacted_by(event.stored.pdu) is not None}:
            for key in [key for key in self._shared if key[0] == room_nid]:
                del self._shared[key]
            for state_key in [state_key for state_key in self._states if state_key[0] == room_nid]:
                self._states_bytes -= self._states.pop(state_key).size_bytes

    # -- rooms that the reader has been in all the time, from memory

    def _is_in_memory(self, section: Section) -> bool:
        since, user_room = section.since, section.user_room
        if since is None or since < self._recent.start or section.full_state:
            return False
        return user_room.pos <= since or (user_room.since is not None and user_room.since <= since)

    async def _joined_from_memory(self, response: _Response, section: Section) -> bytes | None:
        assert section.since is not None
        events = [
            event
            for event in self._recent.of_room(section.room.nid, section.since)
            if event.stream.pos <= response.upto
        ]
        if not events:
            return None
        if not response.is_plain or any(response.sent_it(event) for event in events):
            return await self._joined_delta(response, section.room, events)
        key = (section.room.nid, events[0].stream.pos, events[-1].stream.pos, *response.shape)
        cached = self._shared.get(key)
        if cached is not None and response.now_ms - cached[0] < 1000:
            return cached[1]
        shown = await self._joined_delta(response, section.room, events)
        self._shared[key] = (response.now_ms, shown)
        self._shared.move_to_end(key)
        if len(self._shared) > CACHED_SECTIONS:
            self._shared.popitem(last=False)
        return shown

    async def _joined_delta(self, response: _Response, room: RoomRef, events: list[RecentEvent]) -> bytes:
        shown = [event for event in events if response.shows(event.pdu)]
        limited = len(shown) > response.limit
        shown = shown[len(shown) - response.limit :] if limited else shown
        carried = {event.pdu.event_id for event in shown}
        changed: dict[StateKey, RecentEvent] = {}
        for event in events:
            if event.pdu.state_key is not None:
                changed.pop(event.pdu.key, None)
                changed[event.pdu.key] = event
        if response.state_after_key is None:
            changed = {key: event for key, event in changed.items() if event.pdu.event_id not in carried}
        state = [event.json(response.now_ms) for event in changed.values() if response.shows_state(event.pdu)]
        if response.lazy_load_members:
            senders = {event.pdu.sender for event in shown}
            if response.state_after_key is None:
                senders -= {event.pdu.sender for event in shown if event.pdu.state_key == event.pdu.sender}
            present = {key[1] for key in changed if key[0] == "m.room.member"}
            state += await self._lazy(response, room, senders - present, forget=limited)
        summary: JsonObject = {}
        if any(event.pdu.type == "m.room.member" for event in events):
            summary = (await self._summary(room, events[-1].stream.pos)).for_reader(response.user_id)
        first_seq = (shown or events)[0].stream.seq if shown else events[-1].stream.seq + 1
        return _joined(
            [event.json(response.now_ms, response.txn_id(event)) for event in shown],
            limited,
            RoomToken(first_seq, 0),
            response.state_key,
            state,
            summary,
        )

    async def _lazy(
        self, response: _Response, room: RoomRef, user_ids: Iterable[str], *, forget: bool
    ) -> list[bytes]:
        """The member events of users that the device was not given yet; of all with `forget`."""
        known = self._known_members(response, room, forget=forget)
        missing = [user_id for user_id in user_ids if user_id not in known]
        if not missing:
            return []
        known.update(missing)
        head = await self._heads.get(room.room_id)
        if head is None:
            return []
        loaded = await self._heads.load_keys(head, [("m.room.member", user_id) for user_id in missing])
        return [
            _state_json(stored.pdu)
            for stored in loaded.values()
            if stored is not None and response.shows_state(stored.pdu)
        ]

    def _known_members(self, response: _Response, room: RoomRef, *, forget: bool) -> set[str]:
        if response.filter.room.state.include_redundant_members:
            return set()
        key = (response.device_nid, room.nid)
        known = self._lazy_members.setdefault(key, set())
        self._lazy_members.move_to_end(key)
        if forget:
            known.clear()
        if len(self._lazy_members) > REMEMBERED_LAZY_MEMBERS:
            self._lazy_members.popitem(last=False)
        return known

    # -- all else, from the database

    async def _from_database(
        self, response: _Response, sections: Sequence[tuple[str, Section]]
    ) -> AsyncIterator[tuple[str, RoomId, bytes]]:
        async with self._database.connection() as tx:
            ranges = await self._ranges(tx, response, sections)
            rooms = {range_.section.room: range_ for range_ in ranges}
            timelines = await sync_reads.newest_events(
                tx, {room: (range_.a, range_.b) for room, range_ in rooms.items()}, response.limit + 1
            )
            histories = await sync_reads.view_histories(tx, response.user_id, response.user_nid, rooms)
            parts = {
                room: _Timeline.of(range_, timelines[room], response, histories[room])
                for room, range_ in rooms.items()
            }
            await self._add_unsigned(tx, response, parts)
            versions = await sync_reads.state_versions(
                tx, {room: part.state_seq for room, part in parts.items()}
            )
            for room, part in parts.items():
                part.state, part.changed = await self._state(tx, response, part, versions[room])
        # From here on no connection is held: what follows may ask for one of its own.
        for room, part in parts.items():
            if response.lazy_load_members and not part.range.is_new:
                present = {pdu.state_key for pdu in part.changed if pdu.type == "m.room.member"}
                senders = {event.stored.pdu.sender for event in part.events} - present
                part.state += await self._lazy(response, room, senders, forget=part.limited)
            if not part.events and not part.state and not part.range.is_new:
                continue
            if part.range.kind == "leave":
                shown = _left(part.json, part.limited, part.prev_batch, response.state_key, part.state)
            else:
                summary: JsonObject = {}
                if part.range.is_new or part.has_members:
                    found = await self._summary(room, response.upto)
                    summary = found.for_reader(response.user_id)
                shown = _joined(
                    part.json, part.limited, part.prev_batch, response.state_key, part.state, summary
                )
            yield part.range.kind, room.room_id, shown

    async def _ranges(
        self, tx: Transaction, response: _Response, sections: Sequence[tuple[str, Section]]
    ) -> list[_Range]:
        starts = [(section.room.nid, section.since or 0) for _, section in sections]
        ends = [
            (section.room.nid, response.upto if kind == "join" else section.user_room.pos)
            for kind, section in sections
        ]
        seqs = await sync_reads.seqs_at(tx, [*starts, *ends])
        ranges = []
        for (kind, section), a, b in zip(sections, seqs, seqs[len(starts) :], strict=False):
            is_new = section.since is None or section.full_state
            if not is_new and section.user_room.pos > (section.since or 0):
                is_new = (
                    await sync_reads.membership_at(tx, section.room, response.user_nid, a) != "join"
                    and kind == "join"
                )
            timeline_from = a if section.since is not None and (section.full_state or not is_new) else 0
            ranges.append(_Range(section, kind, timeline_from, b, is_new))
        return ranges

    async def _add_unsigned(
        self, tx: Transaction, response: _Response, parts: Mapping[RoomRef, _Timeline]
    ) -> None:
        """What stands beside the events of all timelines, read at once."""
        events = [(room, event) for room, part in parts.items() for event in part.events]
        replaced = await sync_reads.replaced_events(
            tx, [(room, event.seq) for room, event in events if event.stored.pdu.state_key is not None]
        )
        txn_ids = await sync_reads.txn_ids_of_device(
            tx,
            response.device_nid,
            [room.nid for room in parts],
            [event.stored.nid for _, event in events if event.stored.pdu.sender == response.user_id],
        )
        for room, part in parts.items():
            because = {}
            redacted = [
                encode_event_id(event.stored.pdu.event_id)
                for event in part.events
                if event.flags & EventFlag.REDACTED
            ]
            if redacted:
                because = await sync_reads.redacted_because(tx, room, redacted)
            part.json = [
                closed_json(
                    open_json(event.stored.pdu),
                    _unsigned(
                        event,
                        part.history,
                        response,
                        replaced.get((room.nid, event.seq)),
                        txn_ids.get(event.stored.nid),
                        because.get(encode_event_id(event.stored.pdu.event_id)),
                    ),
                )
                for event in part.events
            ]

    async def _state(
        self, tx: Transaction, response: _Response, part: _Timeline, version: int
    ) -> tuple[list[bytes], list[Pdu]]:
        """The state events of a section; of a room that is not new to the reader also as they are."""
        room = part.range.section.room
        if part.range.is_new:
            whole = await self._whole_state(tx, room, version)
            others = response.pick_state(whole.others)
            if not response.lazy_load_members:
                return [*others, *whole.members.values()], []
            wanted = {event.stored.pdu.sender for event in part.events} | {str(response.user_id)}
            self._known_members(response, room, forget=True).update(wanted)
            return [*others, *(whole.members[user] for user in wanted if user in whole.members)], []
        if not part.limited and response.is_plain and response.state_after_key is None:
            return [], []
        carried = {event.stored.pdu.event_id for event in part.events}
        changed = [
            stored.pdu
            for stored in await sync_reads.changed_state(tx, room, part.range.a, part.state_seq)
            if response.state_after_key is not None or stored.pdu.event_id not in carried
        ]
        return [_state_json(pdu) for pdu in changed if response.shows_state(pdu)], changed

    async def _whole_state(self, tx: Transaction, room: RoomRef, version: int) -> _RoomState:
        cached = self._states.get((room.nid, version))
        if cached is not None:
            self._states.move_to_end((room.nid, version))
            return cached
        state = _RoomState()
        for stored in await sync_reads.changed_state(tx, room, -1, version):
            json = _state_json(stored.pdu)
            state.size_bytes += len(json) + 100
            if stored.pdu.type == "m.room.member":
                state.members[stored.pdu.key[1]] = json
            else:
                state.others[stored.pdu.key] = json
        self._states[room.nid, version] = state
        self._states_bytes += state.size_bytes
        while self._states_bytes > CACHED_STATE_BYTES and len(self._states) > 1:
            self._states_bytes -= self._states.popitem(last=False)[1].size_bytes
        return state

    async def _summary(self, room: RoomRef, pos: int) -> _Summary:
        """The summary of a room at a position or later; once for all who ask at the same time."""
        cached = self._summaries.get((room.nid, pos))
        if cached is not None:
            return cached
        summary = await self._loading.do((room.nid, pos), lambda: self._load_summary(room))
        self._summaries[room.nid, pos] = summary
        if len(self._summaries) > CACHED_SUMMARIES:
            self._summaries.popitem(last=False)
        return summary

    async def _load_summary(self, room: RoomRef) -> _Summary:
        head = await self._heads.get(room.room_id)
        named = False
        if head is not None:
            loaded = await self._heads.load_keys(head, [("m.room.name", ""), ("m.room.canonical_alias", "")])
            named = any(
                stored is not None and bool(stored.pdu.content.get(key))
                for stored, key in zip(loaded.values(), ("name", "alias"), strict=True)
            )
        async with self._database.connection() as tx:
            joined, invited = await sync_reads.member_counts(tx, room.nid)
            if named:
                return _Summary(joined, invited, None)
            present = (Membership.JOIN, Membership.INVITE)
            heroes = await sync_reads.heroes(tx, room.nid, present, MAX_HEROES + 1)
            if len(heroes) <= 1:
                gone = (Membership.LEAVE, Membership.BAN)
                heroes += await sync_reads.heroes(tx, room.nid, gone, MAX_HEROES)
        return _Summary(joined, invited, heroes)

    async def _invite(self, requester: Requester, section: Section) -> bytes:
        """What an invited user sees: some of the room's state when the invite was sent, and the invite."""
        async with self._database.connection() as tx:
            [seq] = await sync_reads.seqs_at(tx, [(section.room.nid, section.user_room.pos)])
        keys = [*((event_type, "") for event_type in STRIPPED), ("m.room.member", str(requester.user_id))]
        loaded = await self._heads.load_keys(RoomHead(section.room, seq, ()), keys)
        stripped = [_stripped(stored.pdu) for stored in loaded.values() if stored is not None]
        return orjson.dumps({"invite_state": {"events": stripped}})


class _Response:
    """What is the same for all sections of one response."""

    def __init__(
        self, requester: Requester, upto: int, now_ms: int, filter_: Filter, state_after_key: str | None
    ) -> None:
        self.user_id = requester.user_id
        self.user_nid = requester.user_nid
        self.device_nid = requester.device_nid
        self.upto = upto
        self.now_ms = now_ms
        self.filter = filter_
        self.state_after_key = state_after_key
        self.state_key = state_after_key or "state"
        limit = filter_.room.timeline.limit
        self.limit = DEFAULT_LIMIT if limit is None else min(limit, LARGEST_LIMIT)
        self.lazy_load_members = filter_.room.state.lazy_load_members
        self._timeline_filter = None if filter_.room.timeline.allows_all else filter_.room.timeline
        self._state_filter = None if filter_.room.state.allows_all else filter_.room.state
        self.is_plain = (
            self._timeline_filter is None and self._state_filter is None and not self.lazy_load_members
        )
        self.shape = (self.limit, self.state_key)
        """What the bytes of a section depend on when the filter is plain."""

    def shows(self, pdu: Pdu) -> bool:
        """Whether the filter lets an event into timelines."""
        return self._timeline_filter is None or self._timeline_filter.allows(pdu)

    def shows_state(self, pdu: Pdu) -> bool:
        """Whether the filter lets a state event into the state."""
        return self._state_filter is None or self._state_filter.allows(pdu)

    def pick_state(self, state: Mapping[StateKey, bytes]) -> Iterable[bytes]:
        """The state events that the filter lets in."""
        if self._state_filter is None:
            return state.values()
        return [json for key, json in state.items() if self._state_filter.allows_type(key[0])]

    def sent_it(self, event: RecentEvent) -> bool:
        """Whether this device sent an event, under an ID of its own."""
        return event.stream.key is not None and event.stream.key.device_nid == self.device_nid

    def txn_id(self, event: RecentEvent) -> str | None:
        """The transaction ID of an event that this device sent."""
        return event.stream.key.txn_id if event.stream.key is not None and self.sent_it(event) else None


@dataclass(slots=True)
class _Timeline:
    """The timeline of a section that was read from the database."""

    range: _Range
    events: list[TimelineEvent]
    history: ViewHistory
    limited: bool
    prev_batch: RoomToken
    state_seq: int
    """The version of the state that the section shows or ends its changes with."""
    has_members: bool
    json: list[bytes] = field(default_factory=list)
    """The events as the reader gets them."""
    state: list[bytes] = field(default_factory=list)
    changed: list[Pdu] = field(default_factory=list)
    """The state events of a room that is not new to the reader."""

    @classmethod
    def of(
        cls, range_: _Range, read: list[TimelineEvent], response: _Response, history: ViewHistory
    ) -> _Timeline:
        """Cut what was read (one event more than the limit) to what the reader may see."""
        limited = len(read) > response.limit
        read = read[len(read) - response.limit :] if limited else read
        for index in range(len(read) - 1, 0, -1):
            if read[index].flags & EventFlag.GAP:
                read, limited = read[index:], True
                break
        first_seq = read[0].seq if read else range_.b + 1
        visible = [
            event
            for event in read
            if response.shows(event.stored.pdu) and _is_visible(event, history, response, range_.kind)
        ]
        exact = response.is_plain and response.state_after_key is None
        return cls(
            range_,
            visible,
            history,
            limited,
            RoomToken(first_seq, 0),
            first_seq - 1 if exact or (range_.is_new and response.state_after_key is None) else range_.b,
            any(event.stored.pdu.type == "m.room.member" for event in read),
        )


def _is_visible(event: TimelineEvent, history: ViewHistory, response: _Response, kind: str) -> bool:
    pdu = event.stored.pdu
    own = pdu.type == "m.room.member" and pdu.state_key == response.user_id
    if own and kind == "leave":
        return True
    if own or pdu.type == "m.room.history_visibility":
        return history.shows_change(event.seq - 1, pdu, response.user_id)
    return history.shows(event.seq - 1)


def _unsigned(
    event: TimelineEvent,
    history: ViewHistory,
    response: _Response,
    replaced: StoredEvent | None,
    txn_id: str | None,
    redacted_because: Pdu | None,
) -> JsonObject:
    pdu = event.stored.pdu
    view = history.view_at(event.seq - 1).after(pdu, response.user_id)
    unsigned: JsonObject = {
        "age": max(0, response.now_ms - pdu.origin_server_ts),
        "membership": view.membership if isinstance(view.membership, str) else "leave",
    }
    if replaced is not None:
        unsigned["replaces_state"] = replaced.pdu.event_id
        unsigned["prev_content"] = replaced.pdu.content
        unsigned["prev_sender"] = replaced.pdu.sender
    if txn_id is not None:
        unsigned["transaction_id"] = txn_id
    if redacted_because is not None:
        unsigned["redacted_because"] = client_event(redacted_because, with_room_id=False)
    return unsigned


def _state_json(pdu: Pdu) -> bytes:
    return open_json(pdu) + b"}"


def _stripped(pdu: Pdu) -> JsonObject:
    """An event as someone sees it who is not in the room. Source: "Stripped state"."""
    return {"type": pdu.type, "state_key": pdu.state_key, "sender": pdu.sender, "content": pdu.content}


def _timeline(events: Sequence[bytes], limited: bool, prev_batch: RoomToken) -> bytes:
    return b'"timeline":{"events":[%s],"limited":%s,"prev_batch":"%s"}' % (
        b",".join(events),
        b"true" if limited else b"false",
        str(prev_batch).encode(),
    )


def _joined(
    events: Sequence[bytes],
    limited: bool,
    prev_batch: RoomToken,
    state_key: str,
    state: Sequence[bytes],
    summary: JsonObject,
) -> bytes:
    return (
        b'{%s,"%s":{"events":[%s]},"account_data":{"events":[]},"ephemeral":{"events":[]},"summary":%s}'
        % (
            _timeline(events, limited, prev_batch),
            state_key.encode(),
            b",".join(state),
            orjson.dumps(summary),
        )
    )


def _left(
    events: Sequence[bytes], limited: bool, prev_batch: RoomToken, state_key: str, state: Sequence[bytes]
) -> bytes:
    return b'{%s,"%s":{"events":[%s]},"account_data":{"events":[]}}' % (
        _timeline(events, limited, prev_batch),
        state_key.encode(),
        b",".join(state),
    )
