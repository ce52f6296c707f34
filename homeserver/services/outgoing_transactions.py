"""Transactions to other servers: what goes into the next one, and what follows if it is not taken.

Source: Server-Server API, "Transactions", PUT /_matrix/federation/v1/send/{txnId}.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import orjson

from federation.outbound.room_requests import send_transaction
from federation.outbound.signed_client import BackingOff, FederationError, RequestRefused, SignedClient
from homeserver.errors import Unavailable
from homeserver.protocol.events import MAX_EVENT_BYTES, Pdu
from homeserver.protocol.identifiers import EventId, ServerName, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.clock import Clock
from homeserver.services.destination_queue import (
    TRIES_OF_FAILING,
    TRIES_OF_REFUSED,
    DestinationQueue,
    OutgoingEvent,
)
from homeserver.services.destination_queues import DestinationQueues
from homeserver.services.outgoing_events import OutgoingEvents
from storage import sent_positions
from storage.database import Database
from storage.event_flags import EventFlag
from storage.sent_positions import DueEvent
from storage.stream import StreamEvent

log = logging.getLogger(__name__)

READ_AT_ONCE: Final = 100
MAX_READ_BYTES: Final = 1024 * 1024
"""What is read for one server at once, about."""
MAX_READS_AT_ONCE: Final = 2
"""The connections to the database are for others too."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
"""A server that fails again and again is left alone for a little, even if it is heard from all the time."""
REMEMBERED_DAMAGE: Final = 1000
LONGEST_ERROR_CHARS: Final = 200
_UNAUTHORIZED: Final = 401
_TOO_MANY_REQUESTS: Final = 429


