"""Server-Server API, section "Querying for information": what aliases stand for, and profiles."""

from __future__ import annotations

from federation.inbound.authentication import Origin
from federation.inbound.endpoints import federation_endpoints
from homeserver.errors import Unrecognized
from homeserver.http.models import Path, Query, RawReply, RoomAliasField, UserIdField
from homeserver.services import Services

endpoints = federation_endpoints()


class DirectoryQuestion(Query):
    """Which alias is asked for."""

    room_alias: RoomAliasField


class ProfileQuestion(Query):
    """Whose profile is asked for; `field` for one field of it."""

    user_id: UserIdField
    field: str | None = None


class QueryPath(Path):
    """A kind of question."""

    query_type: str


@endpoints.get("/_matrix/federation/v1/query/directory", rate_limit="lookup")
async def query_room_directory(services: Services, origin: Origin, query: DirectoryQuestion) -> RawReply:
    """Tell which room an alias of this server points to; those of other servers are unknown here."""
    target = await services.room_directory.find(query.room_alias)
    return RawReply.json({"room_id": target.room_id, "servers": target.servers})


@endpoints.get("/_matrix/federation/v1/query/profile", rate_limit="lookup")
async def query_profile(services: Services, origin: Origin, query: ProfileQuestion) -> RawReply:
    """Tell the profile of a user of this server; users of other servers are unknown here.

    A field that is not set is left out, also where it is the only one asked for.
    """
    profile = await services.profiles.of(query.user_id)
    if query.field is not None:
        profile = {query.field: profile[query.field]} if query.field in profile else {}
    return RawReply.json(profile)


@endpoints.get("/_matrix/federation/v1/query/{queryType}")
async def query_info(origin: Origin, path: QueryPath) -> RawReply:
    """Refuse a question of a kind that the specification does not have."""
    raise Unrecognized("there is no query of this type: there are directory and profile")
