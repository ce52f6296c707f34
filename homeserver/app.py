"""Builds and wires everything; the only file that sees all layers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from client_api import (
    account,
    capabilities,
    filters,
    login,
    profiles,
    redactions,
    registration,
    room_creation,
    room_directory,
    room_events,
    room_history,
    room_members,
    room_membership,
    room_state,
    room_upgrades,
    server_admin,
    sync,
    versions,
)
from federation.inbound import backfill as inbound_backfill
from federation.inbound import events as inbound_events
from federation.inbound import inviting as inbound_inviting
from federation.inbound import joining as inbound_joining
from federation.inbound import leaving as inbound_leaving
from federation.inbound import public_rooms as inbound_public_rooms
from federation.inbound import queries as inbound_queries
from federation.inbound import server_keys as inbound_server_keys
from federation.inbound import transactions as inbound_transactions
from federation.inbound import version as inbound_version
from homeserver.config import Config, RateLimit
from homeserver.http.application import Address, HttpApplication
from homeserver.http.endpoints import Endpoints
from homeserver.http.rate_limit import Limit, RateLimiter
from homeserver.http_client import HttpClient
from homeserver.metrics import Metrics
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.services import Services
from homeserver.services.account_services import build_account_services
from homeserver.services.capabilities import Capabilities
from homeserver.services.client_events import ClientEvents
from homeserver.services.clock import Clock, strictly_increasing, system_clock
from homeserver.services.deactivations import Deactivations
from homeserver.services.directory_entries import DirectoryEntries
from homeserver.services.federation_services import Ground, build_federation
from homeserver.services.filters import Filters
from homeserver.services.forward_extremities import ForwardExtremities
from homeserver.services.lookups import Lookups
from homeserver.services.notifier import Notifier
from homeserver.services.own_keys import load_own_keys
from homeserver.services.profile_changes import ProfileChanges
from homeserver.services.profiles import Profiles
from homeserver.services.public_rooms import PublicRooms
from homeserver.services.recent_events import RecentEvents
from homeserver.services.room_creation import RoomCreation
from homeserver.services.room_directory import RoomDirectory
from homeserver.services.room_events import RoomEvents
from homeserver.services.room_history import RoomHistory
from homeserver.services.room_membership import RoomMembership
from homeserver.services.room_state import RoomState
from homeserver.services.room_upgrades import RoomUpgrades
from homeserver.services.room_visibility import RoomVisibility
from homeserver.services.server_identity import establish_identity
from homeserver.services.state_snapshots import StateSnapshots
from homeserver.services.sync import Sync
from homeserver.services.sync_sections import SyncSections
from homeserver.workers.deactivations import finish_deactivations
from homeserver.workers.federation_sender import send_to_servers
from homeserver.workers.housekeeping import keep_house
from homeserver.workers.session_watch import SessionWatch
from homeserver.workers.unfinished_joins import finish_joins
from storage import ended_sessions, received_transactions, txn_ids
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.embedded.supervisor import attach_or_start, embedded_postgres
from storage.migrate import migrate
from storage.persister import Persister
from storage.room_heads import RoomHeads, RoomRef
from storage.stream import Stream

log = logging.getLogger(__name__)

ENDPOINTS: Final[Sequence[Endpoints[Any]]] = (
    versions.endpoints,
    registration.endpoints,
    login.endpoints,
    account.endpoints,
    capabilities.endpoints,
    profiles.endpoints,
    filters.endpoints,
    room_creation.endpoints,
    room_upgrades.endpoints,
    room_events.endpoints,
    redactions.endpoints,
    room_membership.endpoints,
    room_history.endpoints,
    room_state.endpoints,
    room_members.endpoints,
    room_directory.endpoints,
    sync.endpoints,
    server_admin.endpoints,
    inbound_public_rooms.endpoints,
    inbound_queries.endpoints,
    inbound_server_keys.endpoints,
    inbound_transactions.endpoints,
    inbound_joining.endpoints,
    inbound_leaving.endpoints,
    inbound_inviting.endpoints,
    inbound_events.endpoints,
    inbound_backfill.endpoints,
    inbound_version.endpoints,
)
"""What the edges serve, one entry for each of their files."""

CONNECTIONS_BESIDE_THE_POOL: Final = 8
"""What the persister, commands and an operator's psql use of the embedded PostgreSQL."""

