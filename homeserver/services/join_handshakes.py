"""Entering a room through servers that are in it: what is asked of them, and what their answers mean.

The servers that may be are asked in turn for a template; the join that is made of it is sent to the one that
gave it, which answers with the state of the room.
Source: Server-Server API, "Joining Rooms", "Restricted rooms".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from federation.outbound import room_requests
from federation.outbound.room_requests import JoinAnswer
from federation.outbound.signed_client import (
    DestinationDenied,
    FederationError,
    InvalidResponse,
    RequestRefused,
    SignedClient,
    Unreachable,
)
from homeserver.errors import (
    BadGateway,
    Forbidden,
    IncompatibleRoomVersion,
    MatrixError,
    NotFound,
    UnableToAuthoriseJoin,
    UnableToGrantJoin,
    Unavailable,
)
from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.canonical_json import canonical_fragment
from homeserver.protocol.errors import BadJson, EventTooLarge, NotAllowed, ProtocolError
from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.membership_templates import build_from_template, version_of_template
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.clock import Clock
from homeserver.services.event_building import as_answer
from homeserver.services.federation_failures import WITHOUT_ANSWER
from homeserver.services.federation_sending import FederationSending
from homeserver.services.history_fetching import HistoryFetching
from homeserver.services.incoming_events import IncomingEvents, TooManyWait
from homeserver.services.join_imports import JoinImports, RoomIsHere
from homeserver.services.own_keys import OwnKeys
from homeserver.services.pdu_gate import PduGate, RefusedPdu
from homeserver.services.servers_to_ask import creators_server, servers_to_ask
from storage import room_imports, room_servers, shared_rooms, stored_places
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.nids import NidBlocks
from storage.room_heads import RoomRef
from storage.room_imports import Lease, PendingJoin
from storage.shared_rooms import SharedRoom

log = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 10
MAKE_JOIN_PATIENCE_S: Final = 50.0
"""How long all servers together may take to give a template: so ten that are dead cost less than a minute."""
RETRY_UNTIL_S: Final = 60.0
"""After that no further server is asked."""
PLACING_PATIENCE_S: Final = 30.0
"""How long to wait until a join that others have taken has its place here."""
PLACING_PAUSE_S: Final = 0.25

LeaseOf: TypeAlias = Callable[[RoomRef], Awaitable[Lease]]
"""Gives the lease of a room: takes it, where it is not held yet."""


@dataclass(frozen=True, slots=True)
class _Template:
    """The join that a server proposed, made and signed by us."""

    server_name: ServerName
    version: RoomVersion
    join: Pdu


class JoinHandshakes:
    """Asks other servers to let our users in, and takes over what they answer."""

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        client: SignedClient,
        gate: PduGate,
        imports: JoinImports,
        incoming: IncomingEvents,
        history: HistoryFetching,
        sending: FederationSending,
        own: OwnKeys,
        clock: Clock,
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._client = client
        self._gate = gate
        self._imports = imports
        self._incoming = incoming
        self._history = history
        self._sending = sending
        self._own = own
        self._clock = clock
        self._nids = NidBlocks(database)

    async def join(self, wanted: PendingJoin, lease_of: LeaseOf) -> EventId:
        """Join through the first server that lets us; the ID of the join.

        `lease_of`: asked for the lease of a room that this server is not in, before each join that is sent
        for it. Raises what `lease_of` raises; RoomIsHere where this server came into the room meanwhile,
        BadJson and TooLarge for a content that no event can have, Unavailable where a join that others have
        taken waits for its place here; and for what the servers say NotFound, Forbidden, BadGateway,
        IncompatibleRoomVersion, UnableToGrantJoin and UnableToAuthoriseJoin.
        """
        user_id, room_id, content = wanted.user_id, wanted.room_id, wanted.content
        candidates = await self._candidates(room_id, wanted.servers)
        own_nid = await self._dictionaries.atoms.nid(self._own.server_name)
        async with self._database.connection() as tx:
            left_at = await room_servers.left_at(tx, room_id, own_nid)
        failures: list[FederationError] = []
        started, left_s = _now(), MAKE_JOIN_PATIENCE_S
        for number, server_name in enumerate(candidates):
            asked = _now()
            if asked - started > RETRY_UNTIL_S:
                break
            limit_s = min(room_requests.MAKE_TIMEOUT_S, max(1.0, left_s / (len(candidates) - number)))
            try:
                try:
                    template = await self._template(server_name, user_id, room_id, content, limit_s)
                    if left_at is not None and await self._deliver(server_name, left_at, limit_s):
                        template = await self._template(server_name, user_id, room_id, content, limit_s)
                finally:
                    left_s -= _now() - asked
                return await self._join_through(template, lease_of)
            except FederationError as error:
                log.info("%s is not joined through %r: %s", room_id, server_name, error.reason)
                if (final := _final_answer(error)) is not None:
                    raise final from None
                failures.append(error)
        raise _answer(room_id, failures)

    async def is_here(self, room_id: RoomId) -> bool:
        """Whether this server is in a room."""
        shared = await self._shared(room_id)
        return shared is not None and shared.is_resident

    async def _deliver(self, server_name: ServerName, left_at: int, limit_s: float) -> bool:
        """Let a server know all that we did before we left a room: only then it can tell what the room is.

        False where it knew, or is owed nothing, since it came later. Raises FederationError where it does not
        take it.
        """
        if self._sending.has_got_all(server_name, left_at):
            return False
        if not await self._sending.deliver(server_name, left_at, limit_s):
            raise Unreachable(server_name, "it has not got what was sent before this server left the room")
        return True

    async def _candidates(self, room_id: RoomId, servers: Iterable[str]) -> list[ServerName]:
        """The servers to ask, in that order.

        Of a room that this server has left, those that were in it then know what we did: they come before the
        one that made it, which may have come again since.
        """
        return await servers_to_ask(
            self._database,
            room_id,
            servers,
            last=creators_server(room_id),
            own=self._own.server_name,
            most=MAX_CANDIDATES,
        )

    async def _template(
        self, server_name: ServerName, user_id: UserId, room_id: RoomId, content: JsonObject, limit_s: float
    ) -> _Template:
        """Ask a server for a template and make a join of it. Raises FederationError, BadJson and TooLarge."""
        answer = await room_requests.make_join(self._client, server_name, room_id, user_id, timeout_s=limit_s)
        try:
            version = version_of_template(answer)
            join = build_from_template(
                version,
                answer.get("event"),
                server_name=server_name,
                room_id=room_id,
                user_id=user_id,
                membership="join",
                content=content,
                origin_server_ts=self._clock(),
            )
            signed = sign_event(version, join.json, self._own.server_name, self._own.current)
        except (EventTooLarge, BadJson) as error:
            raise as_answer(error) from None
        except ProtocolError as error:
            raise InvalidResponse(server_name, f"no template: {error}") from None
        return _Template(server_name, version, stored_pdu(version, room_id, join.event_id, signed))

    async def _join_through(self, template: _Template, lease_of: LeaseOf) -> EventId:
        """Send a join to the server that proposed it. Raises FederationError, RoomIsHere."""
        room_id = template.join.room_id
        shared = await self._shared(room_id)
        if shared is not None and shared.is_resident:
            answer = await self._send(template)
            join = await self._accepted(template, answer)
            await self._place(template.server_name, shared.ref, join)
            return join.event_id
        await self._nids.reserve(1)
        new_nid = self._nids.take()
        async with self._database.connection() as tx:
            room = await room_imports.open_room(tx, room_id, template.version, new_nid)
        if room.version is not template.version:
            raise InvalidResponse(template.server_name, "it takes the room for one of another version")
        lease = await lease_of(room)
        if await self.is_here(room_id):
            raise RoomIsHere(room_id)
        return await self._enter(room, template, lease)

    async def _place(self, server_name: ServerName, room: RoomRef, join: Pdu) -> None:
        """Give a join that others have taken its place in a room that we are in.

        Raises Forbidden where the room refuses it as we know it; Unavailable while it waits for what it
        builds on.
        """
        try:
            await self._incoming.receive(server_name, room, [join], wait=False)
        except TooManyWait as error:
            raise Unavailable(f"{error}; try again") from None
        give_up = _now() + PLACING_PATIENCE_S
        while True:
            async with self._database.connection() as tx:
                place = (await stored_places.load(tx, room.nid, [join.event_id])).get(join.event_id)
            if place is not None and place.is_refused:
                raise Forbidden("the room does not let you in, as it is known here")
            if place is not None and place.seq is not None:
                return
            if _now() > give_up:
                raise Unavailable("your join waits for earlier events of the room; try again")
            await asyncio.sleep(PLACING_PAUSE_S)

    async def _enter(self, room: RoomRef, template: _Template, lease: Lease) -> EventId:
        """Take over a room that this server is not in. Raises FederationError, RoomIsHere."""
        answer = await self._send(template)
        join = await self._accepted(template, answer)
        try:
            joined = await self._imports.check(room, join, answer)
            await self._imports.enter(room, join, joined, lease)
            self._history.prefer(room, template.server_name)
        except NotAllowed as error:
            raise InvalidResponse(template.server_name, f"its state refuses the join: {error}") from None
        except ProtocolError as error:
            raise InvalidResponse(template.server_name, str(error)) from None
        return join.event_id

    async def _send(self, template: _Template) -> JoinAnswer:
        join, event = template.join, canonical_fragment(template.version, template.join.json)
        return await room_requests.send_join_v2(
            self._client, template.server_name, join.room_id, join.event_id, event
        )

    async def _accepted(self, template: _Template, answer: JoinAnswer) -> Pdu:
        """The join as it is now: where somebody let our user in, with the signature of that user's server.

        Of what the other server gives back for the join only that signature is taken.
        """
        join = template.join
        if AUTHORISER not in join.content:
            return join
        given = answer.event.get("signatures") if answer.event is not None else None
        theirs = given.get(template.server_name) if isinstance(given, dict) else None
        event = {**join.json, "signatures": {**join.json["signatures"], template.server_name: theirs}}
        [outcome] = await self._gate.verify(template.version, [event], pushed=True, event_ids=[join.event_id])
        if isinstance(outcome, RefusedPdu):
            raise InvalidResponse(template.server_name, f"it has not signed the join: {outcome.reason}")
        return outcome

    async def _shared(self, room_id: RoomId) -> SharedRoom | None:
        own_nid = await self._dictionaries.atoms.nid(self._own.server_name)
        async with self._database.connection() as tx:
            return await shared_rooms.find_one(tx, room_id, own_nid)


def _final_answer(error: FederationError) -> MatrixError | None:
    """The answer where it makes no sense to ask another server."""
    match error:
        case RequestRefused(status=403):
            return Forbidden(f"{error.destination} says that the room does not let you in")
        case RequestRefused(errcode="M_INCOMPATIBLE_ROOM_VERSION", room_version=version):
            return IncompatibleRoomVersion(version) if version and version not in ROOM_VERSIONS else None
        case _:
            return None


def _answer(room_id: RoomId, failures: Sequence[FederationError]) -> MatrixError:
    """The answer where every server has failed. Their own texts are not passed on."""
    refused = [failure for failure in failures if isinstance(failure, RequestRefused)]
    errcodes = {failure.errcode for failure in refused}
    if "M_UNABLE_TO_GRANT_JOIN" in errcodes:
        return UnableToGrantJoin("no server that was asked can let you in")
    if "M_UNABLE_TO_AUTHORISE_JOIN" in errcodes:
        return UnableToAuthoriseJoin("no server that was asked can tell whether you may enter")
    missing = [failure for failure in refused if failure.status == 404]
    if len(missing) == len(failures) and errcodes.isdisjoint(WITHOUT_ANSWER):
        return NotFound(f"no server that was asked knows {room_id}")
    if all(isinstance(failure, DestinationDenied) for failure in failures):
        return Forbidden("this server does not talk to the servers of this room")
    return BadGateway(f"no server gave an answer with which {room_id} can be joined")


def _now() -> float:
    return asyncio.get_running_loop().time()
