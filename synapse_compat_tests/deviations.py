"""Where Synapse does not do what the specification says, and the specification wins.

Each deviation is one situation, told so exactly that nothing else passes for it: where it can be computed, a
difference is a deviation only if our core comes to Synapse's answer once it deviates in just that way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from homeserver.protocol.auth_events import AUTHORISER, CREATE, POWER_LEVELS
from homeserver.protocol.auth_rules import why_refused
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, create_event_id, is_user_id, server_in
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import AuthGraph, find_conflicts, resolve_conflicts
from homeserver.protocol.strict_json import JsonObject
from synapse_compat_tests.core_cases import Answer, Merge
from synapse_compat_tests.our_core import OurRoom


@dataclass(frozen=True)
class Deviation:
    """What Synapse does, and what the specification says."""

    name: str
    synapse: str
    specification: str


UNHASHED_KEYS: Final = Deviation(
    "unhashed keys",
    "leaves age_ts, outlier and destinations out of the content hash",
    'only unsigned, signatures and hashes: Server-Server API, "Calculating the content hash for an event"',
)
SHALLOW_ONLY: Final = Deviation(
    "shallow only",
    "refuses events with a depth above 2^53 - 1 in all versions",
    'up to version 5 depth may be as great as 2^63 - 1: Room Version 1, "Event format"',
)
UNFEDERATED_TARGET: Final = Deviation(
    "unfederated target",
    "refuses memberships of users of other servers where m.federate is false, whoever sends them",
    'only the domain of the sender counts: Room Version 11, "Authorization rules", rule 3',
)
LAX_USER_IDS: Final = Deviation(
    "lax user IDs",
    "takes all with an @ and a colon for user IDs, and as who authorised a join also what has a colon only",
    'keys of users, and who authorised, are user IDs: Room Version 11, "Authorization rules", 9.3 and 4.2',
)
AUTHORISER_OF_JOINS_ONLY: Final = Deviation(
    "authoriser of joins only",
    "looks at join_authorised_via_users_server in joins only",
    'its server must have signed, whatever the membership: Room Version 8, "Authorization rules", rule 4.2',
)
UNCONFLICTED_LEFT_OUT: Final = Deviation(
    "unconflicted left out",
    "never takes an event that is in all states into the auth difference",
    'every event that is not in every auth chain: Room Version 2, "Definitions", "Auth difference"',
)
CREATE_NAMED: Final = Deviation(
    "create named",
    "resolves as if every event named the create event as an auth event, where none may",
    'paths go along auth_events, which lead to no create event: Room Version 12, "Conflicted state subgraph"',
)
LEVELS_BY_PYTHON: Final = Deviation(
    "levels by Python",
    "reads levels by Python's int, which takes true, 5_0 and other digits, and fails on all else",
    'integers and strings of them: Room Version 1, "m.room.power_levels events accept values as strings"',
)
REDACTS_NOTHING: Final = Deviation(
    "redacts nothing",
    "lets those without the power pass a redaction that names no event",
    'no domain is the same as that of no event: Room Version 1, "Authorization rules", rule 11',
)
DEVIATIONS: Final = (
    *(UNHASHED_KEYS, SHALLOW_ONLY, UNFEDERATED_TARGET, LAX_USER_IDS, UNCONFLICTED_LEFT_OUT, CREATE_NAMED),
    *(AUTHORISER_OF_JOINS_ONLY, LEVELS_BY_PYTHON, REDACTS_NOTHING),
)

UNHASHED: Final = ("age_ts", "outlier", "destinations")
"""The keys that Synapse does not hash."""
LEVEL_KEYS: Final = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")

_KEY_LENGTH: Final = 43
_LEVEL_IN_A_STRING: Final = re.compile(r"\s*[+-]?[0-9]+\s*\Z")


def deviations_in_event(room: OurRoom, event: JsonObject, synapses: Answer) -> tuple[Deviation, ...]:
    """Why Synapse describes an event otherwise."""
    if "refused" in synapses:
        is_deep = MAX_INTEGER < event["depth"] < 2**63
        return (SHALLOW_ONLY,) if int(room.version.version) < 6 and is_deep else ()
    hashed = {key: value for key, value in event.items() if key not in UNHASHED}
    content_hash = room.describe(hashed).get("content_hash")
    if len(hashed) < len(event) and synapses == {**room.describe(event), "content_hash": content_hash}:
        return (UNHASHED_KEYS,)
    return ()


def deviations_in_verdict(
    version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu], *, allowed: bool
) -> tuple[Deviation, ...]:
    """Why Synapse's verdict on an event in a state is the other one than ours, which is `allowed`."""
    if not allowed and why_refused(version, _without_lax_user_ids(event), state) is None:
        return (LAX_USER_IDS,)
    if _has_malformed_levels(version, event):
        return _deviations_in_levels(version, event, state, allowed=allowed)
    if allowed:
        return (UNFEDERATED_TARGET,) if _has_unfederated_target(event, state) else ()
    if event.membership != "join" and why_refused(version, _without_authoriser(event), state) is None:
        return (AUTHORISER_OF_JOINS_ONLY,)
    if _redacts_nothing(version, event) and str(why_refused(version, event, state)).endswith("(rule 11.3)"):
        return (REDACTS_NOTHING,)
    return ()


