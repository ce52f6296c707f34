"""The services that share rooms with other servers, built one upon the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from federation.outbound.server_discovery import ServerDiscovery
from federation.outbound.signed_client import SignedClient
from federation.outbound.srv_records import SrvRecords
from homeserver.config import Config
from homeserver.http_client import HttpClient
from homeserver.metrics import Metrics
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId, ServerName
from homeserver.server_policy import ServerPolicy
from homeserver.services.clock import Clock
from homeserver.services.destinations import Destinations
from homeserver.services.event_intake import EventIntake
from homeserver.services.federation_sending import FederationSending
from homeserver.services.fetched_history import FetchedHistory
from homeserver.services.fork_placement import ForkPlacement
from homeserver.services.fork_states import ForkStates
from homeserver.services.forward_extremities import ForwardExtremities
from homeserver.services.gap_filling import GapFilling
from homeserver.services.history_fetching import HistoryFetching
from homeserver.services.history_for_servers import HistoryForServers
from homeserver.services.incoming_events import IncomingEvents
from homeserver.services.join_handshakes import JoinHandshakes
from homeserver.services.join_imports import JoinImports
from homeserver.services.missing_events import MissingEvents
from homeserver.services.out_of_band import OutOfBand
from homeserver.services.outgoing_events import OutgoingEvents
from homeserver.services.outliers import Outliers
from homeserver.services.own_keys import OwnKeys
from homeserver.services.pdu_gate import PduGate
from homeserver.services.received_transactions import ReceivedTransactions
from homeserver.services.remote_invites import RemoteInvites
from homeserver.services.remote_joins import RemoteJoins
from homeserver.services.resident_rooms import ResidentRooms
from homeserver.services.served_events import ServedEvents
from homeserver.services.server_access import ServerAccess
from homeserver.services.server_keys import KeyRing
from homeserver.services.server_visibility import ServerVisibility
from homeserver.services.state_snapshots import StateSnapshots
from storage.auth_graphs import AuthGraphs
from storage.database import Database
from storage.dictionaries import Dictionaries
from storage.oob_memberships import OutOfBandStore
from storage.persister import Persister
from storage.room_heads import RoomRef
from storage.stream import Stream


@dataclass(frozen=True)
class FederationServices:
    """All services that deal with other servers."""

    server_policy: ServerPolicy
    server_keys: KeyRing
    destinations: Destinations
    out_of_band: OutOfBand
    remote_joins: RemoteJoins
    remote_invites: RemoteInvites
    resident_rooms: ResidentRooms
    history_for_servers: HistoryForServers
    received_transactions: ReceivedTransactions


@dataclass(frozen=True)
class Federation:
    """The services, and what runs beside them."""

    services: FederationServices
    client: SignedClient
    incoming: IncomingEvents
    history: HistoryFetching
    sending: FederationSending


@dataclass(frozen=True)
class Ground:
    """What the services stand on."""

    database: Database
    dictionaries: Dictionaries
    persister: Persister
    stream: Stream
    snapshots: StateSnapshots
    extremities: ForwardExtremities
    own_keys: OwnKeys
    http: HttpClient
    metrics: Metrics
    clock: Clock
    redacted: Callable[[RoomRef, EventId, Pdu], None]
    """Told of what is redacted without an event of the stream: (room, event, redaction)."""


async def build_federation(config: Config, ground: Ground) -> Federation:
    """Build the services. Nothing is sent and nobody is asked before they are used."""
    database, dictionaries, persister = ground.database, ground.dictionaries, ground.persister
    own, clock = ground.own_keys, ground.clock
    policy = ServerPolicy.of(config)

    def heard(server_name: ServerName) -> None:
        sending.heard(server_name)
        incoming.heard()

    destinations = Destinations(database, clock, heard)
    await destinations.load()
    client = SignedClient(
        ground.http,
        ServerDiscovery(ground.http, SrvRecords.of_system(clock), clock),
        config.server_name,
        own.current,
        policy,
        destinations,
        clock,
    )
    outgoing = OutgoingEvents(own)
    sending = FederationSending(
        database, outgoing, client, destinations, policy, clock, position=ground.stream.position
    )
    key_ring = KeyRing(database, own, client, config.federation.trusted_key_servers, clock)
    gate = PduGate(key_ring, database)
    access = ServerAccess(database)
    graphs = AuthGraphs(database)
    forks = ForkStates(database, dictionaries, graphs)
    served = ServedEvents(database, graphs, outgoing)
    missing = MissingEvents(database, client, gate, Outliers(database, dictionaries, clock), forks)
    intake = EventIntake(
        database,
        persister,
        ForkPlacement(database, dictionaries, forks, config.server_name),
        ground.extremities,
    )
    gaps = GapFilling(database, persister, intake, missing, config.server_name)
    incoming = IncomingEvents(database, dictionaries, persister, intake, gaps, access, config.server_name)
    history = HistoryFetching(
        database,
        dictionaries,
        client,
        FetchedHistory(database, missing, ground.redacted),
        config.server_name,
        clock,
    )
    imports = JoinImports(
        database, dictionaries, persister, gate, ground.snapshots, config.server_name, clock
    )
    handshakes = JoinHandshakes(
        database, dictionaries, client, gate, imports, incoming, history, sending, own, clock
    )
    out_of_band = OutOfBand(
        database,
        OutOfBandStore(database, dictionaries, config.server_name),
        ground.stream,
        client,
        gate,
        access,
        own,
        clock,
    )
    services = FederationServices(
        server_policy=policy,
        server_keys=key_ring,
        destinations=destinations,
        out_of_band=out_of_band,
        remote_joins=RemoteJoins(database, handshakes, incoming, clock),
        remote_invites=RemoteInvites(persister, incoming, client, gate, key_ring, outgoing, clock),
        resident_rooms=ResidentRooms(
            database, dictionaries, persister, gate, incoming, served, access, own, clock
        ),
        history_for_servers=HistoryForServers(database, access, ServerVisibility(), served, clock),
        received_transactions=ReceivedTransactions(
            database,
            dictionaries,
            gate,
            access,
            incoming,
            out_of_band,
            config.server_name,
            ground.metrics,
            clock,
        ),
    )
    return Federation(services, client, incoming, history, sending)
