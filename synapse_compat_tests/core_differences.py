"""Comparing what two cores answer to the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId, create_event_id
from synapse_compat_tests.core_cases import Answer, Case
from synapse_compat_tests.deviations import (
    Deviation,
    deviations_in_event,
    deviations_in_resolution,
    deviations_in_verdict,
)
from synapse_compat_tests.our_core import OurRoom, our_answer, our_room
from synapse_compat_tests.synapse_core_process import SynapseCore


@dataclass(frozen=True)
class Difference:
    """One question that the cores answer differently."""

    part: str
    """The part of the answers: events, by_auth_events, by_state or resolved."""
    index: int
    ours: Answer
    synapses: Answer
    deviations: tuple[Deviation, ...]
    """The deviations of Synapse's that it comes from; none if nobody has explained it."""


def compare(core: SynapseCore, case: Case) -> list[Difference]:
    """Ask both cores, at once, and compare."""
    core.ask(case)
    ours = our_answer(case)
    return list(differences(case, ours, core.answer()))


def differences(case: Case, ours: Answer, synapses: Answer) -> Iterator[Difference]:
    """All differences, those that are known deviations too."""
    room = our_room(case)
    for part in ("events", "by_auth_events", "by_state", "resolved"):
        for index, (our, synapse) in enumerate(zip(ours[part], synapses[part], strict=True)):
            if not _say_the_same(part, our, synapse):
                yield Difference(part, index, our, synapse, _explain(case, room, part, index, our, synapse))


def _say_the_same(part: str, ours: Answer, synapses: Answer) -> bool:
    """Verdicts are allowed or not, for whichever reason; all else is compared to the last character."""
    if part in ("by_auth_events", "by_state"):
        return bool(ours) == bool(synapses)
    return ours == synapses or ("refused" in ours and "refused" in synapses)


def _explain(
    case: Case, room: OurRoom, part: str, index: int, ours: Answer, synapses: Answer
) -> tuple[Deviation, ...]:
    match part:
        case "events":
            return deviations_in_event(room, case.events[index], synapses)
        case "by_auth_events":
            event = room.events[EventId(case.by_auth_events[index])]
            state = _state_of_auth_events(room, event)
            return deviations_in_verdict(room.version, event, state, allowed=not ours)
        case "by_state":
            check = case.by_state[index]
            state = {key: room.events[one] for key, one in room.state_map(check.state).items()}
            event = room.events[EventId(check.event)]
            return deviations_in_verdict(room.version, event, state, allowed=not ours)
        case _:
            return deviations_in_resolution(room, case.resolutions[index], synapses)


def _state_of_auth_events(room: OurRoom, event: Pdu) -> Mapping[StateKey, Pdu]:
    """The state that an event's auth events make, with the create event where none of them is it."""
    event_ids = list(event.auth_events)
    if room.version.room_id_is_create_hash:
        event_ids.append(create_event_id(event.room_id))
    events = [room.events[event_id] for event_id in event_ids]
    return {event.key: event for event in events if event.state_key is not None}
