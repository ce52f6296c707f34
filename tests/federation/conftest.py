"""Other homeservers on loopback addresses, with certificates of the test's own authority."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from storage.database import Database
from tests.federation.peers import Authority, OurSide, Peer, our_side, running_peer
from tests.servers import MovableClock


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority whose certificates all servers have."""
    return Authority.new(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def clock() -> MovableClock:
    """The clock of our side and of its peers."""
    return MovableClock()


@pytest.fixture
async def peer(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """Another homeserver."""
    async with running_peer(authority, clock) as peer:
        yield peer


@pytest.fixture
async def notary(authority: Authority, clock: MovableClock) -> AsyncIterator[Peer]:
    """One more homeserver, which is asked for the keys of others."""
    async with running_peer(authority, clock) as notary:
        yield notary


@pytest.fixture
async def ours(database: Database, authority: Authority, clock: MovableClock) -> AsyncIterator[OurSide]:
    """Our services."""
    async with our_side(database, authority, clock) as ours:
        yield ours
