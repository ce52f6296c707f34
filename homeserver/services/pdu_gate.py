"""The gate that every event from outside passes: its form, its hashes, and who signed it.

Whatever way an event came, a transaction, a state, missing history or the answer to a join, nothing looks
into it before it has been here.
Source: Server-Server API, "Checks performed on receipt of a PDU", "Validating hashes and signatures on
received events".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from homeserver.protocol.errors import BadSignature, ProtocolError
from homeserver.protocol.event_hashes import reference_hash
from homeserver.protocol.events import Pdu, parse_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import (
    ServerKeys,
    keys_valid_at,
    required_signers,
    signature_key_ids,
    verify_event_signatures,
)
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.server_keys import KeyRing
from storage.database import Database
from storage.events import stored_under

log = logging.getLogger(__name__)

PUSHED_PATIENCE_S: Final = 35.0
"""How long a server that pushes events waits for keys; what they have not come for is refused."""
SERVERS_AT_ONCE: Final = 100
"""For one answer of a server the keys of so many others are asked for at once."""
VERIFIED_HERE: Final = 20
"""So many events are checked without leaving the event loop: one takes about 70 µs."""


@dataclass(frozen=True, slots=True)
class RefusedPdu:
    """An event that is not let in. `event_id`: its own or the one asked for; None where neither is known.

    `prev_events`: those that its own ID covers, of an event that is only signed badly: whoever names it means
    these too.
    """

    event_id: EventId | None
    reason: str
    prev_events: tuple[EventId, ...] = ()


@dataclass(slots=True)
class _Wanted:
    """What the events of one server are signed with: by their key IDs when the keys must be valid, in ms.

    That is the time of the newest event; 0 where it is no matter.
    """

    signed_ts: dict[frozenset[str], int] = field(default_factory=dict)

    def add(self, key_ids: Iterable[str], signed_ts: int) -> None:
        ids = frozenset(key_ids)
        self.signed_ts[ids] = max(signed_ts, self.signed_ts.get(ids, 0))

    def without_key(self, keys: ServerKeys) -> tuple[set[str], int]:
        """The key IDs of the events that no known key will do for, and the time of the newest of them."""
        key_ids: set[str] = set()
        newest = 0
        for ids, signed_ts in self.signed_ts.items():
            known = (keys[key_id] for key_id in ids if key_id in keys)
            if not any(key.valid_until_ts >= signed_ts for key in known):
                key_ids |= ids
                newest = max(newest, signed_ts)
        return key_ids, newest


@dataclass(frozen=True)
class PduGate:
    """Lets events in, or says why not."""

    key_ring: KeyRing
    database: Database

    async def verify(
        self,
        version: RoomVersion,
        events: Sequence[Any],
        *,
        pushed: bool,
        event_ids: Sequence[EventId] | None = None,
    ) -> list[Pdu | RefusedPdu]:
        """Check some events; one outcome for each, in their order.

        `events`: any JSON values. `pushed`: a server sent them by itself; False for history and state that
        we asked for. `event_ids`: what each has to be, where it was asked for by its ID. An event whose
        content hash does not fit comes out redacted. The keys that are needed are fetched, of all servers
        at once; a server that does not answer spoils only what it has to sign. Raises Unavailable.
        """
        patience_s = PUSHED_PATIENCE_S if pushed else None
        expected: Sequence[EventId | None] = [None] * len(events) if event_ids is None else event_ids
        if len(events) <= VERIFIED_HERE:
            parsed = _parse(version, events, expected, pushed=pushed)
            keys = await self._keys(_wanted(version, parsed), patience_s)
            outcomes = _verify(version, parsed, keys)
        else:
            parsed = await asyncio.to_thread(_parse, version, events, expected, pushed=pushed)
            keys = await self._keys(await asyncio.to_thread(_wanted, version, parsed), patience_s)
            outcomes = await asyncio.to_thread(_verify, version, parsed, keys)
        return await self._without_doubles(version, outcomes) if version.has_chosen_event_ids else outcomes

    async def _without_doubles(
        self, version: RoomVersion, outcomes: Sequence[Pdu | RefusedPdu]
    ) -> list[Pdu | RefusedPdu]:
        """Refuse events whose ID another event has: a server that chooses IDs may choose one twice.

        Of which room and content an ID is says the first event that is stored here.
        """
        event_ids = [outcome.event_id for outcome in outcomes if isinstance(outcome, Pdu)]
        async with self.database.connection() as tx:
            stored = await stored_under(tx, event_ids)
        if len(outcomes) <= VERIFIED_HERE:
            return _first_of_each_id(version, outcomes, stored)
        return await asyncio.to_thread(_first_of_each_id, version, outcomes, stored)

    async def _keys(
        self, wanted: Mapping[ServerName, _Wanted], patience_s: float | None
    ) -> dict[ServerName, ServerKeys]:
        turns = asyncio.Semaphore(SERVERS_AT_ONCE)

        async def keys_of(server_name: ServerName, of_server: _Wanted) -> ServerKeys:
            async with turns:
                return await self._keys_of(server_name, of_server, give_up)

        give_up = None if patience_s is None else asyncio.get_running_loop().time() + patience_s
        try:
            async with asyncio.TaskGroup() as tasks:
                found = {
                    server_name: tasks.create_task(keys_of(server_name, of_server))
                    for server_name, of_server in wanted.items()
                }
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return {server_name: task.result() for server_name, task in found.items()}

    async def _keys_of(self, server_name: ServerName, wanted: _Wanted, give_up: float | None) -> ServerKeys:
        """The keys of a server: those that are known, and after asking for what is missing.

        Whom we ask next, a notary say, may know the older keys that the server itself has forgotten.
        `give_up`: the time of the event loop at which what is known has to do.
        """
        keys = await self.key_ring.keys_for(server_name, (), 0)
        try:
            async with asyncio.timeout_at(give_up):
                for _ in range(2):
                    key_ids, newest = wanted.without_key(keys)
                    if not key_ids:
                        break
                    keys = await self.key_ring.keys_for(server_name, key_ids, newest)
        except TimeoutError:
            log.info("the keys of %s take too long to be had", server_name)
        return keys


def _first_of_each_id(
    version: RoomVersion,
    outcomes: Sequence[Pdu | RefusedPdu],
    stored: Mapping[EventId, tuple[RoomId, JsonObject]],
) -> list[Pdu | RefusedPdu]:
    """The outcomes, those refused that have the ID of another event: of a stored one, or of one before."""
    known = {
        event_id: (room_id, reference_hash(version, event)) for event_id, (room_id, event) in stored.items()
    }
    checked: list[Pdu | RefusedPdu] = []
    for outcome in outcomes:
        if isinstance(outcome, Pdu):
            identity = outcome.room_id, reference_hash(version, outcome.json)
            if known.setdefault(outcome.event_id, identity) != identity:
                checked.append(RefusedPdu(outcome.event_id, "another event has this ID"))
                continue
        checked.append(outcome)
    return checked


def _parse(
    version: RoomVersion, events: Sequence[Any], expected: Sequence[EventId | None], *, pushed: bool
) -> list[Pdu | RefusedPdu]:
    parsed: list[Pdu | RefusedPdu] = []
    for event, event_id in zip(events, expected, strict=True):
        try:
            parsed.append(parse_pdu(version, event, event_id=event_id, pushed=pushed))
        except ProtocolError as error:
            parsed.append(RefusedPdu(event_id, str(error)))
    return parsed


def _wanted(version: RoomVersion, parsed: Iterable[Pdu | RefusedPdu]) -> dict[ServerName, _Wanted]:
    """What has to be known to verify some events, by the servers that must have signed them."""
    wanted: dict[ServerName, _Wanted] = {}
    for pdu in parsed:
        if isinstance(pdu, Pdu):
            for server_name, key_ids in _signers(version, pdu):
                wanted.setdefault(server_name, _Wanted()).add(key_ids, keys_valid_at(version, pdu))
    return wanted


def _signers(version: RoomVersion, pdu: Pdu) -> list[tuple[ServerName, list[str]]]:
    """Who must have signed an event, and with which keys they did; nobody where one signature is missing.

    Then the event is refused without asking anybody for keys.
    """
    try:
        signers = [(name, signature_key_ids(pdu.json, name)) for name in required_signers(version, pdu)]
    except BadSignature:
        return []
    return signers if all(key_ids for _, key_ids in signers) else []


def _verify(
    version: RoomVersion, parsed: Sequence[Pdu | RefusedPdu], keys: Mapping[ServerName, ServerKeys]
) -> list[Pdu | RefusedPdu]:
    outcomes: list[Pdu | RefusedPdu] = []
    for pdu in parsed:
        if isinstance(pdu, Pdu):
            try:
                verify_event_signatures(version, pdu, keys)
            except ProtocolError as error:
                outcomes.append(RefusedPdu(pdu.event_id, str(error), pdu.prev_events))
                continue
        outcomes.append(pdu)
    return outcomes