class OutgoingTransactions:
    """Makes events ready to go, and sends what is next in a queue."""

    def __init__(
        self,
        database: Database,
        outgoing: OutgoingEvents,
        client: SignedClient,
        queues: DestinationQueues,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outgoing = outgoing
        self._client = client
        self._queues = queues
        self._clock = clock
        self._reading = asyncio.Semaphore(MAX_READS_AT_ONCE)
        self._damaged: BoundedCache[EventId | int, bool] = BoundedCache(REMEMBERED_DAMAGE)
        self.reached: set[ServerName] | None = set()
        """The servers that have taken a transaction; None once nobody wants to know any more."""

    def of_stream(self, event: StreamEvent) -> OutgoingEvent | None:
        """A new event as it leaves this server; None where that cannot be made."""
        pdu = event.stored.pdu
        try:
            data = self._signed(event.room.version, pdu, event.flags)
        except Exception as error:
            self._leave_out(pdu.event_id, error)
            return None
        return OutgoingEvent(event.pos, pdu.event_id, data)

    async def send_next(self, queue: DestinationQueue) -> bool:
        """Send one transaction, if there is anything to send; whether all went well."""
        try:
            while queue.must_read and not queue.is_probing:
                await self._read(queue)
            events = queue.take()
            if events or queue.is_probing or queue.greets:
                await self._send(queue, events)
        except BackingOff:
            queue.withdraw()
            return False
        except FederationError as error:
            self._note_failure(queue, error)
            return False
        except Unavailable as error:
            log.info("the database cannot be read, so other servers have to wait: %s", error.error)
            self._pause(queue, tries_needed=None)
            return False
        except Exception:
            log.exception("%s could not be sent what it is owed", queue.server.name)
            self._pause(queue, tries_needed=TRIES_OF_FAILING)
            return False
        return True

    async def _read(self, queue: DestinationQueue) -> None:
        """Read what is owed next."""
        rows: Sequence[DueEvent] = ()
        async with self._reading:
            after, upto = queue.begin_reading(self._queues.position)
            try:
                if after < upto:
                    async with self._database.connection() as tx:
                        rows = await sent_positions.due(tx, queue.server.nid, after, upto, READ_AT_ONCE)
            except BaseException:
                queue.give_up_reading()
                raise
        covered = upto if len(rows) < READ_AT_ONCE else rows[-1].pos
        events, size_bytes = [], 0
        for row in rows:
            if size_bytes >= MAX_READ_BYTES:
                covered = row.pos - 1
                break
            event = self._of_due(row, queue.server.name)
            if event is not None:
                size_bytes += len(event.data)
                events.append(event)
        queue.end_reading(events, covered, is_all=covered >= upto)

    def _of_due(self, due: DueEvent, destination: ServerName) -> OutgoingEvent | None:
        """An event that is read for a server; None where that cannot be made, or it is the server's own."""
        try:
            pdu = due.pdu()
            if server_name_of(pdu.sender) == destination:
                return None
            data = self._signed(due.version, pdu, due.flags)
        except Exception as error:
            self._leave_out(due.nid, error)
            return None
        return OutgoingEvent(due.pos, pdu.event_id, data)

    def _signed(self, version: RoomVersion, pdu: Pdu, flags: int) -> bytes:
        data = self._outgoing.signed_bytes(version, pdu, is_unsigned=bool(flags & EventFlag.UNSIGNED))
        if len(data) > MAX_EVENT_BYTES:
            raise ValueError(f"{len(data)} bytes are more than any server takes")
        return data

    def _leave_out(self, event: EventId | int, error: Exception) -> None:
        """An event that cannot be sent must not keep others from being sent. It is named once."""
        if self._damaged.get(event) is None:
            self._damaged.put(event, True, 1)
            log.error("event %s cannot be sent to other servers: %s: %s", event, type(error).__name__, error)

    async def _send(self, queue: DestinationQueue, events: Sequence[OutgoingEvent]) -> None:
        """Send a transaction. Raises FederationError unless the server took it."""
        now = self._clock()
        content: JsonObject = {
            "origin": self._outgoing.own.server_name,
            "origin_server_ts": now,
            "pdus": [orjson.Fragment(event.data) for event in events],
        }
        answer = await send_transaction(self._client, queue.server.name, _txn_id(events, now), content)
        queue.delivered()
        if self.reached is not None:
            self.reached.add(queue.server.name)
        for event in events:
            result = answer.get(event.event_id)
            if isinstance(result, dict) and "error" in result:
                error = str(result["error"])[:LONGEST_ERROR_CHARS]
                log.info("%s does not accept event %s: %r", queue.server.name, event.event_id, error)

    def _note_failure(self, queue: DestinationQueue, error: FederationError) -> None:
        if queue.failures == 0:
            log.info("what is owed to another server cannot be sent for now: %s", error)
        tries_needed: int | None = TRIES_OF_FAILING
        if isinstance(error, RequestRefused):
            if error.status == _TOO_MANY_REQUESTS:
                tries_needed = None
            elif 400 <= error.status < 500 and error.status != _UNAUTHORIZED:
                tries_needed = TRIES_OF_REFUSED
        given_up = self._pause(queue, tries_needed=tries_needed)
        if given_up is not None:
            log.warning(
                "event %s is left out, since it made another server fail: %s", given_up.event_id, error
            )

    def _pause(self, queue: DestinationQueue, *, tries_needed: int | None) -> OutgoingEvent | None:
        """Leave a server alone for a moment; the event that is given up as the reason, if one is."""
        given_up = queue.failed(tries_needed=tries_needed)
        pause_s = min(FIRST_PAUSE_S * 2 ** min(queue.failures - 1, 10), LONGEST_PAUSE_S)
        queue.not_before = asyncio.get_running_loop().time() + pause_s
        return given_up


def _txn_id(events: Sequence[OutgoingEvent], now: int) -> str:
    """A hash of what is sent: the same events have the same transaction ID again, also after a restart."""
    hashed = sha256(b",".join([event.data for event in events]) or b"%d" % now)
    return urlsafe_b64encode(hashed.digest()).decode().rstrip("=")
