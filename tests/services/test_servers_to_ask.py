"""Whom this server asks about a room."""

from __future__ import annotations

from homeserver.protocol.identifiers import RoomId
from homeserver.services.servers_to_ask import creators_server, servers_to_ask
from storage.database import Database
from tests.storage.stores import SERVER, open_store


async def test_those_that_are_named_come_first_then_those_with_the_most_members_and_never_ours(
    database: Database, database_url: str
) -> None:
    async with open_store(database_url) as store:
        room_id = await store.room(await store.user("alice"))
        members = [f"@{name}:{SERVER}" for name in "abc"]
        members += ["@a:milk.test", "@a:tea.test", "@b:tea.test"]
        users = [await store.dictionaries.atoms.nid(user_id) for user_id in members]
        servers = [await store.dictionaries.atoms.nid(user_id.partition(":")[2]) for user_id in members]
        async with database.connection() as tx:
            query = """
                INSERT INTO memberships (user_nid, room_nid, server_nid, membership, event_nid, pos)
                SELECT one.user_nid, rooms.nid, one.server_nid, 1, 0, 0
                FROM rooms, unnest($1::bigint[], $2::bigint[]) AS one(user_nid, server_nid) WHERE room_id = $3
            """
            await tx.execute(query, users, servers, room_id)

        async def asked(*named: str, most: int) -> list[str]:
            last = ["milk.test", "last.test", SERVER]
            return [*await servers_to_ask(database, room_id, named, last=last, own=SERVER, most=most)]

        assert await asked(most=1) == ["tea.test"]
        assert await asked(most=2) == ["tea.test", "milk.test"]
        found = await asked("milk.test", "no server", SERVER, "milk.test", most=9)
        assert found == ["milk.test", "tea.test", "last.test"]
        assert await asked("a.test", "b.test", most=1) == ["a.test"]


def test_only_the_ids_of_older_rooms_name_a_server() -> None:
    assert creators_server(RoomId("!tea:milk.test:8448")) == ["milk.test:8448"]
    assert creators_server(RoomId("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM")) == []
