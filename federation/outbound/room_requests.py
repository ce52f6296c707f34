"""Server-Server requests that we make about rooms and their events: one function for each endpoint.

Nothing that comes back is trusted: only its outer shape is checked here, and each event has yet to pass the
gate (PduGate). All functions raise what SignedClient.send raises; InvalidResponse where the shape is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from federation.outbound.signed_client import InvalidResponse, SignedClient, uri_of
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.strict_json import JsonObject

MAKE_TIMEOUT_S: Final = 30.0
SEND_LEAVE_TIMEOUT_S: Final = 60.0
SEND_JOIN_TIMEOUT_S: Final = 180.0
"""The resident server has to find and send the whole state of a room."""
MAX_STATE_BYTES: Final = 100 * 1024 * 1024
"""The state of a room with 50,000 members, and its auth chain."""
STATE_TIMEOUT_S: Final = 180.0
STATE_IDS_TIMEOUT_S: Final = 60.0
MAX_STATE_IDS_BYTES: Final = 32 * 1024 * 1024
EVENT_TIMEOUT_S: Final = 20.0
MAX_EVENT_BYTES: Final = 512 * 1024
"""An event has 64 KiB in canonical JSON; who writes it with escapes may need six times that."""
HISTORY_TIMEOUT_S: Final = 30.0
MAX_HISTORY_BYTES: Final = 16 * 1024 * 1024
AUTH_CHAIN_TIMEOUT_S: Final = 60.0
MAX_AUTH_CHAIN_BYTES: Final = 32 * 1024 * 1024
INVITE_TIMEOUT_S: Final = 30.0
TRANSACTION_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """What a resident server says when it has taken a join; the entries of the lists may be anything."""

    state: Sequence[Any]
    """The state before the join."""
    auth_chain: Sequence[Any]
    event: JsonObject | None
    """The join itself, which the resident server may have signed too."""


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """The state before an event, and the auth chains of it; the entries may be anything."""

    pdus: Sequence[Any]
    auth_chain: Sequence[Any]


@dataclass(frozen=True, slots=True)
class StateIdsAnswer:
    """The IDs of the state before an event, and of its auth chains: texts of any form."""

    pdu_ids: Sequence[str]
    auth_chain_ids: Sequence[str]


async def make_join(
    client: SignedClient,
    destination: ServerName,
    room_id: RoomId,
    user_id: UserId,
    *,
    timeout_s: float = MAKE_TIMEOUT_S,
) -> JsonObject:
    """A template for the join of one of our users, into a room of any version that we speak.

    Source: Server-Server API, GET /_matrix/federation/v1/make_join/{roomId}/{userId}.
    """
    uri = uri_of("/_matrix/federation/v1/make_join", room_id, user_id, query={"ver": list(ROOM_VERSIONS)})
    return await _template(client, destination, uri, timeout_s)


async def send_join_v2(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId, event: orjson.Fragment
) -> JoinAnswer:
    """Hand over a signed join. All members are asked for: an answer that leaves some out has the wrong shape.

    Source: Server-Server API, PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}.
    """
    uri = uri_of("/_matrix/federation/v2/send_join", room_id, event_id)
    answer = await _hand_over(client, destination, uri, event, SEND_JOIN_TIMEOUT_S, MAX_STATE_BYTES)
    if answer.get("members_omitted", False) is not False:
        raise InvalidResponse(destination, "members are left out that were asked for")
    signed = answer.get("event")
    return JoinAnswer(
        _list(destination, answer, "state"),
        _list(destination, answer, "auth_chain"),
        signed if isinstance(signed, dict) else None,
    )


async def make_leave(
    client: SignedClient, destination: ServerName, room_id: RoomId, user_id: UserId
) -> JsonObject:
    """A template for one of our users who leaves a room that we are not in: rejects an invite, say.

    Source: Server-Server API, GET /_matrix/federation/v1/make_leave/{roomId}/{userId}.
    """
    uri = uri_of("/_matrix/federation/v1/make_leave", room_id, user_id)
    return await _template(client, destination, uri, MAKE_TIMEOUT_S)


async def send_leave_v2(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId, event: orjson.Fragment
) -> None:
    """Hand over a signed leave.

    Source: Server-Server API, PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}.
    """
    uri = uri_of("/_matrix/federation/v2/send_leave", room_id, event_id)
    await _hand_over(client, destination, uri, event, SEND_LEAVE_TIMEOUT_S, MAX_EVENT_BYTES)


async def send_invite_v2(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId, content: JsonObject
) -> JsonObject:
    """Invite a user of another server; the event as that server has signed it.

    `content`: room_version, event and invite_room_state. Servers that know nothing but the first version of
    this endpoint are not asked again by it.
    Source: Server-Server API, PUT /_matrix/federation/v2/invite/{roomId}/{eventId}.
    """
    uri = uri_of("/_matrix/federation/v2/invite", room_id, event_id)
    answer = await _hand_over(client, destination, uri, content, INVITE_TIMEOUT_S, MAX_EVENT_BYTES)
    event = answer.get("event")
    if not isinstance(event, dict):
        raise InvalidResponse(destination, "event is no object")
    return event


async def get_event(client: SignedClient, destination: ServerName, event_id: EventId) -> Any:
    """One event, as it came: any JSON value.

    Source: Server-Server API, GET /_matrix/federation/v1/event/{eventId}.
    """
    uri = uri_of("/_matrix/federation/v1/event", event_id)
    answer = await _get(client, destination, uri, EVENT_TIMEOUT_S, MAX_EVENT_BYTES)
    match _list(destination, answer, "pdus"):
        case [event]:
            return event
        case _:
            raise InvalidResponse(destination, "pdus is not one event")


async def get_room_state(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId
) -> StateAnswer:
    """The whole state before an event.

    Source: Server-Server API, GET /_matrix/federation/v1/state/{roomId}.
    """
    uri = uri_of("/_matrix/federation/v1/state", room_id, query={"event_id": event_id})
    answer = await _get(client, destination, uri, STATE_TIMEOUT_S, MAX_STATE_BYTES)
    return StateAnswer(_list(destination, answer, "pdus"), _list(destination, answer, "auth_chain"))


async def get_room_state_ids(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId
) -> StateIdsAnswer:
    """The IDs of the state before an event.

    Source: Server-Server API, GET /_matrix/federation/v1/state_ids/{roomId}.
    """
    uri = uri_of("/_matrix/federation/v1/state_ids", room_id, query={"event_id": event_id})
    answer = await _get(client, destination, uri, STATE_IDS_TIMEOUT_S, MAX_STATE_IDS_BYTES)
    return StateIdsAnswer(
        _texts(destination, answer, "pdu_ids"), _texts(destination, answer, "auth_chain_ids")
    )


async def get_event_auth(
    client: SignedClient, destination: ServerName, room_id: RoomId, event_id: EventId
) -> Sequence[Any]:
    """The auth chain of an event.

    Source: Server-Server API, GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}.
    """
    uri = uri_of("/_matrix/federation/v1/event_auth", room_id, event_id)
    answer = await _get(client, destination, uri, AUTH_CHAIN_TIMEOUT_S, MAX_AUTH_CHAIN_BYTES)
    return _list(destination, answer, "auth_chain")


async def backfill_room(
    client: SignedClient,
    destination: ServerName,
    room_id: RoomId,
    event_ids: Collection[EventId],
    limit: int,
) -> Sequence[Any]:
    """Some events and what came before them, at most `limit`.

    Source: Server-Server API, GET /_matrix/federation/v1/backfill/{roomId}.
    """
    query: dict[str, str | list[str]] = {"v": list(event_ids), "limit": str(limit)}
    uri = uri_of("/_matrix/federation/v1/backfill", room_id, query=query)
    answer = await _get(client, destination, uri, HISTORY_TIMEOUT_S, MAX_HISTORY_BYTES)
    return _list(destination, answer, "pdus", absent_is_empty=True)


async def get_missing_previous_events(
    client: SignedClient,
    destination: ServerName,
    room_id: RoomId,
    *,
    earliest_events: Collection[EventId],
    latest_events: Collection[EventId],
    limit: int,
    min_depth: int = 0,
) -> Sequence[Any]:
    """The events between those that we have and some that came, at most `limit`, the oldest first.

    Source: Server-Server API, POST /_matrix/federation/v1/get_missing_events/{roomId}.
    """
    content: JsonObject = {
        "earliest_events": list(earliest_events),
        "latest_events": list(latest_events),
        "limit": limit,
        "min_depth": min_depth,
    }
    answer = await client.send(
        "POST",
        destination,
        uri_of("/_matrix/federation/v1/get_missing_events", room_id),
        content,
        timeout_s=HISTORY_TIMEOUT_S,
        max_response_bytes=MAX_HISTORY_BYTES,
    )
    return _list(destination, answer, "events", absent_is_empty=True)


async def send_transaction(
    client: SignedClient, destination: ServerName, txn_id: str, content: JsonObject
) -> Mapping[str, Any]:
    """Send what a server is owed; what it says of each event, by event ID: an object, with `error` or not.

    `content` is sent as canonical JSON; parts of it that are canonical JSON already may stand there as
    orjson.Fragment. Source: Server-Server API, PUT /_matrix/federation/v1/send/{txnId}.
    """
    answer = await client.send(
        "PUT",
        destination,
        uri_of("/_matrix/federation/v1/send", txn_id),
        content,
        timeout_s=TRANSACTION_TIMEOUT_S,
        must_accept=True,
    )
    pdus = answer.get("pdus", {})
    if not isinstance(pdus, dict):
        raise InvalidResponse(destination, "pdus is no object")
    return pdus


async def _get(
    client: SignedClient, destination: ServerName, uri: str, timeout_s: float, max_response_bytes: int
) -> JsonObject:
    return await client.send(
        "GET", destination, uri, timeout_s=timeout_s, max_response_bytes=max_response_bytes
    )


async def _template(client: SignedClient, destination: ServerName, uri: str, timeout_s: float) -> JsonObject:
    """Ask for a template, whether the server failed lately or not: a user waits for it."""
    return await client.send(
        "GET",
        destination,
        uri,
        timeout_s=timeout_s,
        max_response_bytes=MAX_EVENT_BYTES,
        ignore_back_off=True,
    )


async def _hand_over(
    client: SignedClient,
    destination: ServerName,
    uri: str,
    content: JsonObject | orjson.Fragment,
    timeout_s: float,
    max_response_bytes: int,
) -> JsonObject:
    """Hand over a membership that a user waits for, whether the server failed lately or not."""
    return await client.send(
        "PUT",
        destination,
        uri,
        content,
        timeout_s=timeout_s,
        max_response_bytes=max_response_bytes,
        ignore_back_off=True,
    )


def _list(
    destination: ServerName, answer: JsonObject, key: str, *, absent_is_empty: bool = False
) -> Sequence[Any]:
    found = answer.get(key, [] if absent_is_empty else None)
    if not isinstance(found, list):
        raise InvalidResponse(destination, f"{key} is no list")
    return found


def _texts(destination: ServerName, answer: JsonObject, key: str) -> Sequence[str]:
    found = _list(destination, answer, key)
    if not all(isinstance(text, str) for text in found):
        raise InvalidResponse(destination, f"{key} holds what is no string")
    return found
