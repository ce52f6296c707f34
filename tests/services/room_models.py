"""A model of rooms that keeps the whole state at every event, and authors of random events for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from homeserver.protocol.auth_events import auth_state_keys, select_auth_events
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.events import EventDraft, Pdu, StateKey, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import resolve
from homeserver.services.arrival import Verdict
from storage import room_state, room_timeline, stored_places
from storage.event_flags import EventFlag
from storage.packed_state import StateEntries
from storage.room_heads import RoomRef
from storage.room_state import StateAt
from tests.services.incoming import IncomingStore

State = Mapping[StateKey, EventId]

OTHER_SERVER: Final = ServerName("other.test")


@dataclass
class Model:
    """A room in which every event has its whole state; told of each event when it arrives."""

    version: RoomVersion
    room_id: RoomId
    events: dict[EventId, Pdu] = field(default_factory=dict)
    after: dict[EventId, State] = field(default_factory=dict)
    before: dict[EventId, State] = field(default_factory=dict)
    verdicts: dict[EventId, Verdict] = field(default_factory=dict)
    extremities: set[EventId] = field(default_factory=set)

    @property
    def rejected(self) -> set[EventId]:
        return {event_id for event_id, verdict in self.verdicts.items() if verdict is Verdict.REJECTED}

    @property
    def current(self) -> State:
        return self.resolve([self.after[event_id] for event_id in self.extremities])

    def resolve(self, states: list[State]) -> State:
        return resolve(self.version, states, self.events, rejected=self.rejected)

    def state_before(self, parents: Iterable[EventId]) -> State:
        return self.resolve([self.after[event_id] for event_id in parents])

    def arrive(self, pdu: Pdu) -> None:
        """What the specification wants to become of an event."""
        before = self.state_before(pdu.prev_events) if pdu.prev_events else {}
        self.events[pdu.event_id] = pdu
        self.before[pdu.event_id] = before
        verdict = Verdict.ACCEPTED
        auth_events = [self.events[event_id] for event_id in pdu.auth_events]
        by_auth_events = {event.key: event.event_id for event in auth_events}
        if self.version.room_id_is_create_hash and ("m.room.create", "") in before:
            by_auth_events["m.room.create", ""] = before["m.room.create", ""]
        if (
            self.rejected.intersection(pdu.auth_events)
            or not self.allows(pdu, by_auth_events)
            or not self.allows(pdu, before)
        ):
            verdict = Verdict.REJECTED
        elif self.extremities:
            current = self.resolve([*(self.after[event_id] for event_id in self.extremities), before])
            if not self.allows(pdu, current):
                verdict = Verdict.SOFT_FAILED
        self.verdicts[pdu.event_id] = verdict
        changes = pdu.state_key is not None and verdict is not Verdict.REJECTED
        self.after[pdu.event_id] = {**before, pdu.key: pdu.event_id} if changes else before
        if verdict is Verdict.ACCEPTED:
            self.extremities -= self._behind(pdu)
            self.extremities.add(pdu.event_id)

    def allows(self, pdu: Pdu, state: State) -> bool:
        keys = auth_state_keys(self.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
        known = {key: self.events[state[key]] for key in keys if key in state}
        return why_refused(self.version, pdu, known) is None

    def _behind(self, pdu: Pdu) -> set[EventId]:
        """The parents of an event, and those that it reaches through refused ones."""
        found: set[EventId] = set()
        stack = list(pdu.prev_events)
        while stack:
            event_id = stack.pop()
            if event_id not in found:
                found.add(event_id)
                if self.verdicts[event_id] is not Verdict.ACCEPTED:
                    stack += self.events[event_id].prev_events
        return found


@dataclass
class Author:
    """Makes random events of the users of other servers, on random parents."""

    random: Random
    model: Model
    users: list[UserId]
    clock: int = 1_700_000_000_000

    def event(self, draft: EventDraft, sender: UserId, parents: list[EventId], state: State) -> Pdu:
        self.clock += self.random.randint(-2, 5)
        by_key = {key: self.model.events[event_id] for key, event_id in state.items()}
        return build_pdu(
            self.model.version,
            room_id=self.model.room_id,
            draft=draft,
            sender=sender,
            prev_events=parents,
            auth_events=select_auth_events(
                self.model.version, draft.type, sender, draft.state_key, draft.content, by_key
            ),
            depth=1 + max(self.model.events[event_id].depth for event_id in parents),
            origin_server_ts=self.clock,
        )

    def random_event(self) -> Pdu:
        recent = list(self.model.events)[-self.random.choice((1, 3, 6, 12)) :]
        recent = [event_id for event_id in recent if self.model.before[event_id] or len(recent) == 1]
        parents = self.random.sample(recent, k=min(len(recent), self.random.choice((1, 1, 1, 2, 3))))
        if self.random.random() < 0.4:
            parents = sorted(self.model.extremities)[:10]
        state = self.model.state_before(parents)
        return self.event(self._draft(state), self.random.choice(self.users), parents, state)

    def _draft(self, state: State) -> EventDraft:
        choose = self.random.choice
        target = choose(self.users)
        match choose(("message", "message", "topic", "member", "member", "levels", "rules", "join", "join")):
            case "topic":
                return EventDraft("m.room.topic", {"topic": str(self.random.randrange(100))}, "")
            case "member":
                membership = choose(("invite", "leave", "ban", "leave"))
                return EventDraft("m.room.member", {"membership": membership}, target)
            case "levels":
                key = ("m.room.power_levels", "")
                content = self.model.events[state[key]].content if key in state else {}
                users = {**content.get("users", {}), target: choose((0, 50, 100))}
                return EventDraft("m.room.power_levels", {**content, "users": users}, "")
            case "rules":
                return EventDraft("m.room.join_rules", {"join_rule": choose(("public", "invite"))}, "")
            case "join":
                name = str(self.random.randrange(100))
                return EventDraft("m.room.member", {"membership": "join", "displayname": name}, target)
            case _:
                return EventDraft("m.room.message", {"body": str(self.random.randrange(10**6))})


async def shared_room(store: IncomingStore, version: str) -> tuple[Model, RoomRef]:
    """A room of a local user, with the model of it."""
    room_id = await store.room(store.alice, room_version=version)
    ref = (await store.heads.get(room_id)).room  # type: ignore[union-attr]
    model = Model(ref.version, room_id)
    for pdu in await store.events_of(ref):
        model.arrive(pdu)
    return model, ref


async def check(store: IncomingStore, ref: RoomRef, model: Model) -> None:
    """Compare everything that is stored of a room with the model."""
    store.heads.forget(ref.room_id)
    head = await store.heads.get(ref.room_id)
    assert head is not None
    assert {extremity.event_id for extremity in head.extremities} == model.extremities
    async with store.database.connection() as tx:
        bodies = await stored_places.bodies(tx, ref, list(model.events))
        ids = {body.nid: event_id for event_id, body in bodies.items()}
        rows = await room_timeline.by_nids(tx, list(ids))

        def in_words(entries: StateEntries) -> dict[StateKey, EventId]:
            events = [model.events[ids[nid]] for nid in entries.values()]
            return {event.key: event.event_id for event in events}

        assert in_words(await room_state.whole(tx, StateAt(ref.nid, head.seq))) == model.current
        for nid, row in rows.items():
            event_id = ids[nid]
            assert bool(row.flags & EventFlag.REJECTED) == (model.verdicts[event_id] is Verdict.REJECTED)
            assert bool(row.flags & EventFlag.SOFT_FAILED) == (
                model.verdicts[event_id] is Verdict.SOFT_FAILED
            )
            assert (row.seq > 0) == (model.verdicts[event_id] is Verdict.ACCEPTED)
            assert in_words(await room_state.whole(tx, row.state_before(ref))) == model.before[event_id]
