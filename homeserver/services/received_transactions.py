"""Transactions of other servers: each of their events goes its own way, and none can spoil another.

Source: Server-Server API, "Transactions".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from homeserver.errors import BadJson, InvalidParam, Unavailable
from homeserver.metrics import Metrics
from homeserver.protocol.errors import InvalidIdentifier, ProtocolError
from homeserver.protocol.event_hashes import event_id_of
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId, ServerName, parse_room_id, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import Clock
from homeserver.services.incoming_events import IncomingEvents, TooManyWait
from homeserver.services.out_of_band import OutOfBand
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.server_access import ServerAccess
from homeserver.services.single_flight import SingleFlight
from storage import received_transactions, shared_rooms
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.shared_rooms import SharedRoom

log = logging.getLogger(__name__)

MAX_PDUS: Final = 50
MAX_EDUS: Final = 100
MAX_TXN_ID_CHARS: Final = 255
ACL_FORBIDS: Final = "the room's server ACL forbids it"
ORIGIN_PATIENCE_S: Final = 30.0
"""How long a transaction waits for an earlier one of the same server."""


@dataclass(slots=True)
class _Turn:
    """One server's transactions, taken one after another."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


@dataclass(frozen=True)
class ReceivedTransactions:
    """Takes the transactions of other servers."""

    database: Database
    dictionaries: Dictionaries
    gate: PduGate
    access: ServerAccess
    incoming: IncomingEvents
    out_of_band: OutOfBand
    server_name: ServerName
    metrics: Metrics
    clock: Clock
    _running: SingleFlight[tuple[ServerName, str], bytes] = field(
        default_factory=SingleFlight, init=False, repr=False
    )
    _turns: dict[ServerName, _Turn] = field(default_factory=dict, init=False, repr=False)

    async def receive(self, origin: ServerName, txn_id: str, content: JsonObject) -> bytes:
        """The answer to a transaction, as JSON; one that is repeated gets the same answer.

        Raises BadJson and InvalidParam for what is no transaction; Unavailable where it has to be sent again.
        """
        pdus, edus = _list(content, "pdus"), _list(content, "edus")
        if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
            raise InvalidParam(f"a transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")
        if len(txn_id) > MAX_TXN_ID_CHARS or "\0" in txn_id:
            raise InvalidParam(f"the transaction ID has more than {MAX_TXN_ID_CHARS} characters, or a NUL")
        if content.get("origin", origin) != origin:
            raise InvalidParam(f"origin is not {origin}, which signed the request")
        if not pdus:
            self._drop(edus)
            return b'{"pdus":{}}'
        return await self._running.do((origin, txn_id), lambda: self._receive(origin, txn_id, pdus, edus))

    def _drop(self, edus: Sequence[Any]) -> None:
        """Count EDUs: there is no kind of them yet that is understood here."""
        self.metrics.edus_dropped.add({}, len(edus))

    async def _receive(
        self, origin: ServerName, txn_id: str, pdus: Sequence[Any], edus: Sequence[Any]
    ) -> bytes:
        turn = self._turns.setdefault(origin, _Turn())
        turn.waiting += 1
        try:
            try:
                async with asyncio.timeout(ORIGIN_PATIENCE_S):
                    await turn.lock.acquire()
            except TimeoutError:
                raise Unavailable("an earlier transaction is still being worked on") from None
            try:
                return await self._take(origin, txn_id, pdus, edus)
            finally:
                turn.lock.release()
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[origin]

    async def _take(self, origin: ServerName, txn_id: str, pdus: Sequence[Any], edus: Sequence[Any]) -> bytes:
        async with self.database.connection() as tx:
            known = await received_transactions.find(tx, origin, txn_id)
        if known is not None:
            return known
        self._drop(edus)
        answers: dict[str, JsonObject] = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                for room_id, events in _by_room(pdus).items():
                    tasks.create_task(self._take_room(origin, room_id, events, answers))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        response = orjson.dumps({"pdus": answers})
        async with self.database.connection() as tx:
            await received_transactions.save(tx, origin, txn_id, response, self.clock())
        return response

    async def _take_room(
        self, origin: ServerName, room_id: RoomId, events: Sequence[Any], answers: dict[str, JsonObject]
    ) -> None:
        """Take the events of one room. What goes wrong in it is no other room's problem.

        Raises Unavailable when they have to be sent again.
        """
        own_nid = await self.dictionaries.atoms.nid(self.server_name)
        async with self.database.connection() as tx:
            room = await shared_rooms.find_one(tx, room_id, own_nid)
        if room is None:  # without its version the events have no IDs to answer by
            log.info(
                "%d events of room %s from %s are left out: it is not known", len(events), room_id, origin
            )
            return
        try:
            await self._take_events(origin, room, events, answers)
        except Unavailable:
            raise
        except Exception:
            log.exception("the events of room %s from %s cannot be taken", room_id, origin)
            answers |= _all_failed(room, events, "the server cannot take the events of this room")

    async def _take_events(
        self, origin: ServerName, room: SharedRoom, events: Sequence[Any], answers: dict[str, JsonObject]
    ) -> None:
        room_id = room.ref.room_id
        acl = await self.access.acl(room_id)
        if acl is not None and not acl.allows(origin):
            log.info("events of room %s from %s are refused: %s", room_id, origin, ACL_FORBIDS)
            answers |= _all_failed(room, events, ACL_FORBIDS)
            return
        is_in = room.is_resident or room.is_joining
        by_version: Mapping[RoomVersion, Sequence[Any]] = {room.ref.version: events}
        if not is_in:
            log.info("events of room %s from %s are left out: this server is not in it", room_id, origin)
            by_version = await self.out_of_band.possible_withdrawals(room_id, events)
        outcomes = [
            outcome
            for version, of_version in by_version.items()
            for outcome in await self.gate.verify(version, of_version, pushed=True)
        ]
        verified: list[Pdu] = []
        for outcome in outcomes:
            if isinstance(outcome, RefusedPdu):
                reason = outcome.reason
                if outcome.event_id is not None:
                    answers[outcome.event_id] = {"error": reason}
                log.info("%s in room %s from %s is refused: %s", outcome.event_id, room_id, origin, reason)
            elif acl is not None and not acl.allows(server_name_of(outcome.sender)):
                answers[outcome.event_id] = {"error": ACL_FORBIDS}
                log.info("%s in room %s from %s: %s", outcome.event_id, room_id, origin, ACL_FORBIDS)
            else:
                answers[outcome.event_id] = {}
                verified.append(outcome)
        if not is_in:
            for pdu in verified:
                await self.out_of_band.withdrawn(pdu)
        elif verified:
            try:
                await self.incoming.receive(origin, room.ref, verified, wait=not room.is_resident)
            except TooManyWait as error:
                log.warning("events from %s are not taken: %s", origin, error)
                too_many: JsonObject = {"error": "too many events wait in the room"}
                answers.update(dict.fromkeys(error.event_ids, too_many))


def _all_failed(room: SharedRoom, events: Iterable[Any], reason: str) -> dict[str, JsonObject]:
    """An error for each of some events that have an ID, unverified as they are."""
    answers: dict[str, JsonObject] = {}
    for event in events:
        with suppress(ProtocolError):
            answers[event_id_of(room.ref.version, event)] = {"error": reason}
    return answers


def _list(content: JsonObject, name: str) -> list[Any]:
    """A list of a transaction, which may be missing or null."""
    found = content.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise BadJson(f"{name} has to be a list")
    return found


def _by_room(pdus: Iterable[Any]) -> dict[RoomId, list[Any]]:
    """Events by the rooms that they name; those that name none are left out."""
    by_room: dict[RoomId, list[Any]] = {}
    for pdu in pdus:
        room_id = pdu.get("room_id") if isinstance(pdu, dict) else None
        if not isinstance(room_id, str):
            continue
        try:
            by_room.setdefault(parse_room_id(room_id), []).append(pdu)
        except InvalidIdentifier:
            continue
    return by_room
