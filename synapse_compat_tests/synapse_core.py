"""Synapse's core, asked over pipes: one JSON document per line on stdin, one answer per line on stdout.

The Python of Synapse's own environment runs this file, so it imports nothing of ours. A question is a case as
`core_cases.py` has it; `our_core.py` answers the same questions by our core, in the same form.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from hashlib import sha256
from typing import Any

from canonicaljson import encode_canonical_json
from synapse.api.errors import SynapseError
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS, StateResolutionVersions
from synapse.crypto.event_signing import (
    check_event_content_hash,
    compute_content_hash,
    compute_event_reference_hash,
)
from synapse.event_auth import (
    auth_types_for_event,
    check_state_dependent_auth_rules,
    check_state_independent_auth_rules,
    validate_event_for_room_version,
)
from synapse.events import make_event_from_dict
from synapse.events.utils import prune_event
from synapse.federation.federation_base import event_from_pdu_json
from synapse.state import v1, v2
from synapse.storage.databases.main.event_federation import StateDifference
from synapse.synapse_rust.events import redact_event_dict
from unpaddedbase64 import encode_base64

Answer = dict[str, Any]


class Events:
    """The events of a room, for those parts of Synapse that want a store."""

    def __init__(self, by_id: Mapping[str, Any]) -> None:
        self._by_id = by_id

    async def get_events(self, event_ids: Iterable[str], *_: object, **__: object) -> dict[str, Any]:
        return {event_id: self._by_id[event_id] for event_id in event_ids if event_id in self._by_id}

    async def get_auth_chain_difference(
        self, room_id: str, state_sets: object, conflicted: object, reachable: object
    ) -> Any:
        """What the store adds to the difference that Synapse has found among the events that it was given."""
        return StateDifference(
            auth_difference=set(), conflicted_subgraph=None if conflicted is None else set()
        )


class Clock:
    """Time to let others run: there are no others."""

    async def sleep(self, duration: object) -> None:
        return


class Room:
    """The events of one question, as Synapse has them after it has received them."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        self.version = KNOWN_ROOM_VERSIONS[question["room_version"]]
        self.described: list[Answer] = []
        self.by_id: dict[str, Any] = {}
        for pdu in question["events"]:
            try:
                event = event_from_pdu_json(pdu, self.version)
                received = event if check_event_content_hash(event) else prune_event(event)
                self.described.append(self._describe(event))
            except SynapseError as error:
                self.described.append({"refused": str(error)})
                continue
            reason = "rejected" if event.event_id in question["rejected"] else None
            self.by_id[event.event_id] = make_event_from_dict(
                received.get_pdu_json(), self.version, rejected_reason=reason
            )
        self.store = Events(self.by_id)

    def _describe(self, event: Any) -> Answer:
        pdu = {key: part for key, part in event.get_pdu_json().items() if key != "unsigned"}
        redacted = redact_event_dict(self.version, pdu)
        redacted.pop("unsigned", None)
        return {
            "event_id": event.event_id,
            "canonical_json": encode_canonical_json(pdu).decode(),
            "content_hash": encode_base64(compute_content_hash(pdu, sha256)[1]),
            "reference_hash": encode_base64(compute_event_reference_hash(event, sha256)[1]),
            "redacted": encode_canonical_json(redacted).decode(),
        }

    async def judge_by_auth_events(self, event_id: str) -> Answer:
        """Whether an event is allowed by what it names as its auth events."""

        async def check() -> None:
            event = self.by_id[event_id]
            validate_event_for_room_version(event)
            await check_state_independent_auth_rules(self.store, event)
            check_state_dependent_auth_rules(event, [self.by_id[one] for one in event.auth_event_ids()])

        return await _verdict(check)

    async def judge_by_state(self, event_id: str, state: Collection[str]) -> Answer:
        """Whether an event is allowed by a state, of which Synapse looks at what may matter."""

        async def check() -> None:
            event = self.by_id[event_id]
            validate_event_for_room_version(event)
            if event.type == "m.room.create":
                await check_state_independent_auth_rules(self.store, event)
            keys = auth_types_for_event(self.version, event)
            events = [self.by_id[one] for one in state]
            check_state_dependent_auth_rules(
                event, [one for one in events if (one.type, one.state_key) in keys]
            )

        return await _verdict(check)

    async def resolve(self, state_sets: Collection[Collection[str]]) -> Answer:
        """The state that several states of the room come to."""
        try:
            states = [[self.by_id[event_id] for event_id in state] for state in state_sets]
            resolved = await self._resolve(states)
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        return {"state": sorted(resolved.values())}

    async def _resolve(self, states: Collection[Collection[Any]]) -> Any:
        maps = [{(event.type, event.state_key): event.event_id for event in state} for state in states]
        room_id = next(event.room_id for state in states for event in state)
        if self.version.state_res == StateResolutionVersions.V1:
            get_events = self.store.get_events
            return await v1.resolve_events_with_store(room_id, self.version, maps, None, get_events)
        chains = self._chains_of(states)
        return await v2.resolve_events_with_store(Clock(), room_id, self.version, maps, chains, self.store)

    def _chains_of(self, states: Collection[Collection[Any]]) -> dict[str, Any]:
        """The events of the states and of their auth chains: all are new to the store."""
        found: dict[str, Any] = {}
        stack = [event.event_id for state in states for event in state]
        while stack:
            event_id = stack.pop()
            if event_id not in found and event_id in self.by_id:
                found[event_id] = self.by_id[event_id]
                stack.extend(found[event_id].auth_event_ids())
        return found


async def _verdict(check: Callable[[], Awaitable[None]]) -> Answer:
    """What a check came to; `failed` is an error that Synapse did not mean as an answer."""
    try:
        await check()
    except SynapseError as error:
        return {"refused": error.msg}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {}


async def answer(question: Mapping[str, Any]) -> Answer:
    """All that a question asks for."""
    room = Room(question)
    return {
        "events": room.described,
        "by_auth_events": [await room.judge_by_auth_events(one) for one in question["by_auth_events"]],
        "by_state": [await room.judge_by_state(one["event"], one["state"]) for one in question["by_state"]],
        "resolved": [await room.resolve(state_sets) for state_sets in question["resolutions"]],
    }


async def main() -> None:
    """Answer until stdin ends; what Synapse would log is in the answers."""
    logging.disable()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(await answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
