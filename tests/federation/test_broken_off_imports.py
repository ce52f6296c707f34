"""A state that is stored in parts: wherever that breaks off, what is there has its auth events."""

from __future__ import annotations

from typing import Any

import pytest

from federation.outbound.signed_client import uri_of
from homeserver.errors import Unavailable
from storage import outliers
from tests.clients import Client
from tests.federation.homeservers import ask
from tests.federation.joined_rooms import join_by, joined
from tests.federation.peers import Peer
from tests.federation.played_rooms import V1, PlayedRoom, user_of
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer


@versions_of_each_form
async def test_a_join_that_broke_off_within_the_state_leaves_no_event_without_its_auth_events(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    others = [user_of(peer, f"guest-{number}") for number in range(12)]
    room = PlayedRoom.new([peer], version=version, members=[user_of(peer, "tea"), *others])
    insert_chunk, chunks = outliers._insert_chunk, []

    async def break_off(*args: Any) -> Any:
        chunks.append(args)
        if len(chunks) == 2:
            raise Unavailable("the database is gone")
        return await insert_chunk(*args)

    monkeypatch.setattr(outliers, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(outliers, "_insert_chunk", break_off)
    broke_off = await join_by(alice, room.room_id, peer.name)
    await joined(alice, room)
    join = room.state["m.room.member", alice.user_id]
    uri = uri_of(f"{V1}/state_ids", room.room_id, query={"event_id": join})
    told = (await ask(here, peer, uri)).body

    assert broke_off.status == 503
    assert set(told["auth_chain_ids"]) >= chain_of(room, told["pdu_ids"])
    async with here.services.room_history.database.connection() as tx:
        dangling = """
            SELECT count(*) FROM events JOIN rooms ON rooms.nid = room_nid, unnest(auth) AS named
            WHERE room_id = $1 AND NOT EXISTS (SELECT FROM events AS other WHERE other.nid = named)
        """
        assert await tx.fetchval(dangling, room.room_id) == 0


def chain_of(room: PlayedRoom, event_ids: list[Any]) -> set[str]:
    """What some events, and those that they name, have among their auth events."""
    chain: set[str] = set()
    to_do = list(event_ids)
    while to_do:
        named = [one for one in room.events[to_do.pop()].auth_events if one not in chain]
        chain.update(named)
        to_do += named
    return chain
