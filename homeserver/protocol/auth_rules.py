"""Whether an event is allowed, given the events that give its sender the permission.

Source: "Authorization rules" of each room version. Rule numbers in the code are those of version 11; where a
version numbers a rule otherwise, its RoomVersion knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey, has_oversized_text
from homeserver.protocol.identifiers import EventId, is_user_id, server_in
from homeserver.protocol.membership_rules import check_membership, membership_of
from homeserver.protocol.power_levels import PowerLevels, check_power_levels
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion


def check_auth(version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu]) -> str:
    """Check an event against a state: of its auth events, before it, or of now.

    `state` holds what `auth_state_keys` names; a key that is absent means that there is no such event. Its
    events are accepted ones of the event's room. Signatures, and the event's list of auth events
    (`check_auth_events`), are checked elsewhere. Returns the number, on its version's page, of the rule that
    allows the event. Raises NotAllowed with that of the rule that refuses it, and nothing else whatever the
    content.
    """
    if not version.strict_byte_limits and has_oversized_text(event):
        raise NotAllowed("size limits", "the type or the state key has more than 255 bytes")
    if event.type == "m.room.create":
        return _check_create(version, event)
    create = _create_of_room(version, event, state)
    if create.content.get("m.federate") is False and server_in(event.sender) != server_in(create.sender):
        raise NotAllowed(
            version.rule("3"),
            f"the room is for users of {server_in(create.sender)} only, not for {event.sender}",
        )
    if event.type == "m.room.aliases" and version.aliases_of_servers:
        if event.state_key is None:
            raise NotAllowed("4.1", "an aliases event needs a state_key")
        if event.state_key != server_in(event.sender):
            raise NotAllowed("4.2", f"{event.sender} cannot set the aliases of {event.state_key}")
        return "4.3"
    if event.type == "m.room.member":
        return check_membership(version, event, state)
    if membership_of(state, event.sender) != "join":
        raise NotAllowed(version.rule("5"), f"{event.sender} is not joined")
    previous = state.get(POWER_LEVELS)
    levels = PowerLevels.of(version, create, previous)
    level = levels.user_level(event.sender)
    if event.type == "m.room.third_party_invite":
        if level < levels.invite:
            raise NotAllowed(
                version.rule("6.1"), f"{event.sender} has level {level}, and inviting takes {levels.invite}"
            )
        return version.rule("6.1")
    required = levels.level_for_event(event.type, event.state_key is not None)
    if required > level:
        raise NotAllowed(
            version.rule("7"), f"{event.sender} has level {level}, and {event.type} takes {required}"
        )
    if event.state_key is not None and event.state_key.startswith("@") and event.state_key != event.sender:
        raise NotAllowed(version.rule("8"), f"the state key {event.state_key} is not {event.sender}'s own")
    if event.type == "m.room.power_levels":
        return check_power_levels(version, event, create, previous)
    if event.type == "m.room.redaction" and version.redactions_need_power:
        return _check_redaction(event, levels)
    return version.rule("10")


def check_auth_events(
    version: RoomVersion, event: Pdu, auth_events: Sequence[Pdu], rejected: Collection[EventId]
) -> None:
    """Check that the events which an event names as its auth events are such as it may name.

    For any event but a create event: the rule on these comes first and leaves nothing to decide.
    `auth_events`: the events that event.auth_events names. `rejected`: those among them that were rejected.
    An auth event that it should name and does not leaves the decision to `check_auth`; only the create
    event must be there up to version 11. Raises NotAllowed.
    """
    selected = auth_state_keys(version, event.type, event.sender, event.state_key, event.content)
    if version.room_id_is_create_hash:
        selected = selected[1:]
    seen: set[tuple[str, str | None]] = set()
    for auth_event in auth_events:
        key = (auth_event.type, auth_event.state_key)
        if key in seen:
            raise NotAllowed(version.rule("2.1"), f"two of the auth events are {key}")
        seen.add(key)
    for auth_event in auth_events:
        if auth_event.state_key is None or auth_event.key not in selected:
            raise NotAllowed(
                version.rule("2.2"),
                f"{auth_event.event_id} cannot be an auth event: it is a {auth_event.type}",
            )
    for auth_event in auth_events:
        if auth_event.event_id in rejected:
            raise NotAllowed(version.rule("2.3"), f"the auth event {auth_event.event_id} was rejected")
    if CREATE in selected and CREATE not in seen:
        raise NotAllowed(version.rule("2.4"), "the create event is not among the auth events")
    for auth_event in auth_events:
        if auth_event.room_id != event.room_id:
            raise NotAllowed(
                version.rule("2.5"),
                f"the auth event {auth_event.event_id} is of the room {auth_event.room_id}",
            )


def check_against_auth_events(
    version: RoomVersion,
    event: Pdu,
    auth_events: Sequence[Pdu],
    rejected: Collection[EventId],
    create: Pdu | None,
) -> str:
    """Check an event against all that it names as its auth events: the list, and what it allows.

    `create`: the room's create event, as far as it is known. Where the room ID is made of it, no event names
    it, but it counts all the same. A create event is judged without any of them. Returns the number of the
    rule that allows the event, raises NotAllowed.
    """
    state = {one.key: one for one in auth_events if one.state_key is not None}
    if version.room_id_is_create_hash and create is not None:
        state[CREATE] = create
    if event.type != "m.room.create":
        if version.room_id_is_create_hash:  # the rule on the room ID comes before that on the list
            _create_of_room(version, event, state)
        check_auth_events(version, event, auth_events, rejected)
    return check_auth(version, event, state)


def why_refused(version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu]) -> str | None:
    """Why a state does not allow an event, as `check_auth` has it; None where it does."""
    try:
        check_auth(version, event, state)
    except NotAllowed as error:
        return str(error)
    return None


def why_refused_by_auth_events(
    version: RoomVersion,
    event: Pdu,
    auth_events: Sequence[Pdu],
    rejected: Collection[EventId],
    create: Pdu | None,
) -> str | None:
    """Why its own auth events do not allow an event, as `check_against_auth_events` has it."""
    try:
        check_against_auth_events(version, event, auth_events, rejected, create)
    except NotAllowed as error:
        return str(error)
    return None


def _check_create(version: RoomVersion, event: Pdu) -> str:
    if event.prev_events:
        raise NotAllowed(version.rule("1.1"), "a create event comes first, and this one has prev_events")
    if version.room_id_is_create_hash:
        if "room_id" in event.json:
            raise NotAllowed("1.2", "a create event has no room_id")
    elif server_in(event.room_id) != server_in(event.sender):
        raise NotAllowed(
            version.rule("1.2"), f"{event.room_id} is not a room ID of the server of {event.sender}"
        )
    named = event.content.get("room_version", "1")
    if not isinstance(named, str) or named not in ROOM_VERSIONS:
        raise NotAllowed(version.rule("1.3"), f"room_version is {named!r:.100}, which is not known here")
    if version.creator_in_content and "creator" not in event.content:
        raise NotAllowed("1.4", "the create event names no creator")
    if version.privileged_creators and "additional_creators" in event.content:
        additional = event.content["additional_creators"]
        if not isinstance(additional, list):
            raise NotAllowed("1.4", "additional_creators is not an array")
        for user_id in additional:
            if not is_user_id(user_id):
                raise NotAllowed("1.4", f"additional_creators names {user_id!r:.100}, which is not a user ID")
    return version.rule("1.4")


def _check_redaction(event: Pdu, levels: PowerLevels) -> str:
    """Up to version 2 a redaction is refused unless it takes effect."""
    if levels.can_redact_others(event.sender):
        return "11.1"
    redacts = event.json.get("redacts")
    if not isinstance(redacts, str) or server_in(redacts) != server_in(event.event_id):
        raise NotAllowed(
            "11.3",
            f"{event.sender} has level {levels.user_level(event.sender)}, redacting takes {levels.redact}, "
            f"and {redacts!r:.100} is of another server",
        )
    return "11.2"


def _create_of_room(version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu]) -> Pdu:
    """The create event in the state, which must be that of the event's room."""
    create = state.get(CREATE)
    if version.room_id_is_create_hash:
        if create is None or event.room_id != f"!{create.event_id[1:]}":
            raise NotAllowed("2", f"no accepted create event makes the room {event.room_id}")
    elif create is None:
        raise NotAllowed(version.rule("2.4"), "there is no create event")
    elif create.room_id != event.room_id:
        raise NotAllowed(version.rule("2.5"), f"the create event is of the room {create.room_id}")
    return create