def fails_synapse(version: RoomVersion, event: Pdu) -> bool:
    """Whether Synapse fails as soon as the rules read this event in a state, although they may let it pass.

    A state with such an event is nothing that two servers could be compared by.
    """
    return _has_malformed_levels(version, event) or _has_malformed_keys(event)


def deviations_in_resolution(room: OurRoom, state_sets: Merge, synapses: Answer) -> tuple[Deviation, ...]:
    """Why Synapse resolves some states to another one; nothing where that is not known."""
    states = [room.state_map(state) for state in state_sets]
    for deviations in ((UNCONFLICTED_LEFT_OUT,), (CREATE_NAMED,), (UNCONFLICTED_LEFT_OUT, CREATE_NAMED)):
        if room.version.room_id_is_create_hash or CREATE_NAMED not in deviations:
            resolved = resolve_deviating(room.version, states, room.events, room.rejected, deviations)
            if synapses == {"state": sorted(resolved.values())}:
                return deviations
    return ()


def _has_malformed_levels(version: RoomVersion, event: Pdu) -> bool:
    """Whether these are power levels whose meaning is nowhere told; version 10 refuses them."""
    number = int(version.version)
    if event.type != "m.room.power_levels" or number >= 10:
        return False
    named = [event.content.get(key, {}) for key in _maps_of_levels(version)]
    if not all(isinstance(levels, dict) for levels in named):
        return True
    levels = [event.content[key] for key in LEVEL_KEYS if key in event.content]
    levels += [level for by_name in named for level in by_name.values()]
    return not all(_is_level(number, level) for level in levels)


def _deviations_in_levels(
    version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu], *, allowed: bool
) -> tuple[Deviation, ...]:
    """Why Synapse's verdict on malformed power levels is the other one."""
    as_read = _with_levels_by_python(version, event)
    if as_read is None:
        return (LEVELS_BY_PYTHON,) if allowed else ()
    if (why_refused(version, as_read, state) is None) != allowed:
        return (LEVELS_BY_PYTHON,)
    if not allowed and why_refused(version, _without_lax_user_ids(as_read), state) is None:
        return (LEVELS_BY_PYTHON, LAX_USER_IDS)
    return ()


def _maps_of_levels(version: RoomVersion) -> tuple[str, ...]:
    """The keys of power levels that hold levels by name."""
    return ("users", "events", "notifications") if int(version.version) >= 6 else ("users", "events")


def _with_levels_by_python(version: RoomVersion, event: Pdu) -> Pdu | None:
    """The event with the levels that Python's int makes of its own; None where that fails."""
    content = dict(event.content)
    try:
        content |= {key: int(content[key]) for key in LEVEL_KEYS if key in content}
        for key in _maps_of_levels(version):
            if key in content:
                content[key] = {name: int(level) for name, level in content[key].items()}
    except (TypeError, ValueError, AttributeError):
        return None
    return replace(event, content=content)


