"""lair-chat room: what the core says of a whole room; no database, no configuration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from homeserver.commands.command_parser import Subparsers
from homeserver.commands.documents import add_document, judge_document, printable
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_documents import RoomDocument, read_room
from homeserver.protocol.room_replay import Refusal, replay
from homeserver.protocol.state_resolution import StateMap, resolve
from homeserver.protocol.strict_json import JsonObject


def add_to(commands: Subparsers) -> None:
    """Add `room resolve`."""
    group = commands.add_parser("room", help="what the rules make of a room").add_group()

    resolve_parser = group.add_parser(
        "resolve",
        help="print the resolved state of a JSON document; exit code 2 where it is bad",
        description='The document is {"room_version", "events", "state_sets"}. The state sets, lists of '
        "event IDs, are resolved. Without them the events are replayed along their prev_events.",
    )
    add_document(resolve_parser)
    resolve_parser.set_defaults(run=resolve_room)


def resolve_room(arguments: argparse.Namespace) -> int:
    """Print the state as {type: {state key: event ID}}; what was left out, and why, on standard error."""
    return judge_document(arguments, _resolve)


def _resolve(document: JsonObject) -> int:
    room = read_room(document)
    state: StateMap
    refused: Mapping[EventId, Refusal]
    if room.state_sets is not None:
        state, refused = _resolve_sets(room, room.state_sets)
    else:
        replayed = replay(room.version, room.events, absent=room.absent)
        state, refused = replayed.state, replayed.refused
    notes = room.notes + [
        f"{room.places[event_id]}: {event_id} is refused by {refusal.by}: {refusal.why}"
        for event_id, refusal in refused.items()
    ]
    for note in notes:
        print(printable(note), file=sys.stderr)
    by_type: dict[str, dict[str, str]] = {}
    for (event_type, state_key), event_id in state.items():
        by_type.setdefault(event_type, {})[state_key] = event_id
    print(json.dumps(by_type, indent=2, sort_keys=True))
    return 0


def _resolve_sets(
    room: RoomDocument, state_sets: Sequence[StateMap]
) -> tuple[StateMap, Mapping[EventId, Refusal]]:
    """The resolved state, and what was refused and is not in it."""
    why: dict[EventId, str] = {}
    state = resolve(room.version, state_sets, room.events, absent=room.absent, refused=why)
    left_out = why.keys() - state.values()
    return state, {one: Refusal("the resolution", why[one]) for one in room.events if one in left_out}
