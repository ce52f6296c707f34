"""Rooms that peers play: real events over real HTTP, with any history, told as a test wants it.

The peers of a room know all of it, each answers for all of them, and none checks what it is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from uuid import uuid4

from federation.outbound.signed_client import uri_of
from homeserver.protocol.auth_events import CREATE, JOIN_RULES, select_auth_events
from homeserver.protocol.event_hashes import chosen_event_id, content_hash, event_id_of, room_id_of_create
from homeserver.protocol.events import Pdu, StateKey, greatest_depth, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId, server_name_of
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion, room_version
from homeserver.protocol.signing import sign_event
from homeserver.protocol.state_resolution.resolve import resolve
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64
from tests.clients import Response
from tests.federation.homeservers import ask
from tests.federation.peers import Answer, Asked, Peer, error_answer
from tests.federation.room_answers import ENDPOINTS
from tests.servers import RunningServer

V1: Final = "/_matrix/federation/v1"
V2: Final = "/_matrix/federation/v2"

EventRef: TypeAlias = Pdu | str
"""An event, or an event ID."""
State: TypeAlias = dict[StateKey, EventId]
Override: TypeAlias = Callable[[Asked], Answer | Awaitable[Answer] | None]


def user_of(peer: Peer, name: str) -> UserId:
    """A user of a peer."""
    return UserId(f"@{name}:{peer.name}")


async def send(
    server: RunningServer,
    peer: Peer,
    pdus: Sequence[Pdu | JsonObject],
    edus: Sequence[JsonObject] = (),
    txn_id: str | None = None,
) -> Response:
    """A peer sends our server a transaction; without `txn_id` it is a new one."""
    content = {
        "origin": peer.name,
        "origin_server_ts": peer.clock(),
        "pdus": [pdu.json if isinstance(pdu, Pdu) else pdu for pdu in pdus],
        "edus": list(edus),
    }
    return await ask(server, peer, uri_of(f"{V1}/send", txn_id or uuid4().hex), content, method="PUT")


@dataclass
class PlayedRoom:
    """A room of peers. What our server sends to any of them becomes part of it."""

    version: RoomVersion
    peers: Sequence[Peer]
    room_id: RoomId
    events: dict[EventId, Pdu] = field(default_factory=dict)
    """All that the peers know, in the order in which they learnt of it."""
    heads: list[EventId] = field(default_factory=list)
    before: dict[EventId, State] = field(default_factory=dict)
    """The state before each event."""
    told: dict[EventId, State] = field(default_factory=dict)
    """The state before an event as the peers tell it, where that is not what it is."""
    rejected: set[EventId] = field(default_factory=set)
    handed_out: dict[EventId, JsonObject | None] = field(default_factory=dict)
    """What is given to those who ask, in place of an event; None for nothing."""
    answers: dict[str, Override] = field(default_factory=dict)
    """By endpoint, a key of ENDPOINTS: asked first; where it returns None, the room answers."""
    asked: list[tuple[str, Asked]] = field(default_factory=list)
    """All requests about this room that came, with their endpoints."""

    @classmethod
    def new(
        cls,
        peers: Sequence[Peer],
        *,
        version: str = "12",
        members: Sequence[str] = (),
        join_rules: JsonObject | None = None,
        power_levels: JsonObject | None = None,
    ) -> PlayedRoom:
        """A room, public unless `join_rules` says otherwise, made by the first of its members.

        `members`: user IDs; where none are given, a user called tea on each peer.
        """
        creator, *others = members or [user_of(peer, "tea") for peer in peers]
        room = cls(room_version(version), peers, RoomId(f"!{uuid4().hex}:{peers[0].name}"))
        content = {"room_version": version, "tea": uuid4().hex}  # no two rooms may have the same hash
        if room.version.creator_in_content:
            content["creator"] = creator
        room.room_id = room.event(creator, "m.room.create", content, "").room_id
        room.event(creator, "m.room.member", {"membership": "join"}, creator)
        users = {} if room.version.privileged_creators else {creator: 100}
        room.event(creator, "m.room.power_levels", {"users": users, **(power_levels or {})}, "")
        room.event(creator, "m.room.join_rules", join_rules or {"join_rule": "public"}, "")
        room.event(creator, "m.room.history_visibility", {"history_visibility": "shared"}, "")
        for member in others:
            room.event(member, "m.room.member", {"membership": "join"}, member)
        room.serve()
        return room

    @classmethod
    async def entered(
        cls, server: RunningServer, peers: Sequence[Peer], user_id: str, room_id: str
    ) -> PlayedRoom:
        """A room of our server's that a user of a peer joins: what the peers then know of it."""
        peer = next(peer for peer in peers if peer.name == server_name_of(user_id))
        uri = uri_of(f"{V1}/make_join", room_id, user_id, query={"ver": list(ROOM_VERSIONS)})
        version = (await ask(server, peer, uri)).body["room_version"]
        room = cls(room_version(version), peers, RoomId(room_id))
        room.serve()
        await room.join(server, user_id)
        return room

    def event(
        self,
        sender: str,
        event_type: str,
        content: JsonObject | None = None,
        state_key: str | None = None,
        prev: Iterable[EventRef] | None = None,
        auth: Iterable[EventRef] | None = None,
        depth: int | None = None,
        *,
        apart: bool = False,
        rejected: bool = False,
        signed_by: Peer | None = None,
        **overrides: Any,
    ) -> Pdu:
        """A new event, hashed and signed by its sender's server: on top of all heads, or of `prev`.

        `apart`: it is no part of the room, unless `add` makes it one. `rejected`: the peers know it, but it
        is no head and changes no state. `overrides`: fields as they should be, None to leave one out;
        `hashes` and `signatures` among them take the place of those that fit.
        """
        content = {} if content is None else content
        prev_events = self.heads if prev is None else _ids(prev)
        state = self.state_after(*prev_events)
        selected = self.auth_events(sender, event_type, content, state_key, state)
        json = {
            "room_id": None if self._is_nameless_create(event_type) else self.room_id,
            "type": event_type,
            "sender": sender,
            "state_key": state_key,
            "content": content,
            "prev_events": list(prev_events),
            "auth_events": selected if auth is None else _ids(auth),
            "depth": self.depth_after(prev_events) if depth is None else depth,
            "origin_server_ts": self.peers[0].clock() + len(self.events),
        }
        pdu = self.sealed({**json, **overrides}, signed_by or self.peer_of(sender))
        return pdu if apart else self.add(pdu, rejected=rejected)

    def sealed(self, fields: JsonObject, signed_by: Peer) -> Pdu:
        """An event with hash and signature, where it has none; fields that are None are left out."""
        json = {key: value for key, value in fields.items() if value is not None}
        if self.version.has_chosen_event_ids:
            for key in ("prev_events", "auth_events"):
                if key in json:
                    json[key] = self.references(json[key])
            json.setdefault("event_id", chosen_event_id(self.version, json, signed_by.name))
        content = json.get("content")
        if isinstance(content, dict) and "redacts" in content and not self.version.redacts_in_content:
            json |= {"redacts": content["redacts"], "content": {**content}}
            del json["content"]["redacts"]
        if "hashes" not in json:
            json["hashes"] = {"sha256": encode_base64(content_hash(self.version, json))}
        if "signatures" not in json:
            json = sign_event(self.version, json, signed_by.name, signed_by.keys[0])
        return self.parsed(json)

    def references(self, event_ids: Sequence[Any]) -> list[Any]:
        """Event IDs as this version writes references; what is none stays as it is."""
        if not self.version.has_chosen_event_ids:
            return list(event_ids)
        return [[one, {}] if isinstance(one, str) else one for one in event_ids]

    def parsed(self, json: JsonObject) -> Pdu:
        """An event as it came, whose fields may be missing or of any type."""
        event_id = event_id_of(self.version, json)
        has_room_id = not self._is_nameless_create(json.get("type"))
        usable = {key: value for key, value in json.items() if type(value) is type(_NOTHING.get(key, value))}
        pdu = stored_pdu(
            self.version,
            self.room_id if has_room_id else room_id_of_create(event_id),
            event_id,
            _NOTHING | usable,
        )
        return replace(pdu, json=json)

    def add(self, pdu: Pdu, *, rejected: bool = False) -> Pdu:
        """Make an event part of the room, if it is not yet."""
        if pdu.event_id in self.events:
            return self.events[pdu.event_id]
        self.before[pdu.event_id] = self.state_after(*pdu.prev_events)
        self.events[pdu.event_id] = pdu
        if rejected:
            self.rejected.add(pdu.event_id)
        else:
            self.heads = [head for head in self.heads if head not in pdu.prev_events] + [pdu.event_id]
        return pdu

    @property
    def state(self) -> State:
        """The state of today."""
        return self.state_after(*self.heads)

    def state_after(self, *events: EventRef) -> State:
        """The state after events, those that are known: resolved, where there are several."""
        states = []
        for event_id in _ids(events):
            if (pdu := self.events.get(event_id)) is not None:
                changes = pdu.state_key is not None and event_id not in self.rejected
                states.append(self.before[event_id] | ({pdu.key: event_id} if changes else {}))
        if len(states) == 1:
            return states[0]
        named = {event_id for pdu in self.events.values() for event_id in pdu.auth_events}
        absent = named.difference(self.events)
        return resolve(self.version, states, self.events, rejected=self.rejected, absent=absent)

    def auth_events(
        self, sender: str, event_type: str, content: JsonObject, state_key: str | None, state: State
    ) -> list[EventId]:
        """The auth events of an event with a state before it."""
        pdus = {key: self.events[event_id] for key, event_id in state.items()}
        return [*select_auth_events(self.version, event_type, sender, state_key, content, pdus)]

    def depth_after(self, event_ids: Iterable[EventId]) -> int:
        """The depth of an event after others."""
        known = [self.events[event_id].depth for event_id in event_ids if event_id in self.events]
        return min(1 + max(known, default=0), greatest_depth(self.version))

    def withhold(self, *events: EventRef) -> None:
        """Act as if no peer had these events: others name them, but they are given to nobody."""
        self.handed_out |= dict.fromkeys(_ids(events))

    def garble(self, event: Pdu, **changes: Any) -> None:
        """Give something else to all who ask for an event."""
        self.handed_out[event.event_id] = {**event.json, **changes}

    def fail(self, endpoint: str, status: int = 500, errcode: str = "M_UNKNOWN") -> None:
        """Refuse all requests of an endpoint; after a status from 500 on nobody asks again for a while."""
        self.answers[endpoint] = lambda _asked: error_answer(status, errcode)

    def requests(self, endpoint: str, peer: Peer | None = None) -> list[Asked]:
        """The requests of an endpoint that came: to one of the peers, or to all of them."""
        return [asked for name, asked in self.asked if name == endpoint and peer in (None, asked.peer)]

    def sent_to(self, peer: Peer) -> list[Pdu]:
        """The room's events that a peer got in transactions, each as often as it came."""
        return [
            self.parsed(json)
            for transaction in peer.transactions
            for json in transaction.content["pdus"]
            if json.get("room_id") == self.room_id
        ]

    async def join(self, server: RunningServer, user_id: str) -> Pdu:
        """A user of a peer joins the room through our server, which has to let it in."""
        peer = self.peer_of(user_id)
        uri = uri_of(f"{V1}/make_join", self.room_id, user_id, query={"ver": self.version.version})
        made = await ask(server, peer, uri)
        assert made.status == 200, made.body
        join = self.sealed({**made.body["event"], "origin_server_ts": peer.clock()}, peer)
        uri = uri_of(f"{V2}/send_join", self.room_id, join.event_id)
        answer = await ask(server, peer, uri, join.json, method="PUT")
        assert answer.status == 200, answer.body
        state = {}
        for json in [*answer.body["auth_chain"], *answer.body["state"]]:
            pdu = self.parsed(json)
            self.events.setdefault(pdu.event_id, pdu)
            self.before.setdefault(pdu.event_id, {})
            if json in answer.body["state"]:
                state[pdu.key] = pdu.event_id
        join = self.add(self.parsed(answer.body.get("event", join.json)))
        self.before[join.event_id] = state
        return join

    async def invite(self, server: RunningServer, inviter: str, user_id: str) -> Response:
        """A user of a peer invites one of ours; if our server signs it, it becomes part of the room."""
        invite = self.event(inviter, "m.room.member", {"membership": "invite"}, user_id, apart=True)
        stripped = [self.events[self.state[key]].json for key in (CREATE, JOIN_RULES)]
        content = {
            "event": invite.json,
            "room_version": self.version.version,
            "invite_room_state": stripped,
        }
        uri = uri_of(f"{V2}/invite", self.room_id, invite.event_id)
        answer = await ask(server, self.peer_of(inviter), uri, content, method="PUT")
        if answer.status == 200:
            self.add(self.parsed(answer.body["event"]))
        return answer

    def peer_of(self, user_id: str) -> Peer:
        """The peer whose user this is."""
        [peer] = [peer for peer in self.peers if peer.name == server_name_of(user_id)]
        return peer

    def serve(self) -> None:
        """Let the peers answer for this room."""
        for peer in self.peers:
            for endpoint, (method, path, _) in ENDPOINTS.items():
                peer.route(method, path, self._handler(endpoint))

    def _handler(self, endpoint: str) -> Override:
        answer_of_room = ENDPOINTS[endpoint][2]

        def answer(asked: Asked) -> Answer | Awaitable[Answer] | None:
            if not self._concerns(asked):
                return None
            self.asked.append((endpoint, asked))
            given = self.answers[endpoint](asked) if endpoint in self.answers else None
            return answer_of_room(self, asked) if given is None else given

        return answer

    def _concerns(self, asked: Asked) -> bool:
        if "txn_id" in asked.names:
            return any(json.get("room_id") == self.room_id for json in asked.content["pdus"])
        if "room_id" in asked.names:
            return asked.names["room_id"] == self.room_id
        return asked.names["event_id"] in self.events

    def _is_nameless_create(self, event_type: object) -> bool:
        return event_type == "m.room.create" and self.version.room_id_is_create_hash


_NOTHING: Final[JsonObject] = {
    "type": "",
    "sender": "",
    "content": {},
    "prev_events": [],
    "auth_events": [],
    "depth": 0,
    "origin_server_ts": 0,
}
"""What stands for the fields that an event does not have."""


def _ids(events: Iterable[EventRef]) -> list[EventId]:
    return [event.event_id if isinstance(event, Pdu) else EventId(event) for event in events]
