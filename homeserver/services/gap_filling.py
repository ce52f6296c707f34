"""Closing the gap before an event that came: what it builds on is asked of other servers, and placed first.

No room is locked while the network is asked. A gap that nobody closes may stay, and the events after it are
placed on the state that another server tells.
Source: Server-Server API, "Backfilling and retrieving missing events".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, ServerName
from homeserver.services.arrival import MissingAuthEvents
from homeserver.services.event_intake import Blocked, EventIntake
from homeserver.services.missing_events import Asked, MissingEvents
from homeserver.services.servers_to_ask import servers_to_ask
from storage import stored_places
from storage.database import Database
from storage.persister import Persister
from storage.room_heads import RoomRef

log = logging.getLogger(__name__)

SERVERS_TO_ASK: Final = 3


class Outcome(Enum):
    """What became of an event that lacked something."""

    FILLED = "filled"
    """It has its place, or was refused."""
    LATER = "later"
    """Somebody who may know what it lacks could not be asked."""
    LOST = "lost"
    """Nobody has what it lacks."""


@dataclass(frozen=True, slots=True)
class Filling:
    """How filling a gap has ended. `missing`: what the event lacks still."""

    outcome: Outcome
    missing: frozenset[EventId] = frozenset()


@dataclass(frozen=True)
class GapFilling:
    """Fetches what events lack, and places them."""

    database: Database
    persister: Persister
    intake: EventIntake
    missing_events: MissingEvents
    server_name: ServerName

    async def fill(self, ref: RoomRef, pdu: Pdu, origin: ServerName, *, is_member: bool) -> Filling:
        """Fetch what an event lacks, and place it.

        `origin`: who sent it; `is_member`: that server is in the room, and the first to be asked. Raises
        UnknownRoom, Unavailable.
        """
        blocked = await self._place(ref, pdu)  # what was missing may have come meanwhile
        if blocked is None:
            return Filling(Outcome.FILLED)
        others = SERVERS_TO_ASK if is_member else SERVERS_TO_ASK - 1
        servers = await servers_to_ask(
            self.database, ref.room_id, [origin] if is_member else [], own=self.server_name, most=others
        )
        asked = Asked(servers if is_member else [*servers, origin])
        left = await self._fill(ref, blocked, asked)
        if left is None:
            return Filling(Outcome.FILLED)
        return Filling(Outcome.LATER if asked.may_know_more else Outcome.LOST, left.problem.missing)

    async def _fill(self, ref: RoomRef, blocked: Blocked, asked: Asked) -> Blocked | None:
        """Try to close the gap before an event, auth events first; what blocks it still, if anything."""
        pdu = blocked.pdu
        if isinstance(blocked.problem, MissingAuthEvents):
            return await self._place_with_auth_events(ref, [pdu], asked)
        async with self.database.connection() as tx:
            gaps = await stored_places.are_missing(tx, ref.nid, blocked.problem.missing)
        if gaps == blocked.problem.missing:  # it follows where a gap is already, such as that before our join
            return await self._bridge(ref, blocked, [pdu], asked)
        head = await self.persister.newest_head(ref.room_id)
        earlier = await self.missing_events.before(ref, head, pdu, asked)
        left = await self._place_with_auth_events(ref, [*earlier, pdu], asked)
        if left is not None and not isinstance(left.problem, MissingAuthEvents):
            left = await self._bridge(ref, left, earlier, asked)
        return left

    async def _place_with_auth_events(
        self, ref: RoomRef, pdus: Sequence[Pdu], asked: Asked
    ) -> Blocked | None:
        """Place events, fetching auth events that they lack; what blocks the last of them."""
        tried: set[EventId] = set()
        while True:
            blocked = await self.intake.place(ref, pdus)
            lacking = [
                one
                for one in blocked
                if isinstance(one.problem, MissingAuthEvents) and one.pdu.event_id not in tried
            ]
            if not lacking:
                return next((one for one in blocked if one.pdu is pdus[-1]), None)
            for one in lacking:
                tried.add(one.pdu.event_id)
                await self.missing_events.auth_events(ref, one.pdu, one.problem.missing, asked)

    async def _bridge(
        self, ref: RoomRef, blocked: Blocked, earlier: Sequence[Pdu], asked: Asked
    ) -> Blocked | None:
        """Leave a gap, and place the events after it on the state that another server tells.

        `earlier`: events that were asked for, or the event itself where the gap is known. One that was pushed
        does not bring a gap: whoever keeps back what it builds on could make it the room's one extremity.
        """
        for pdu in earlier:
            still = await self._place(ref, pdu)
            if still is None or isinstance(still.problem, MissingAuthEvents):
                continue
            missing = still.problem.missing
            head = await self.persister.newest_head(ref.room_id)
            before = await self.missing_events.state_before(ref, head, pdu, missing, asked)
            if before is None:
                return blocked
            await self.intake.place_after_gap(ref, pdu, before, missing)
        return await self._place(ref, blocked.pdu)

    async def _place(self, ref: RoomRef, pdu: Pdu) -> Blocked | None:
        return next(iter(await self.intake.place(ref, [pdu])), None)
