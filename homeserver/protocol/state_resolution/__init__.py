"""State resolution: the one state that all servers arrive at when a room has forked.

`resolve` is the whole computation on event IDs. A server that keeps an `AuthGraph` for each room takes the
two steps it consists of, `find_overlay_conflicts` and `resolve_conflicts`, and loads only the events that
the second one names. Source: Room Version 2, "State resolution"; Room Version 12, "State resolution".
"""

from homeserver.protocol.state_resolution.auth_graph import AuthGraph, Ref
from homeserver.protocol.state_resolution.conflicts import (
    Conflicts,
    auth_difference,
    conflicted_state_subgraph,
    find_conflicts,
    find_overlay_conflicts,
)
from homeserver.protocol.state_resolution.resolve import StateMap, resolve, resolve_conflicts

__all__ = [
    "AuthGraph",
    "Conflicts",
    "Ref",
    "StateMap",
    "auth_difference",
    "conflicted_state_subgraph",
    "find_conflicts",
    "find_overlay_conflicts",
    "resolve",
    "resolve_conflicts",
]
