"""The rules of a chat server: load, decide, save, notify. Services: the list of them all, for the edges."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.config import Config
from homeserver.services.account_services import AccountServices
from homeserver.services.capabilities import Capabilities
from homeserver.services.federation_services import FederationServices
from homeserver.services.filters import Filters
from homeserver.services.lookups import Lookups
from homeserver.services.profile_changes import ProfileChanges
from homeserver.services.profiles import Profiles
from homeserver.services.public_rooms import PublicRooms
from homeserver.services.room_creation import RoomCreation
from homeserver.services.room_directory import RoomDirectory
from homeserver.services.room_events import RoomEvents
from homeserver.services.room_history import RoomHistory
from homeserver.services.room_membership import RoomMembership
from homeserver.services.room_state import RoomState
from homeserver.services.room_upgrades import RoomUpgrades
from homeserver.services.sync import Sync


@dataclass(frozen=True)
class Services(AccountServices, FederationServices):
    """All services; those of accounts, and those that deal with other servers, are inherited."""

    config: Config
    profiles: Profiles
    profile_changes: ProfileChanges
    filters: Filters
    capabilities: Capabilities
    room_directory: RoomDirectory
    public_rooms: PublicRooms
    lookups: Lookups
    room_creation: RoomCreation
    room_upgrades: RoomUpgrades
    room_events: RoomEvents
    room_membership: RoomMembership
    room_history: RoomHistory
    room_state: RoomState
    sync: Sync
