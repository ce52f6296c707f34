"""A case that differs, made so small that one can read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.identifiers import EventId, create_event_id
from homeserver.protocol.strict_json import JsonObject
from synapse_compat_tests.core_cases import Case, Merge, State, StateCheck
from synapse_compat_tests.core_differences import Difference
from synapse_compat_tests.our_core import OurRoom, our_room

_Item = TypeVar("_Item")


def small_case(case: Case, difference: Difference, differs: Callable[[Case], bool]) -> Case:
    """The one question that differs, on as few events as show it still.

    `differs` compares the answers to a smaller case.
    """
    case = _only_question(case, difference)
    if difference.part == "by_state":
        [check] = case.by_state

        def with_state(state: State) -> Case:
            return replace(case, by_state=[StateCheck(check.event, state)])

        case = with_state(_needed(check.state, lambda state: differs(with_state(state))))
    elif difference.part == "resolved":
        case = _smallest_merge(case, differs)
    return _with_fewer_events(case)


def _smallest_merge(case: Case, differs: Callable[[Case], bool]) -> Case:
    """The case of fewer states, and of smaller ones."""

    def merge_differs(state_sets: Merge) -> bool:
        return differs(replace(case, resolutions=[state_sets]))

    [state_sets] = case.resolutions
    state_sets = _needed(state_sets, merge_differs)
    for index in range(len(state_sets)):
        state_sets = _with_smaller_state(state_sets, index, merge_differs)
    return replace(case, resolutions=[state_sets])


def _with_smaller_state(state_sets: Merge, index: int, differs: Callable[[Merge], bool]) -> Merge:
    before, state, after = state_sets[:index], state_sets[index], state_sets[index + 1 :]
    return [*before, _needed(state, lambda fewer: differs([*before, fewer, *after])), *after]


def _needed(items: Sequence[_Item], differs: Callable[[Sequence[_Item]], bool]) -> Sequence[_Item]:
    """As few of the items as differ still, by trying without each; one at least."""
    for item in list(items):
        fewer = [other for other in items if other is not item]
        if fewer and differs(fewer):
            items = fewer
    return items


def _only_question(case: Case, difference: Difference) -> Case:
    index = difference.index
    alone = replace(case, by_auth_events=[], by_state=[], resolutions=[])
    match difference.part:
        case "events":
            return replace(alone, events=[case.events[index]])
        case "by_auth_events":
            return replace(alone, by_auth_events=[case.by_auth_events[index]])
        case "by_state":
            return replace(alone, by_state=[case.by_state[index]])
        case _:
            return replace(alone, resolutions=[case.resolutions[index]])


def _with_fewer_events(case: Case) -> Case:
    """Without the events that no question leads to, be it over auth events."""
    room = our_room(case)
    needed: set[EventId] = set()
    stack = [EventId(one) for one in _asked_for(case)]
    while stack:
        event_id = stack.pop()
        if event_id in room.events and event_id not in needed:
            needed.add(event_id)
            stack += [*room.events[event_id].auth_events, create_event_id(room.events[event_id].room_id)]
    if not needed:
        return case
    ids = [room.describe(event).get("event_id") for event in case.events]
    events = [event for event, event_id in zip(case.events, ids, strict=True) if event_id in needed]
    return replace(case, events=events, rejected=[one for one in case.rejected if one in needed])


def _asked_for(case: Case) -> Iterator[str]:
    yield from case.by_auth_events
    for check in case.by_state:
        yield check.event
        yield from check.state
    for state_sets in case.resolutions:
        for state in state_sets:
            yield from state


def document(case: Case) -> str:
    """A case with one question, as `lair-chat room resolve` or `lair-chat event check` reads it."""
    room = our_room(case)
    if case.resolutions:
        [state_sets] = case.resolutions
        wanted: JsonObject = {"events": case.events, "state_sets": state_sets, "rejected": case.rejected}
    elif case.by_state:
        wanted = _judged_by_state(room, case.by_state[0])
    elif case.by_auth_events:
        event = room.events[EventId(case.by_auth_events[0])]
        named = [*event.auth_events, create_event_id(event.room_id)]
        auth_events = [room.events[one].json for one in named if one in room.events]
        wanted = {"event": event.json, "auth_events": auth_events, "rejected": case.rejected}
    else:
        wanted = {"event": case.events[0], "auth_events": []}
    return json.dumps({"room_version": case.room_version, **wanted}, indent=1)


def _judged_by_state(room: OurRoom, check: StateCheck) -> JsonObject:
    """An event that keeps its ID, but names as its auth events what the auth rules read of a state."""
    event = room.events[EventId(check.event)]
    keys = auth_state_keys(room.version, event.type, event.sender, event.state_key, event.content)
    state = room.state_map(check.state)
    read = [state[key] for key in keys if key in state]
    named: list[Any] = [one for one in read if one != create_event_id(event.room_id)]
    if int(room.version.version) <= 2:
        named = [[one, {}] for one in named]
    unhashed = {key: value for key, value in event.json.items() if key != "hashes"}
    return {
        "event": {**unhashed, "event_id": event.event_id, "auth_events": named},
        "auth_events": [room.events[one].json for one in read],
    }
