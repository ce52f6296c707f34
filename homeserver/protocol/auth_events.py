"""Which events of a room's state give a sender the permission to send an event.

Source: Server-Server API, "Auth events selection".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject

CREATE: Final[StateKey] = ("m.room.create", "")
POWER_LEVELS: Final[StateKey] = ("m.room.power_levels", "")
JOIN_RULES: Final[StateKey] = ("m.room.join_rules", "")

AUTHORISER: Final = "join_authorised_via_users_server"
"""The key in the content of a join that names the user through whom a restricted room was entered."""


def auth_state_keys(
    version: RoomVersion, event_type: str, sender: str, state_key: str | None, content: JsonObject
) -> list[StateKey]:
    """All keys of the state that the authorization of such an event reads, none of them twice.

    The create event is the first of them in every version, although it is no auth event from version 12.
    A create event reads nothing. Malformed content names no keys: the rules refuse it.
    """
    if event_type == "m.room.create":
        return []
    keys: list[StateKey] = [CREATE, POWER_LEVELS, ("m.room.member", sender)]
    if event_type != "m.room.member" or state_key is None:
        return keys
    if state_key != sender:
        keys.append(("m.room.member", state_key))
    membership = content.get("membership")
    if membership in ("join", "invite", "knock"):
        keys.append(JOIN_RULES)
    if membership == "invite":
        token = _third_party_token(content)
        if token is not None:
            keys.append(("m.room.third_party_invite", token))
    elif membership == "join" and version.restricted_join_rules:
        authoriser = content.get(AUTHORISER)
        if isinstance(authoriser, str) and authoriser not in (sender, state_key):
            keys.append(("m.room.member", authoriser))
    return keys


def select_auth_events(
    version: RoomVersion,
    event_type: str,
    sender: str,
    state_key: str | None,
    content: JsonObject,
    state: Mapping[StateKey, Pdu],
) -> tuple[EventId, ...]:
    """The auth_events of a new event: those of `state`, the state before it, that the selection names.

    The order is that of `auth_state_keys`.
    """
    keys = auth_state_keys(version, event_type, sender, state_key, content)
    if version.room_id_is_create_hash:
        keys = keys[1:]
    return tuple(state[key].event_id for key in keys if key in state)


def _third_party_token(content: JsonObject) -> str | None:
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    token = signed.get("token") if isinstance(signed, dict) else None
    return token if isinstance(token, str) else None
