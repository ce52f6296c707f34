"""The servers of the stories, and the two sides that a story is told from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.clients import Client
from tests.server_process import HomeserverProcess
from tests.servers import unique_name
from tests.shared_rooms import join_over, until_agreed


@dataclass(frozen=True)
class Servers:
    """The servers that all stories share."""

    lair: HomeserverProcess
    second_lair: HomeserverProcess
    synapse: HomeserverProcess


@dataclass(frozen=True)
class Sides:
    """A user who makes rooms, and one of the other server."""

    host: Client
    guest: Client
    version: str

    async def new_room(self, **wanted: Any) -> str:
        """A room of the host's."""
        return await self.host.create_room(room_version=self.version, **wanted)

    async def shared_room(self, **wanted: Any) -> str:
        """A room of the host's that the guest has joined."""
        room_id = await self.new_room(**wanted)
        await self.enter(room_id)
        await until_agreed([self.host, self.guest], room_id)
        return room_id

    async def enter(self, room_id: str) -> None:
        """The guest joins over the host's server."""
        await join_over(self.guest, room_id, server_of(self.host))


async def neighbour_of(user: Client, name: str = "neighbour") -> Client:
    """A new user of the same server."""
    return await user.with_token(None).register(unique_name(name))


def server_of(user: Client) -> str:
    """The name of a user's server."""
    return user.user_id.partition(":")[2]