GRACE_S: Final = 10.0
"""How long running requests may take to finish when the server stops."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    addresses: Sequence[Address]
    services: Services
    database: Database


@asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[Database]:
    """For commands: the migrated database, on the running PostgreSQL or on one started for the block."""
    async with AsyncExitStack() as stack:
        url = config.database.url
        if url is None:
            url = await stack.enter_async_context(
                attach_or_start(config.data_dir, config.database.run_as, _connections(config))
            )
        yield await stack.enter_async_context(_migrated(url, config.database.pool_size))


@asynccontextmanager
async def run_server(config: Config, clock: Clock = system_clock) -> AsyncIterator[Server]:
    """Serve for as long as the block lasts; then finish requests, write what waits, stop PostgreSQL."""
    async with AsyncExitStack() as stack:
        url = config.database.url
        if url is None:
            postgres = await stack.enter_async_context(
                embedded_postgres(config.data_dir, config.database.run_as, _connections(config))
            )
            url = postgres.url
        database = await stack.enter_async_context(_migrated(url, config.database.pool_size))
        yield await stack.enter_async_context(_serve(config, database, clock))


@asynccontextmanager
async def _migrated(url: str, pool_size: int) -> AsyncIterator[Database]:
    database = await Database.open(url, pool_size)
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _serve(config: Config, database: Database, clock: Clock) -> AsyncIterator[Server]:
    metrics = Metrics()
    own_keys = await load_own_keys(database, config.server_name, config.signing_key_file, clock)
    federation_http = HttpClient.of_federation(config.federation)
    dictionaries = Dictionaries(database)
    heads = RoomHeads(database, dictionaries)
    stream = Stream(database)
    await stream.start()
    persister = Persister(database, dictionaries, heads, stream, metrics, clock)
    deactivated = asyncio.Event()
    identity = await establish_identity(database, config.server_name)
    accounts = await build_account_services(
        config, database, dictionaries.atoms, clock=clock, after_deactivation=deactivated.set
    )
    profiles = Profiles(database, dictionaries)
    room_directory = RoomDirectory(
        database,
        dictionaries,
        persister,
        config.server_name,
        clock,
        config.rooms.publish_to_directory,
        config.rooms.aliases_need_membership,
    )
    public_rooms = PublicRooms(database, DirectoryEntries(database, dictionaries))
    recent = RecentEvents(stream.position)
    notifier = Notifier(database, stream)
    visibility = RoomVisibility()
    sections = SyncSections(database, recent, visibility)
    stream.listen(recent.add)
    stream.listen(sections.listen)
    stream.listen(notifier.listen)
    stream.listen_memberships(notifier.listen_memberships)
    snapshots = StateSnapshots(database)
    stream.listen(snapshots.listen)
    extremities = ForwardExtremities(persister, database, config.server_name, clock)
    stream.listen(extremities.listen)

    def redacted(room: RoomRef, target: EventId, redaction: Pdu) -> None:
        heads.forget(room.room_id)
        recent.redact(room.nid, target, redaction)
        sections.redact(target)

    federation = await build_federation(
        config,
        Ground(
            database,
            dictionaries,
            persister,
            stream,
            snapshots,
            extremities,
            own_keys,
            federation_http,
            metrics,
            clock,
            redacted,
        ),
    )
    shared = federation.services
    if config.federation.enabled:
        stream.listen(federation.sending.listen)
    client_events = ClientEvents(visibility, clock)
    creation_clock = strictly_increasing(clock)  # equal create events would be one room
    services = Services(
        **vars(accounts),
        **vars(shared),
        config=config,
        profiles=profiles,
        profile_changes=ProfileChanges(persister, database, profiles, clock),
        filters=Filters(database, clock),
        capabilities=Capabilities(accounts.accounts, config.rooms.default_version),
        room_directory=room_directory,
        public_rooms=public_rooms,
        lookups=Lookups(federation.client, config.server_name, room_directory, profiles, public_rooms),
        room_creation=RoomCreation(
            persister,
            profiles,
            shared.remote_invites,
            config.server_name,
            config.rooms.default_version,
            creation_clock,
            room_directory.may_publish,
        ),
        room_upgrades=RoomUpgrades(persister, database, dictionaries, profiles, creation_clock),
        room_events=RoomEvents(persister, database, clock),
        room_membership=RoomMembership(
            persister,
            database,
            profiles,
            notifier,
            shared.out_of_band,
            shared.remote_joins,
            shared.remote_invites,
            config.server_name,
            clock,
        ),
        room_history=RoomHistory(
            database,
            dictionaries,
            visibility,
            client_events,
            identity.incarnation,
            federation.history,
        ),
        room_state=RoomState(database, dictionaries, visibility, client_events, identity.incarnation),
        sync=Sync(notifier, recent, stream, sections, identity.incarnation, clock),
    )
    metrics.watch(metrics.stream_position, {"stream": "events"}, lambda: stream.position)
    metrics.watch(metrics.queue_length, {"queue": "persister"}, lambda: persister.pending)
    metrics.watch(metrics.queue_length, {"queue": "waiting_syncs"}, lambda: notifier.waiting)
    metrics.watch(metrics.queue_length, {"queue": "state_snapshots"}, lambda: snapshots.waiting)
    metrics.watch(metrics.queue_length, {"queue": "forked_rooms"}, lambda: extremities.waiting)
    sending = federation.sending
    metrics.watch(metrics.queue_length, {"queue": "undistributed_events"}, lambda: sending.undistributed)
    metrics.watch(metrics.queue_length, {"queue": "outgoing_events"}, lambda: sending.waiting_events)
    metrics.watch(metrics.queue_length, {"queue": "outgoing_servers"}, lambda: sending.waiting_servers)
    metrics.watch(metrics.queue_length, {"queue": "outgoing_lag"}, lambda: sending.lag)
    metrics.watch(metrics.cache_entries, {"cache": "room_heads"}, lambda: len(heads))
    metrics.watch(metrics.cache_entries, {"cache": "recent_events"}, lambda: len(recent))
    metrics.watch(metrics.pool_connections, {"state": "open"}, lambda: database.size)
    metrics.watch(metrics.pool_connections, {"state": "idle"}, lambda: database.idle)

    async def database_problem() -> str | None:
        async with database.connection() as tx:
            await tx.fetchval("SELECT 1")
        return None

    async def sweep_txn_ids() -> None:
        async with database.connection() as tx:
            await txn_ids.sweep(tx, clock())

    async def sweep_received_transactions() -> None:
        async with database.connection() as tx:
            await received_transactions.sweep(tx, clock())

    async def sweep_ended_sessions() -> None:
        async with database.connection() as tx:
            await ended_sessions.sweep(tx)

    http = HttpApplication(
        config.listeners,
        [group for group in ENDPOINTS if config.federation.enabled or group.api != "federation"],
        services,
        metrics=metrics,
        rate_limiter=rate_limiter(config),
        readiness={"database": database_problem},
    )
    async with federation_http, asyncio.TaskGroup() as tasks:
        tasks.create_task(persister.run())
        deactivations = Deactivations(database, services.room_membership, clock)
        loops = [
            tasks.create_task(
                keep_house(
                    [
                        sweep_txn_ids,
                        sweep_ended_sessions,
                        sweep_received_transactions,
                        shared.destinations.sweep,
                        federation.sending.sweep,
                    ]
                )
            ),
            tasks.create_task(federation.incoming.run()),
            tasks.create_task(snapshots.run()),
            tasks.create_task(extremities.run()),
            tasks.create_task(SessionWatch(database, services.access_tokens).run()),
            tasks.create_task(finish_deactivations(deactivations, deactivated)),
        ]
        if config.federation.enabled:
            loops.append(tasks.create_task(federation.history.run()))
            loops.append(tasks.create_task(send_to_servers(federation.sending)))
            loops.append(tasks.create_task(finish_joins(shared.remote_joins)))
        try:
            await http.start()
            yield Server(http.addresses, services, database)
        finally:
            notifier.close()
            await http.stop(GRACE_S)
            for loop in loops:
                loop.cancel()
            persister.close()


def rate_limiter(config: Config) -> RateLimiter:
    """The limits of the configuration; without them everything is allowed."""
    limits = {
        name: Limit(limit.per_second, limit.burst)
        for name, limit in config.rate_limits
        if isinstance(limit, RateLimit)
    }
    return RateLimiter(limits, enabled=config.rate_limits.enabled)


def _connections(config: Config) -> int:
    return config.database.pool_size + CONNECTIONS_BESIDE_THE_POOL
