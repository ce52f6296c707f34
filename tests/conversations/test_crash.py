"""What was acknowledged survives: many senders, while server and database are killed again and again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest

from homeserver.protocol.event_hashes import decode_event_id
from storage.event_codec import decode_event
from tests.server_process import ServerProcess

SENDERS = 12
MESSAGES = 60
KILLS = 6


async def request(
    session: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any], token: str = ""
) -> dict[str, Any]:
    """One request, repeated until the server answers with anything but 5xx."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    while True:
        try:
            async with session.request(method, url, json=body, headers=headers) as response:
                answer: dict[str, Any] = await response.json()
                if response.status < 500:
                    assert response.status == 200, answer
                    return answer
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            pass
        await asyncio.sleep(0.02)


async def register(session: aiohttp.ClientSession, server: ServerProcess, name: str) -> str:
    body = {"username": name, "password": "secret-of-a-test", "auth": {"type": "m.login.dummy"}}
    answer = await request(session, "POST", f"{server.url}/_matrix/client/v3/register", body)
    return str(answer["access_token"])


@pytest.mark.invariant("PROM-ACK")
@pytest.mark.invariant("PROM-TXN")
async def test_prom_ack_and_prom_txn_hold_while_server_and_database_are_killed(tmp_path: Path) -> None:
    chance = random.Random()
    seed = chance.randrange(2**32)
    print(f"seed {seed}")
    chance.seed(seed)
    server = ServerProcess(tmp_path)
    timeout = aiohttp.ClientTimeout(total=10)
    async with server, aiohttp.ClientSession(timeout=timeout) as session:
        tokens = [await register(session, server, f"user{number}") for number in range(SENDERS)]
        client = f"{server.url}/_matrix/client/v3"
        rooms = []
        for _ in range(3):
            body = {"preset": "public_chat"}
            room_id = (await request(session, "POST", f"{client}/createRoom", body, tokens[0]))["room_id"]
            rooms.append(room_id)
            for token in tokens[1:]:
                await request(session, "POST", f"{client}/rooms/{quote(room_id)}/join", {}, token)
        acknowledged: dict[tuple[int, int], str] = {}

        async def send(sender: int) -> None:
            for number in range(MESSAGES):
                path = f"{client}/rooms/{quote(rooms[(sender + number) % 3])}/send/m.room.message"
                body = {"msgtype": "m.text", "body": f"{sender}/{number}"}
                answer = await request(session, "PUT", f"{path}/{number}", body, tokens[sender])
                acknowledged[sender, number] = answer["event_id"]
                again = await request(session, "PUT", f"{path}/{number}", body, tokens[sender])
                assert again["event_id"] == answer["event_id"]

        async def kill() -> None:
            for number in range(KILLS):
                before = len(acknowledged)
                while len(acknowledged) - before < SENDERS * MESSAGES // (2 * KILLS):
                    await asyncio.sleep(chance.random() / 20)
                if number % 2:
                    server.kill_database()
                else:
                    await server.kill()
                    await server.start()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill())
            for sender in range(SENDERS):
                tasks.create_task(send(sender))

        connection = await asyncpg.connect(server.database_url)
        bodies = await messages(connection)
        await check_order(connection)
        await connection.close()
    assert sorted(bodies) == sorted(
        (event_id, f"{sender}/{number}") for (sender, number), event_id in acknowledged.items()
    )


async def messages(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    rows = await connection.fetch("SELECT event_id, flags, json FROM events")
    events = [(decode_event_id(row["event_id"]), decode_event(row["flags"], row["json"])) for row in rows]
    return [
        (event_id, event["content"]["body"])
        for event_id, event in events
        if event["type"] == "m.room.message"
    ]


async def check_order(connection: asyncpg.Connection) -> None:
    """Within a room the sequence has no gap, and the stream has its order."""
    rows = await connection.fetch(
        "SELECT e.room_nid, e.room_seq, s.pos FROM events e JOIN stream s ON s.ref = e.nid ORDER BY 1, 2"
    )
    by_room: dict[int, list[Any]] = {}
    for row in rows:
        by_room.setdefault(row["room_nid"], []).append(row)
    for room in by_room.values():
        assert [row["room_seq"] for row in room] == list(range(1, len(room) + 1))
        assert [row["pos"] for row in room] == sorted(row["pos"] for row in room)
