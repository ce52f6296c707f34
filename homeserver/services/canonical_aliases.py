"""m.room.canonical_alias: the aliases that a room itself names.

Source: Client-Server API, "m.room.canonical_alias", "PUT /rooms/{roomId}/state/{eventType}/{stateKey}".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from homeserver.errors import BadAlias, InvalidParam
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import RoomAlias, RoomId, parse_room_alias
from homeserver.protocol.strict_json import JsonObject
from storage import room_aliases
from storage.database import Database
from storage.room_heads import RoomHead

CANONICAL_ALIAS: Final = "m.room.canonical_alias"

HeadCheck: TypeAlias = Callable[[RoomHead], None]
"""A part of a decision: raises a MatrixError for a head on which the change is refused."""


def no_check(_head: RoomHead) -> None:
    """What is changed needs no check beside the authorization rules."""


async def alias_check(database: Database, room_id: RoomId, draft: EventDraft) -> HeadCheck:
    """What a change of a room's state has to pass; all pass that do not say what the room's aliases are.

    An alias that the room names already is not checked again. Raises InvalidParam for what is no alias; the
    check that is returned raises BadAlias for one that does not point to the room.
    """
    if (draft.type, draft.state_key) != (CANONICAL_ALIAS, ""):
        return no_check
    named = _parse_aliases(draft.content)
    async with database.connection() as tx:
        rooms = await room_aliases.rooms_of(tx, named)
    wrong = [alias for alias in named if rooms.get(alias) != room_id]

    def check(head: RoomHead) -> None:
        current = head.event(CANONICAL_ALIAS)
        known = set() if current is None else aliases_of(current.content)
        for alias in wrong:
            if alias not in known:
                raise BadAlias(f"{alias} does not point to this room")

    return check if wrong else no_check


def check_aliases_of_new_room(draft: EventDraft, own: RoomAlias | None) -> None:
    """Refuse aliases in the initial state of a room but for the one that the room is made with.

    Raises InvalidParam for what is no alias, BadAlias for another one: none can point to the room yet.
    """
    if (draft.type, draft.state_key) == (CANONICAL_ALIAS, ""):
        for alias in _parse_aliases(draft.content):
            if alias != own:
                raise BadAlias(f"{alias} does not point to this room")


def aliases_of(content: JsonObject) -> set[str]:
    """The texts that stand where a room names its aliases, of content that nobody may have checked."""
    alternatives = content.get("alt_aliases")
    values = [content.get("alias"), *(alternatives if isinstance(alternatives, list) else ())]
    return {value for value in values if isinstance(value, str)}


def without_alias(content: JsonObject, alias: RoomAlias) -> JsonObject:
    """The content that names an alias no more; a key with nothing left in it goes."""
    left: JsonObject = {key: value for key, value in content.items() if key != "alt_aliases"}
    if left.get("alias") == alias:
        del left["alias"]
    alternatives = content.get("alt_aliases")
    if isinstance(alternatives, list):
        alternatives = [alternative for alternative in alternatives if alternative != alias]
    if alternatives:
        left["alt_aliases"] = alternatives
    return left


def _parse_aliases(content: JsonObject) -> list[RoomAlias]:
    """The aliases that new content names. Raises InvalidParam."""
    alternatives = content.get("alt_aliases")
    if not isinstance(alternatives, list | None):
        raise InvalidParam("alt_aliases is a list of room aliases")
    named = list(alternatives or ())
    if content.get("alias") not in (None, ""):
        named.append(content["alias"])
    if not all(isinstance(alias, str) for alias in named):
        raise InvalidParam("a room alias is a string")
    try:
        return [parse_room_alias(alias) for alias in named]
    except InvalidIdentifier as error:
        raise InvalidParam(str(error)) from None
