"""What peers answer to requests about a room that they play."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from homeserver.protocol.auth_events import AUTHORISER, CREATE, JOIN_RULES
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from tests.federation.peers import SEND, Answer, Asked, Peer, error_answer, json_answer

if TYPE_CHECKING:
    from homeserver.protocol.events import Pdu
    from tests.federation.played_rooms import PlayedRoom

INVITE: Final = "/_matrix/federation/v2/invite/{room_id}/{event_id}"


def accept_invites(peer: Peer) -> list[JsonObject]:
    """Let a peer sign all invites, also to rooms that are not played; returns the list of those that come."""
    invites: list[JsonObject] = []

    def sign(asked: Asked) -> Answer:
        invites.append(asked.content)
        return json_answer({"event": _co_signed(asked)})

    peer.route("PUT", INVITE, sign)
    return invites


def _co_signed(asked: Asked) -> JsonObject:
    version = room_version(asked.content["room_version"])
    return sign_event(version, asked.content["event"], asked.peer.name, asked.peer.keys[0])


def answer_to_join(room: PlayedRoom, join: Pdu, **changes: Any) -> Answer:
    """What a peer says when it has taken a join, but for some changes; None leaves something out."""
    state = [room.events[event_id] for event_id in room.before[join.event_id].values()]
    chain = [event for event in room.events.values() if event.state_key is not None and event is not join]
    answer: JsonObject = {
        "state": [event.json for event in state],
        "auth_chain": [event.json for event in chain],
        "event": join.json,
        "members_omitted": False,
    }
    return json_answer({key: value for key, value in {**answer, **changes}.items() if value is not None})


def _send(room: PlayedRoom, asked: Asked) -> None:
    """Takes what is of this room; the peer itself answers."""
    for json in asked.content["pdus"]:
        if json.get("room_id") == room.room_id:
            room.add(room.parsed(json))


def _make(room: PlayedRoom, asked: Asked, membership: str) -> Answer:
    if membership != "leave" and room.version.version not in asked.query.getall("ver", ["1"]):
        return error_answer(400, "M_INCOMPATIBLE_ROOM_VERSION")
    user_id, state = asked.names["user_id"], room.state
    content: JsonObject = {"membership": membership}
    if membership == "join" and _needs_authoriser(room, user_id):
        content[AUTHORISER] = room.events[state[CREATE]].sender
    event = {
        "room_id": room.room_id,
        "type": "m.room.member",
        "sender": user_id,
        "state_key": user_id,
        "content": content,
        "prev_events": room.references(room.heads),
        "auth_events": room.references(room.auth_events(user_id, "m.room.member", content, user_id, state)),
        "depth": room.depth_after(room.heads),
        "origin_server_ts": asked.peer.clock(),
    }
    return json_answer({"room_version": room.version.version, "event": event})


def _needs_authoriser(room: PlayedRoom, user_id: str) -> bool:
    """Whether a user may come into a restricted room, because its creator lets everyone in."""
    pdus = {key: room.events[event_id] for key, event_id in room.state.items()}
    is_restricted = pdus[JOIN_RULES].content.get("join_rule") in room.version.restricted_join_rules
    member = pdus.get(("m.room.member", user_id))
    return is_restricted and (member is None or member.membership not in ("join", "invite"))


def _make_join(room: PlayedRoom, asked: Asked) -> Answer:
    return _make(room, asked, "join")


def _make_knock(room: PlayedRoom, asked: Asked) -> Answer:
    return _make(room, asked, "knock")


def _make_leave(room: PlayedRoom, asked: Asked) -> Answer:
    return _make(room, asked, "leave")


def _send_join(room: PlayedRoom, asked: Asked) -> Answer:
    json = asked.content
    if AUTHORISER in json["content"]:
        authoriser = room.peer_of(json["content"][AUTHORISER])
        json = sign_event(room.version, json, authoriser.name, authoriser.keys[0])
    join = room.add(room.parsed(json))
    state = room.before[join.event_id].values()
    answer = {
        "origin": asked.peer.name,
        "event": join.json,
        "state": _given(room, state),
        "auth_chain": _given(room, _auth_chain(room, [join.event_id, *state])),
        "members_omitted": False,
    }
    return json_answer(answer)


def _send_knock(room: PlayedRoom, asked: Asked) -> Answer:
    room.add(room.parsed(asked.content))
    return json_answer({"knock_room_state": _given(room, [room.state[CREATE], room.state[JOIN_RULES]])})


def _send_leave(room: PlayedRoom, asked: Asked) -> Answer:
    room.add(room.parsed(asked.content))
    return json_answer({})


def _invite(room: PlayedRoom, asked: Asked) -> Answer:
    signed = _co_signed(asked)
    room.add(room.parsed(signed))
    return json_answer({"event": signed})


def _event(room: PlayedRoom, asked: Asked) -> Answer:
    pdus = _given(room, [asked.names["event_id"]])
    if not pdus:
        return error_answer(404, "M_NOT_FOUND")
    return json_answer({"origin": asked.peer.name, "origin_server_ts": asked.peer.clock(), "pdus": pdus})


def _state(room: PlayedRoom, asked: Asked) -> Answer:
    event_id = EventId(asked.query["event_id"])
    if not _given(room, [event_id]):
        return error_answer(404, "M_NOT_FOUND")
    state = room.told.get(event_id, room.before[event_id]).values()
    chain = _auth_chain(room, state)
    return json_answer({"pdus": _given(room, state), "auth_chain": _given(room, chain)})


def _state_ids(room: PlayedRoom, asked: Asked) -> Answer:
    event_id = EventId(asked.query["event_id"])
    if not _given(room, [event_id]):
        return error_answer(404, "M_NOT_FOUND")
    state = list(room.told.get(event_id, room.before[event_id]).values())
    return json_answer({"pdu_ids": state, "auth_chain_ids": _auth_chain(room, state)})


def _event_auth(room: PlayedRoom, asked: Asked) -> Answer:
    event_id = EventId(asked.names["event_id"])
    if not _given(room, [event_id]):
        return error_answer(404, "M_NOT_FOUND")
    return json_answer({"auth_chain": _given(room, _auth_chain(room, [event_id]))})


def _backfill(room: PlayedRoom, asked: Asked) -> Answer:
    found = _walk(room, asked.query.getall("v"), int(asked.query["limit"]))
    pdus = _given(room, found)
    return json_answer({"origin": asked.peer.name, "origin_server_ts": asked.peer.clock(), "pdus": pdus})


def _get_missing_events(room: PlayedRoom, asked: Asked) -> Answer:
    """What lies between events, the oldest first."""
    wanted = asked.content
    known = [room.events[event_id] for event_id in wanted["latest_events"] if event_id in room.events]
    starts = [event_id for pdu in known for event_id in pdu.prev_events]
    found = _walk(room, starts, wanted.get("limit", 10), {*wanted["earliest_events"]})
    deep_enough = [
        event_id for event_id in found if room.events[event_id].depth >= wanted.get("min_depth", 0)
    ]
    return json_answer({"events": _given(room, reversed(deep_enough))})


def _walk(room: PlayedRoom, event_ids: Iterable[str], limit: int, known: Iterable[str] = ()) -> list[EventId]:
    """Events and those before them, breadth first; not `known` ones, nor what nobody is given, nor beyond."""
    found: dict[EventId, None] = {}
    to_do = [EventId(event_id) for event_id in event_ids]
    for event_id in to_do:  # grows as it is walked
        if len(found) == limit:
            break
        if event_id not in found and event_id not in known and _given(room, [event_id]):
            found[event_id] = None
            to_do += room.events[event_id].prev_events
    return list(found)


def _auth_chain(room: PlayedRoom, event_ids: Iterable[EventId]) -> list[EventId]:
    """The auth events of events, theirs and so on, in the order in which the peers learnt of them."""
    found: set[EventId] = set()
    to_do = list(event_ids)
    while to_do:
        pdu = room.events.get(to_do.pop())
        new = [] if pdu is None else [event_id for event_id in pdu.auth_events if event_id not in found]
        found.update(new)
        to_do += new
    return [event_id for event_id in room.events if event_id in found]


def _given(room: PlayedRoom, event_ids: Iterable[str]) -> list[JsonObject]:
    """What is given to one who asks for events, without those that nobody is given."""
    pdus: list[JsonObject] = []
    for event_id in map(EventId, event_ids):
        if event_id in room.events:
            json = room.handed_out.get(event_id, room.events[event_id].json)
            pdus += [] if json is None else [json]
    return pdus


_V1: Final = "/_matrix/federation/v1"
_V2: Final = "/_matrix/federation/v2"

RoomAnswer: TypeAlias = "Callable[[PlayedRoom, Asked], Answer | None]"

ENDPOINTS: Final[dict[str, tuple[str, str, RoomAnswer]]] = {
    "send": ("PUT", SEND, _send),
    "make_join": ("GET", f"{_V1}/make_join/{{room_id}}/{{user_id}}", _make_join),
    "send_join": ("PUT", f"{_V2}/send_join/{{room_id}}/{{event_id}}", _send_join),
    "make_knock": ("GET", f"{_V1}/make_knock/{{room_id}}/{{user_id}}", _make_knock),
    "send_knock": ("PUT", f"{_V1}/send_knock/{{room_id}}/{{event_id}}", _send_knock),
    "make_leave": ("GET", f"{_V1}/make_leave/{{room_id}}/{{user_id}}", _make_leave),
    "send_leave": ("PUT", f"{_V2}/send_leave/{{room_id}}/{{event_id}}", _send_leave),
    "invite": ("PUT", INVITE, _invite),
    "event": ("GET", f"{_V1}/event/{{event_id}}", _event),
    "state": ("GET", f"{_V1}/state/{{room_id}}", _state),
    "state_ids": ("GET", f"{_V1}/state_ids/{{room_id}}", _state_ids),
    "event_auth": ("GET", f"{_V1}/event_auth/{{room_id}}/{{event_id}}", _event_auth),
    "backfill": ("GET", f"{_V1}/backfill/{{room_id}}", _backfill),
    "get_missing_events": ("POST", f"{_V1}/get_missing_events/{{room_id}}", _get_missing_events),
}
"""Method, path and answer of each endpoint, by its name."""
