"""Events of local users: build, authorise, store.

Source: Client-Server API, "Sending events to a room".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from homeserver.errors import BadJson, Forbidden, NotFound
from homeserver.protocol.errors import ProtocolError
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.power_levels import PowerLevels
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.canonical_aliases import alias_check
from homeserver.services.event_building import as_answer, build_event, changed_or_current
from homeserver.services.state_changes import check_settable
from storage import events
from storage.database import Database
from storage.decisions import UnknownRoom
from storage.event_batch import TxnKey
from storage.persister import Persister
from storage.room_heads import RoomHead

NOT_IN_ROOM = "you are not in this room"


@dataclass(frozen=True)
class RoomEvents:
    """Adds events of local users to rooms that this server is in."""

    persister: Persister
    database: Database
    clock_ms: Callable[[], int]

    async def send(self, requester: Requester, room_id: RoomId, draft: EventDraft, txn_id: str) -> EventId:
        """Add a message event; the same (device, room, event type, transaction ID) gives the same event.

        Raises Forbidden with the auth rule that refused it, BadJson or TooLarge for what cannot be an event.
        """
        what = f"send/{draft.type}"
        if draft.type == "m.room.redaction":
            redacts = draft.content.get("redacts")
            if not isinstance(redacts, str):
                raise BadJson("content.redacts is the ID of the event to redact")
            return await self.redact(requester, room_id, EventId(redacts), draft.content, what, txn_id)
        txn = TxnKey(requester.device_nid, room_id, what, txn_id)

        def decide(head: RoomHead) -> list[Pdu]:
            return [build_event(head, draft, requester.user_id, self.clock_ms())]

        return await self._append(room_id, decide, txn)

    async def set_state(self, requester: Requester, room_id: RoomId, draft: EventDraft) -> EventId:
        """Change the state of a room; an event of the same user and content that is current already stays.

        Raises what `send` raises; BadRequest for what no client can set; BadAlias and InvalidParam for
        aliases that the room cannot name.
        """
        check_settable(draft, requester.user_id)
        check = await alias_check(self.database, room_id, draft)

        def decide(head: RoomHead) -> list[Pdu]:
            event = build_event(head, draft, requester.user_id, self.clock_ms())
            check(head)
            return [changed_or_current(head, event)]

        return await self._append(room_id, decide, None)

    async def redact(
        self,
        requester: Requester,
        room_id: RoomId,
        event_id: EventId,
        content: JsonObject,
        what: str,
        txn_id: str,
    ) -> EventId:
        """Take the content from an event; `what` is the endpoint that was asked, as part of the transaction.

        One's own events need only the level to send a redaction, those of others the level `redact`.
        Of a room that was joined through another server the event may be older than what is known here:
        servers that have it know whether the redaction holds. Raises NotFound for an event that is not in
        the room, and what `send` raises.
        Source: Client-Server API, "Redactions".
        """
        async with self.database.connection() as tx:
            target = await events.load(tx, room_id, event_id)
            is_known_whole = target is None and await events.begins_with_create(tx, room_id)
        draft = EventDraft("m.room.redaction", {**content, "redacts": event_id})

        def decide(head: RoomHead) -> list[Pdu]:
            redaction = build_event(head, draft, requester.user_id, self.clock_ms())
            # From here on the requester is in the room, and may know what is in it.
            if target is None:
                if is_known_whole:
                    raise NotFound(f"{event_id} is not an event of {room_id}")
                return [redaction]
            if target.type in ("m.room.create", "m.room.server_acl"):
                raise Forbidden(f"{target.type} cannot be redacted")
            create, power_levels = head.event("m.room.create"), head.event("m.room.power_levels")
            assert create is not None
            levels = PowerLevels.of(head.version, create, power_levels)
            if requester.user_id != target.sender and not levels.can_redact_others(requester.user_id):
                raise Forbidden(f"redacting an event of {target.sender} needs power level {levels.redact}")
            return [redaction]

        return await self._append(room_id, decide, TxnKey(requester.device_nid, room_id, what, txn_id))

    async def _append(
        self, room_id: RoomId, decide: Callable[[RoomHead], list[Pdu]], txn: TxnKey | None
    ) -> EventId:
        try:
            event_ids = await self.persister.append(room_id, decide, key=txn)
        except UnknownRoom:
            raise Forbidden(NOT_IN_ROOM) from None
        except ProtocolError as error:
            raise as_answer(error) from None
        return event_ids[-1]
