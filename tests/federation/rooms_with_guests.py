"""Rooms of a server of ours that users of peers are in, with events put into them as a test wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import randbits
from typing import Any

from homeserver.protocol.auth_events import auth_state_keys, select_auth_events
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.events import EventDraft, Pdu, build_pdu, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.signing import sign_event
from storage import outliers
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.event_flags import EventFlag
from storage.outliers import Outlier
from storage.placement import Placed
from storage.room_heads import RoomHead
from storage.state_deltas import ForkState
from tests.client_api.rooms import new_room
from tests.clients import Client
from tests.federation.peers import Peer
from tests.federation.played_rooms import user_of
from tests.servers import RunningServer


@dataclass(frozen=True)
class SharedRoom:
    """A room, and the server of ours that is asked about it. Events of its own users come through its API."""

    server: RunningServer
    room_id: str

    @property
    def database(self) -> Database:
        return self.server.services.room_events.database

    async def enter(self, peer: Peer, user_id: str) -> EventId:
        """A user of a peer joins: the join is stored as if it had come the usual way."""
        return (await self.put(peer, user_id, "m.room.member", {"membership": "join"}, user_id)).event_id

    async def leave(self, peer: Peer, user_id: str) -> EventId:
        return (await self.put(peer, user_id, "m.room.member", {"membership": "leave"}, user_id)).event_id

    async def put(
        self,
        peer: Peer,
        sender: str,
        event_type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        *,
        flags: int = 0,
        prev: Sequence[EventId] | None = None,
        depth: int | None = None,
        place: Callable[[RoomHead], dict[str, Any]] = lambda _head: {},
    ) -> Pdu:
        """Store an event of a peer's user, signed by the peer, whether the rules allow it or not.

        `flags`: SOFT_FAILED or REJECTED keep it out of the timeline. `place`: more about its place.
        """
        draft = EventDraft(event_type, content, state_key)
        built: list[Pdu] = []

        def decide(head: RoomHead) -> list[Placed]:
            keys = auth_state_keys(head.version, event_type, sender, state_key, content)
            stored = {key: event for key in keys if (event := head.stored(key)) is not None}
            state = {key: event.pdu for key, event in stored.items()}
            auth = select_auth_events(head.version, event_type, sender, state_key, content, state)
            pdu = signed(peer, head, draft, sender, auth, prev, depth)
            built.append(pdu)
            is_live = not flags & (EventFlag.SOFT_FAILED | EventFlag.REJECTED)
            named = [event.nid for event in stored.values() if event.pdu.event_id in pdu.auth_events]
            placed: dict[str, Any] = {"is_live": is_live, "redacts_others": True}
            if not is_live:
                placed["state"] = ForkState(head.seq)
                placed["prev_nids"] = ()
            return [Placed(pdu, randbits(60), flags, tuple(named), **(placed | place(head)))]

        await self.server.services.room_events.persister.append(RoomId(self.room_id), decide)
        return built[-1]

    async def put_outlier(
        self, peer: Peer, sender: str, event_type: str, content: dict[str, Any], state_key: str
    ) -> Pdu:
        """Store an event of a peer's user of which nobody here knows the state before it."""

        def build(head: RoomHead) -> tuple[int, Pdu]:
            draft = EventDraft(event_type, content, state_key)
            return head.room.nid, signed(peer, head, draft, sender, (), None, None)

        persister = self.server.services.room_events.persister
        room_nid, pdu = await persister.consider(RoomId(self.room_id), build)
        outlier = Outlier(randbits(60), pdu, canonical_json(pdu.json), ())
        await outliers.insert(self.database, Dictionaries(self.database), room_nid, [outlier], 0)
        return pdu


def signed(
    peer: Peer,
    head: RoomHead,
    draft: EventDraft,
    sender: str,
    auth_events: Sequence[EventId],
    prev_events: Sequence[EventId] | None,
    depth: int | None,
) -> Pdu:
    """An event of a peer's user on top of a head, or after other events and of another depth."""
    pdu = build_pdu(
        head.version,
        room_id=head.room.room_id,
        draft=draft,
        sender=UserId(sender),
        prev_events=head.prev_events if prev_events is None else prev_events,
        auth_events=auth_events,
        depth=head.next_depth if depth is None else depth,
        origin_server_ts=peer.clock(),
    )
    json = sign_event(head.version, pdu.json, peer.name, peer.keys[0])
    return stored_pdu(head.version, pdu.room_id, pdu.event_id, json)


async def new_shared_room(
    server: RunningServer, creator: Client, peer: Peer, *users: str, **wanted: Any
) -> SharedRoom:
    """A public room of our server's that users of a peer are in: one called bob if none are given."""
    room = SharedRoom(server, await new_room(creator, **wanted))
    for user_id in users or [user_of(peer, "bob")]:
        await room.enter(peer, user_id)
    return room


def text(body: str) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body}


async def say(creator: Client, room: SharedRoom, *bodies: str) -> list[str]:
    return [await creator.say(room.room_id, body) for body in bodies]


async def put_fork(room: SharedRoom, peer: Peer, sender: str, body: str, prev: EventId, **place: Any) -> Pdu:
    """A message that does not know of what came after `prev`: one extremity more."""

    def fork(head: RoomHead) -> dict[str, Any]:
        return {"covers": frozenset(), "prev_nids": (), **place}

    return await room.put(peer, sender, "m.room.message", text(body), prev=[prev], place=fork)