def _redacts_nothing(version: RoomVersion, event: Pdu) -> bool:
    """A redaction without an event that it is for, where the rules ask for its domain."""
    is_redaction = event.type == "m.room.redaction" and int(version.version) <= 2
    return is_redaction and not isinstance(event.json.get("redacts"), str)


def _is_level(version: int, level: object) -> bool:
    """Whether a value is a power level up to version 9."""
    if isinstance(level, str):
        return _LEVEL_IN_A_STRING.match(level) is not None
    return type(level) is int or (version < 6 and type(level) is float)


def _has_malformed_keys(event: Pdu) -> bool:
    """Whether this is an invitation with anything among its public keys that is none."""
    content = event.content
    if event.type != "m.room.third_party_invite":
        return False
    entries = content.get("public_keys", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return True
    keys = [entry.get("public_key") for entry in entries]
    keys += [content["public_key"]] if "public_key" in content else []
    return not all(isinstance(key, str) and len(key) == _KEY_LENGTH for key in keys)


def _has_unfederated_target(event: Pdu, state: Mapping[StateKey, Pdu]) -> bool:
    """A membership of a user of another server in a room that is not federated."""
    create = state.get(CREATE)
    if event.type != "m.room.member" or create is None or create.content.get("m.federate", True) is True:
        return False
    return server_in(event.state_key or "") != server_in(create.sender)


def _without_lax_user_ids(event: Pdu) -> Pdu:
    """The event without what Synapse alone takes for users."""
    users, authoriser = event.content.get("users"), event.content.get(AUTHORISER)
    if event.type == "m.room.power_levels" and isinstance(users, dict):
        strict = {
            user_id: level
            for user_id, level in users.items()
            if is_user_id(user_id) or not user_id.startswith("@") or ":" not in user_id
        }
        return replace(event, content={**event.content, "users": strict})
    is_lax = isinstance(authoriser, str) and ":" in authoriser and not is_user_id(authoriser)
    return _without_authoriser(event) if is_lax and event.membership == "join" else event


def _without_authoriser(event: Pdu) -> Pdu:
    """The membership without the user who authorised it."""
    content = {key: value for key, value in event.content.items() if key != AUTHORISER}
    return replace(event, content=content) if event.type == "m.room.member" else event


def resolve_deviating(
    version: RoomVersion,
    states: Sequence[Mapping[StateKey, EventId]],
    events: Mapping[EventId, Pdu],
    rejected: Container[EventId],
    deviations: Collection[Deviation] = (UNCONFLICTED_LEFT_OUT, CREATE_NAMED),
) -> dict[StateKey, EventId]:
    """The state that our core comes to once it deviates like this, all events being there that there are."""
    graph = _auth_graph(events, with_create=version.room_id_is_create_hash and CREATE_NAMED in deviations)
    conflicts = find_conflicts(version, states, graph)
    if UNCONFLICTED_LEFT_OUT in deviations:
        in_all_states = frozenset(ref for ref in states[0].values() if all(ref in s.values() for s in states))
        conflicts = replace(conflicts, full_conflicted_set=conflicts.full_conflicted_set - in_all_states)
    absent = {one for event in events.values() for one in event.auth_events}.difference(events)
    changes = resolve_conflicts(version, conflicts, events, graph, rejected=rejected, absent=absent)
    resolved: dict[StateKey, EventId | None] = {**states[0], **changes}
    return {key: event_id for key, event_id in resolved.items() if event_id is not None}


def _auth_graph(events: Mapping[EventId, Pdu], *, with_create: bool) -> AuthGraph[EventId]:
    """The auth graph of a room, if wanted with the create event among the auth events of all others."""
    graph: AuthGraph[EventId] = AuthGraph()
    for event in events.values():
        auth_events = event.auth_events
        if with_create:
            create_id = create_event_id(event.room_id)
            if create_id in events and create_id != event.event_id:
                auth_events = (*auth_events, create_id)
        is_power_levels = (event.type, event.state_key) == POWER_LEVELS
        graph.add(event.event_id, auth_events, is_power_levels=is_power_levels)
    return graph
