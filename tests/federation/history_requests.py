"""What peers ask about rooms of a server of ours, and how they read the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from federation.outbound.signed_client import uri_of
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.event_hashes import event_id_of
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.signing import ServerKeys, VerifyKey
from homeserver.protocol.strict_json import JsonObject
from tests.federation.homeservers import ask, name_of
from tests.federation.peers import Peer
from tests.servers import RunningServer

V1 = "/_matrix/federation/v1"


def event_uri(event_id: str) -> str:
    return uri_of(f"{V1}/event", event_id)


def state_uri(room_id: str, event_id: str, *, ids: bool = False) -> str:
    return uri_of(f"{V1}/state_ids" if ids else f"{V1}/state", room_id, query={"event_id": event_id})


def auth_uri(room_id: str, event_id: str) -> str:
    return uri_of(f"{V1}/event_auth", room_id, event_id)


def backfill_uri(room_id: str, event_ids: Sequence[str], limit: int = 100) -> str:
    query = urlencode([*(("v", event_id) for event_id in event_ids), ("limit", str(limit))])
    return f"{uri_of(f'{V1}/backfill', room_id)}?{query}"


def missing_uri(room_id: str) -> str:
    return uri_of(f"{V1}/get_missing_events", room_id)


async def get(server: RunningServer, peer: Peer, uri: str, content: JsonObject | None = None) -> Any:
    """The JSON of an answer that has to come."""
    answer = await ask(server, peer, uri, content)
    assert answer.status == 200, answer.body
    return answer.body


def ids_of(events: Sequence[JsonObject], version: str = "12") -> list[str]:
    return [event_id_of(room_version(version), event) for event in events]


def keys_of(here: RunningServer, *peers: Peer) -> dict[ServerName, ServerKeys]:
    """The keys of our server and of peers."""
    of_peers = {
        peer.name: {key.key_id: VerifyKey(key.public_key, MAX_INTEGER) for key in peer.keys} for peer in peers
    }
    return {name_of(here): here.services.server_keys.own.verify_keys, **of_peers}
