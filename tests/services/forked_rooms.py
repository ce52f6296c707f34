"""Rooms of a user of ours with guests from another server, whose events may know of less than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from homeserver.protocol.auth_events import select_auth_events
from homeserver.protocol.event_hashes import encode_event_id
from homeserver.protocol.events import EventDraft, Pdu, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.services.client_events import ClientEvents
from homeserver.services.room_history import RoomHistory
from homeserver.services.room_state import RoomState
from homeserver.services.room_visibility import RoomVisibility
from storage.database import Transaction
from storage.room_heads import RoomRef
from storage.stream import StreamEvent
from tests.services.incoming import IncomingStore
from tests.services.room_models import OTHER_SERVER, Model
from tests.services.syncing import INCARNATION, later
from tests.storage.stores import NOBODY

FIRST_TS: Final = 1_700_000_000_000


@dataclass
class ForkedRoom:
    """A room, and the model that has the whole state at each of its events."""

    store: IncomingStore
    ref: RoomRef
    model: Model
    ts: int = FIRST_TS
    heard: set[EventId] = field(default_factory=set)

    @classmethod
    async def new(cls, store: IncomingStore, *guests: UserId, **request: Any) -> ForkedRoom:
        """A public room of alice, which guests of the other server have joined."""
        room_id = await store.room(store.alice, **request)
        ref = (await store.heads.get(room_id)).room  # type: ignore[union-attr]
        room = cls(store, ref, Model(ref.version, room_id))
        store.store.stream.listen(room.listen)
        for pdu in await store.events_of(ref):
            room.hear(pdu)
        for guest in guests:
            await room.join(guest)
        return room

    @property
    def room_id(self) -> RoomId:
        return self.ref.room_id

    @property
    def heads(self) -> list[EventId]:
        """The forward extremities."""
        return sorted(self.model.extremities)

    def listen(self, events: Sequence[StreamEvent]) -> None:
        for event in events:
            if event.room.nid == self.ref.nid:
                self.hear(event.stored.pdu)

    def hear(self, pdu: Pdu) -> None:
        if pdu.event_id not in self.heard:
            self.heard.add(pdu.event_id)
            self.model.arrive(pdu)

    def build(
        self,
        sender: UserId,
        event_type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        after: Sequence[EventId] | None = None,
        ts: int | None = None,
    ) -> Pdu:
        """An event of a guest that knows of these others, by default of all."""
        parents = self.heads if after is None else list(after)
        self.ts += 1
        state = {key: self.model.events[one] for key, one in self.model.state_before(parents).items()}
        draft = EventDraft(event_type, content, state_key)
        return build_pdu(
            self.ref.version,
            room_id=self.room_id,
            draft=draft,
            sender=sender,
            prev_events=parents,
            auth_events=select_auth_events(self.ref.version, event_type, sender, state_key, content, state),
            depth=1 + max(self.model.events[parent].depth for parent in parents),
            origin_server_ts=self.ts if ts is None else ts,
        )

    def sealed_after(
        self, pdu: Pdu, parents: Sequence[EventId], auth: Sequence[EventId] | None = None
    ) -> Pdu:
        """What another event says, as one that comes after others; its auth events stay unless given."""
        return build_pdu(
            self.ref.version,
            room_id=self.room_id,
            draft=EventDraft(pdu.type, pdu.content, pdu.state_key),
            sender=pdu.sender,
            prev_events=parents,
            auth_events=pdu.auth_events if auth is None else auth,
            depth=1 + max(self.model.events[parent].depth for parent in parents),
            origin_server_ts=pdu.origin_server_ts,
        )

    async def receive(self, *pdus: Pdu) -> None:
        """Events come from the other server."""
        for pdu in pdus:
            self.hear(pdu)
        await self.store.incoming.receive(OTHER_SERVER, self.ref, pdus, wait=False)

    async def event(
        self, sender: UserId, event_type: str, content: dict[str, Any], *rest: Any, **more: Any
    ) -> Pdu:
        """An event of a guest is made, and comes."""
        pdu = self.build(sender, event_type, content, *rest, **more)
        await self.receive(pdu)
        return pdu

    async def say(self, sender: UserId, body: str, after: Sequence[EventId] | None = None) -> EventId:
        content = {"msgtype": "m.text", "body": body}
        return (await self.event(sender, "m.room.message", content, after=after)).event_id

    async def join(self, guest: UserId, after: Sequence[EventId] | None = None) -> Pdu:
        return await self.event(guest, "m.room.member", {"membership": "join"}, guest, after=after)

    async def make_admin(self, *guests: UserId) -> None:
        """Let guests do everything, beside alice."""
        users: dict[str, int] = dict.fromkeys(guests, 100)
        content = {"users": users | self.creator_level()}
        draft = EventDraft("m.room.power_levels", content, "")
        await self.store.store.room_events.set_state(self.store.alice, self.room_id, draft)

    def creator_level(self) -> dict[str, int]:
        """What power levels say of alice, where they have to say it."""
        return {} if self.ref.version.privileged_creators else {self.store.alice.user_id: 100}

    @property
    def history(self) -> RoomHistory:
        """What answers /messages, /context and /event."""
        store, visibility = self.store.store, RoomVisibility()
        events = ClientEvents(visibility, later)
        return RoomHistory(store.database, store.dictionaries, visibility, events, INCARNATION, NOBODY)

    @property
    def state(self) -> RoomState:
        """What answers /state, /members and /joined_members."""
        store, visibility = self.store.store, RoomVisibility()
        events = ClientEvents(visibility, later)
        return RoomState(store.database, store.dictionaries, visibility, events, INCARNATION)


def guest(name: str) -> UserId:
    """A user of the other server."""
    return UserId(f"@{name}-{uuid4().hex[:8]}:{OTHER_SERVER}")


async def flags_of(tx: Transaction, event_id: EventId) -> int:
    """The flags with which an event is stored."""
    flags: int = await tx.fetchval("SELECT flags FROM events WHERE event_id = $1", encode_event_id(event_id))
    return flags
