"""Aliases, profiles and directories of all servers: ours from here, those of others by asking them.

What another server answers is checked; nothing of it is stored. The services that this one stands on know
only what is ours, so what other servers ask us never makes us ask a third one.
Source: Server-Server API, "Querying for information", "Published Room Directory".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from federation.outbound import requests
from federation.outbound.signed_client import FederationError, InvalidResponse, SignedClient
from homeserver.errors import InvalidParam, MatrixError, NotFound
from homeserver.protocol.canonical_json import MAX_INTEGER, canonical_json
from homeserver.protocol.errors import BadJson, InvalidIdentifier
from homeserver.protocol.identifiers import (
    RoomAlias,
    RoomId,
    ServerName,
    UserId,
    parse_room_id,
    parse_server_name,
    server_name_of,
)
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.directory_entries import PublicRoom
from homeserver.services.federation_failures import failure_answer
from homeserver.services.profile_changes import MAX_CHARS
from homeserver.services.profiles import Profiles, check_key
from homeserver.services.public_rooms import DirectoryPage, DirectoryQuery, PublicRooms
from homeserver.services.room_directory import MAX_SERVERS, AliasTarget, RoomDirectory

MAX_TOKEN_CHARS: Final = 2000
"""How long a place in the directory of another server is, as it names it."""


@dataclass(frozen=True)
class Lookups:
    """Looks up what any server publishes.

    Of what another server has to say, all raise Forbidden where it refuses or we do not talk to it, and
    BadGateway where it cannot be reached or its answer cannot be used.
    """

    client: SignedClient
    server_name: ServerName
    room_directory: RoomDirectory
    profiles: Profiles
    public_rooms: PublicRooms

    async def alias(self, alias: RoomAlias) -> AliasTarget:
        """What an alias stands for. Raises NotFound for one that does not exist."""
        server_name = server_name_of(alias)
        if server_name == self.server_name:
            return await self.room_directory.find(alias)
        try:
            answer = await requests.query_room_directory(self.client, server_name, alias)
            return _alias_target(server_name, answer)
        except FederationError as error:
            raise failure_answer(error, missing=f"there is no room alias {alias}") from None

    async def profile(self, user_id: UserId) -> JsonObject:
        """All fields of a profile that are set. Raises NotFound for a user who does not exist."""
        if server_name_of(user_id) == self.server_name:
            return await self.profiles.of(user_id)
        return await self._profile_elsewhere(user_id, None)

    async def profile_field(self, user_id: UserId, key: str) -> Any:
        """The value of a profile field: any JSON value, but a text for the fields that are texts.

        Raises NotFound for one that is not set, InvalidParam or KeyTooLarge for what cannot be a field.
        """
        if server_name_of(user_id) == self.server_name:
            return await self.profiles.field(user_id, key)
        check_key(key)
        profile = await self._profile_elsewhere(user_id, key)
        if key not in profile:
            raise NotFound(f"{user_id} has no {key}")
        return profile[key]

    async def directory(self, server_name: ServerName | None, query: DirectoryQuery) -> DirectoryPage:
        """A part of a server's directory, of ours for None.

        Raises InvalidParam for a `since` that is no token, NotFound for a server without a directory.
        """
        if server_name is None or server_name == self.server_name:
            return await self.public_rooms.page(query)
        if query.since is not None and len(query.since) > MAX_TOKEN_CHARS:
            raise InvalidParam(
                f"since has more than {MAX_TOKEN_CHARS} characters: take next_batch or prev_batch"
            )
        try:
            answer = await requests.query_public_rooms(self.client, server_name, _directory_request(query))
            return _directory_page(server_name, answer, query.most_rooms)
        except FederationError as error:
            raise failure_answer(error, missing=f"{server_name} has no directory") from None

    async def _profile_elsewhere(self, user_id: UserId, field: str | None) -> JsonObject:
        try:
            answer = await requests.query_profile(self.client, server_name_of(user_id), user_id, field)
        except FederationError as error:
            raise failure_answer(error, missing=f"{user_id} has no profile, or not this field") from None
        return {key: value for key, value in answer.items() if _is_set(key, value)}


def _alias_target(server_name: ServerName, answer: JsonObject) -> AliasTarget:
    """What a server says of one of its aliases; it counts as in the room where it names nobody."""
    room_id, servers = answer.get("room_id"), answer.get("servers")
    if not isinstance(servers, list):
        raise InvalidResponse(server_name, "servers is no list")
    return AliasTarget(_room_id(server_name, room_id), _server_names(servers) or [server_name])


def _room_id(server_name: ServerName, value: object) -> RoomId:
    if isinstance(value, str):
        try:
            return parse_room_id(value)
        except InvalidIdentifier:
            pass
    raise InvalidResponse(server_name, "room_id is no room ID")


def _server_names(values: Sequence[object]) -> list[ServerName]:
    """The first server names of a list, each once; what is none is left out."""
    names: dict[ServerName, None] = {}
    for value in values[:MAX_SERVERS]:
        if isinstance(value, str):
            try:
                names[parse_server_name(value)] = None
            except InvalidIdentifier:
                continue
    return list(names)


def _is_set(key: str, value: Any) -> bool:
    """Whether a server says something of a field with this; null says that it is not set."""
    if value is None or (key in MAX_CHARS and not isinstance(value, str)):
        return False
    try:
        check_key(key)
        canonical_json({key: value})  # of a number beyond 64 bits no answer can be made
    except (MatrixError, BadJson):
        return False
    return True


def _directory_request(query: DirectoryQuery) -> JsonObject:
    """The body of a request for a part of a directory."""
    wanted: JsonObject = {"generic_search_term": query.search_term, "room_types": query.room_types}
    content: JsonObject = {
        "limit": query.most_rooms,
        "since": query.since,
        "filter": _without_none(wanted) or None,
        "include_all_networks": query.all_networks or None,
        "third_party_instance_id": query.third_party_network,
    }
    return _without_none(content)


def _without_none(value: JsonObject) -> JsonObject:
    return {key: item for key, item in value.items() if item is not None}


def _directory_page(server_name: ServerName, answer: JsonObject, most_rooms: int) -> DirectoryPage:
    """A part of a directory as its server tells it; entries that are malformed are left out."""
    chunk, estimate = answer.get("chunk"), answer.get("total_room_count_estimate")
    if not isinstance(chunk, list):
        raise InvalidResponse(server_name, "chunk is no list")
    entries = (PublicRoom.parse(entry) for entry in chunk[:most_rooms])
    return DirectoryPage(
        [entry for entry in entries if entry is not None],
        _token(answer.get("next_batch")),
        _token(answer.get("prev_batch")),
        estimate if type(estimate) is int and 0 <= estimate <= MAX_INTEGER else None,
    )


def _token(value: object) -> str | None:
    """A place in a directory, if it may be asked for again."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARS else None
