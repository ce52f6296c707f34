"""Our users join rooms that only other servers are in."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import uuid4

import pytest

from homeserver.errors import Unavailable
from homeserver.protocol.auth_events import AUTHORISER, CREATE
from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import join_handshakes, remote_joins
from homeserver.services.join_imports import JoinImports
from storage.persist_connection import PersistConnection
from storage.persister import Persister
from storage.room_heads import RoomRef
from storage.room_imports import MAX_PAUSE_MS, PAUSE_MS
from tests.client_api.rooms import new_room, room_path
from tests.clients import Client
from tests.federation.homeservers import NOBODY_THERE, name_of, new_word
from tests.federation.joined_rooms import bodies, comes, join_by, joined, members, state_of
from tests.federation.peers import Answer, Asked, Peer, error_answer, json_answer
from tests.federation.played_rooms import PlayedRoom, send, user_of
from tests.federation.room_answers import ENDPOINTS, answer_to_join
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer, unique_name

FORBIDDEN, NOT_FOUND, NO_ANSWER = (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"), (502, "M_UNKNOWN")
UNABLE: Final = {"grant": "M_UNABLE_TO_GRANT_JOIN", "authorise": "M_UNABLE_TO_AUTHORISE_JOIN"}


# -- what becomes of a join


@versions_of_each_form
async def test_a_room_of_other_servers_is_joined(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer, notary], version=version)
    tea, coffee = user_of(peer, "tea"), user_of(notary, "tea")
    room.event(tea, "m.room.topic", {"topic": "tea"}, "")
    room.event(coffee, "m.room.member", {"membership": "leave"}, coffee)
    room.event(tea, "m.room.message", {"body": "before"})
    since = (await alice.sync())["next_batch"]
    join = await joined(alice, room, reason="thirsty")
    answer = await alice.sync(since)
    timeline = answer["rooms"]["join"][room.room_id]["timeline"]

    assert (join.sender, join.content) == (alice.user_id, {"membership": "join", "reason": "thirsty"})
    assert set(join.json["signatures"]) == {name_of(here)}
    assert await members(alice, room) == {tea, alice.user_id}
    assert await state_of(alice, room, "m.room.topic") == {"topic": "tea"}
    assert (await state_of(alice, room, "m.room.member", coffee))["membership"] == "leave"
    assert [event["event_id"] for event in timeline["events"]] == [join.event_id]
    assert timeline["limited"]
    state = {(e["type"], e["state_key"]) for e in answer["rooms"]["join"][room.room_id]["state"]["events"]}
    assert state >= {CREATE, ("m.room.topic", ""), ("m.room.member", tea)}


@versions_of_each_form
async def test_what_is_said_after_the_join_comes(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    await joined(alice, room)
    await send(here, peer, [room.event(user_of(peer, "tea"), "m.room.message", {"body": "tea?"})])
    await send(here, peer, [room.event(user_of(peer, "tea"), "m.room.topic", {"topic": "tea"}, "")])
    event_id = await alice.say(room.room_id, "yes")

    assert await bodies(alice, room) == ["tea?", "yes"]
    assert await state_of(alice, room, "m.room.topic") == {"topic": "tea"}
    assert event_id


async def test_the_id_of_an_older_room_says_whom_to_ask(peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer], version="11")
    answer = await join_by(alice, room.room_id)

    assert (answer.status, answer.body) == (200, {"room_id": room.room_id})


async def test_what_the_join_names_is_known_to_be_missing(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    state = room.event(tea, "m.room.topic", {"topic": "tea"}, "")
    message = room.event(tea, "m.room.message", {"body": "a fork"}, prev=state.prev_events)
    join = await joined(alice, room)
    async with here.services.room_directory.database.connection() as tx:
        rows = await tx.fetch(
            "SELECT event_id FROM missing_prev JOIN rooms ON nid = room_nid WHERE room_id = $1", room.room_id
        )

    assert set(join.prev_events) == {state.event_id, message.event_id}
    assert {decode_event_id(row["event_id"]) for row in rows} == set(join.prev_events)


async def test_events_that_come_before_the_join_is_stored_wait_for_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])

    async def early(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        message = room.event(user_of(peer, "tea"), "m.room.message", {"body": "welcome"})
        assert (await send(here, peer, [message])).body == {"pdus": {message.event_id: {}}}
        return answer_to_join(room, join)

    room.answers["send_join"] = early
    await joined(alice, room)

    assert await comes(alice, room, "welcome")


async def test_two_who_join_at_once_make_one_request(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    carol = await here.nobody.register(unique_name("carol"))
    async with asyncio.TaskGroup() as tasks:
        for client in (alice, carol):
            tasks.create_task(join_by(client, room.room_id, peer.name))
    there = await members(alice, room)

    assert len(room.requests("send_join")) == 1
    assert there == {user_of(peer, "tea"), alice.user_id, carol.user_id}


async def test_who_waited_for_a_join_that_failed_tries_too(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    carol = await here.nobody.register(unique_name("carol"))
    room.event(user_of(peer, "tea"), "m.room.member", {"membership": "ban"}, alice.user_id)
    room.answers["make_join"] = lambda asked: (
        error_answer(403, "M_FORBIDDEN") if asked.names["user_id"] == alice.user_id else None
    )
    banned, other = await asyncio.gather(
        join_by(alice, room.room_id, peer.name), join_by(carol, room.room_id, peer.name)
    )

    assert (banned.error, other.status) == (FORBIDDEN, 200)


@versions_of_each_form
async def test_a_join_that_broke_off_is_made_again(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    topic = room.event(user_of(peer, "tea"), "m.room.topic", {"topic": "tea"}, "")
    with monkeypatch.context() as broken:

        async def fail(*_arguments: Any, **_options: Any) -> None:
            raise Unavailable("broken")

        broken.setattr(Persister, "append", fail)
        first = await join_by(alice, room.room_id, peer.name)
    room.event(user_of(peer, "tea"), "m.room.topic", {"topic": "coffee"}, "")
    await joined(alice, room)
    await send(here, peer, [room.event(user_of(peer, "tea"), "m.room.message", {"body": "at last"})])

    assert first.error == (503, "M_UNKNOWN")
    assert topic.event_id != room.state["m.room.topic", ""]
    assert await state_of(alice, room, "m.room.topic") == {"topic": "coffee"}
    assert await bodies(alice, room) == ["at last"]
    assert await members(alice, room) == {user_of(peer, "tea"), alice.user_id}


async def test_an_attempt_to_join_a_room_leaves_nothing_of_what_the_room_was_in_memory(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = PlayedRoom.new([peer])
    heads = here.services.room_events.persister._heads
    seen = []

    async def fail(*_: Any) -> None:
        seen.append(heads.cached(room.room_id, joining=True))
        raise ValueError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(PersistConnection, "persist", fail)
        answer = await join_by(alice, room.room_id, peer.name)

    assert answer.status == 500
    assert None not in seen
    assert heads.cached(room.room_id, joining=True) is None


async def put_lease(
    server: RunningServer, room: PlayedRoom, user: Client, *, join: Pdu | None = None
) -> None:
    """What a process leaves that dies while it joins a room; the lease has run out.

    `join`: the one that it has published.
    """
    async with server.services.room_directory.database.connection() as tx:
        query = """
            INSERT INTO room_joins (room_nid, leased_until, user_id, content, servers, join_nid)
            SELECT nid, $2, $3, '{"displayname":"Alice"}', $4, (SELECT nid FROM events WHERE event_id = $5)
            FROM rooms WHERE room_id = $1
        """
        servers = [peer.name for peer in room.peers]
        event_id = None if join is None else encode_event_id(join.event_id)
        await tx.execute(query, room.room_id, server.clock() - 1, user.user_id, servers, event_id)


async def pass_time(server: RunningServer, room: PlayedRoom, time_ms: int) -> None:
    """Let a join that broke off have waited so much longer."""
    async with server.services.room_directory.database.connection() as tx:
        query = """
            UPDATE room_joins SET leased_until = leased_until - $2
            FROM rooms WHERE nid = room_nid AND room_id = $1
        """
        await tx.execute(query, room.room_id, time_ms)


async def leases(server: RunningServer, room: PlayedRoom) -> int:
    async with server.services.room_directory.database.connection() as tx:
        query = "SELECT count(*) FROM room_joins JOIN rooms ON nid = room_nid WHERE room_id = $1"
        return int(await tx.fetchval(query, room.room_id))


async def test_the_lease_of_a_process_that_died_runs_out(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    del room.answers["send_join"]
    await joined(alice, room)

    assert await leases(here, room) == 0


async def test_the_join_of_a_process_that_died_is_finished(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    del room.answers["send_join"]

    async with asyncio.timeout(30):
        while alice.user_id not in await members(alice, room):
            await here.services.remote_joins.finish_broken_off()
    join = room.events[room.state["m.room.member", alice.user_id]]

    assert join.content == {"membership": "join", "displayname": "Alice"}
    assert await leases(here, room) == 0


async def test_a_join_that_broke_off_and_is_refused_is_given_up(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    room.fail("make_join", 403, "M_FORBIDDEN")

    async with asyncio.timeout(30):
        while await leases(here, room):
            await here.services.remote_joins.finish_broken_off()
    assert alice.user_id not in await members(alice, room)


async def test_a_join_that_broke_off_is_tried_ten_times(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    room.fail("send_join", 400)
    found = []
    for _ in range(remote_joins.MAX_ATTEMPTS):
        found.append(await leases(here, room))
        await pass_time(here, room, MAX_PAUSE_MS + 1)
        await here.services.remote_joins.finish_broken_off()

    assert found == [1] * remote_joins.MAX_ATTEMPTS
    assert len(room.requests("send_join")) == 1 + remote_joins.MAX_ATTEMPTS
    assert await leases(here, room) == 0


@pytest.mark.parametrize("endpoint", ["make_join", "send_join"])
async def test_a_join_that_broke_off_is_tried_again_after_growing_pauses(
    here: RunningServer, peer: Peer, alice: Client, endpoint: str
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    room.fail(endpoint, 400)
    before, tried = len(room.requests(endpoint)), []
    for pause in (0, PAUSE_MS // 2, PAUSE_MS, 2 * PAUSE_MS, PAUSE_MS + 1):
        await pass_time(here, room, pause)
        await here.services.remote_joins.finish_broken_off()
        tried.append(len(room.requests(endpoint)) - before)

    assert tried == [1, 1, 2, 2, 3]


async def test_a_join_that_is_published_is_not_made_again(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    join = await joined(alice, room)
    await put_lease(here, room, alice, join=join)
    assert (await alice.post(room_path(room.room_id, "leave"), {})).status == 200
    await here.services.remote_joins.finish_broken_off()

    assert await leases(here, room) == 0
    assert len(room.requests("send_join")) == 1


async def test_an_attempt_that_fails_after_a_join_that_is_published_leaves_nothing_to_be_made(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    join = await joined(alice, room)
    assert (await alice.post(room_path(room.room_id, "leave"), {})).status == 200
    await put_lease(here, room, alice, join=join)
    room.fail("send_join", 400)
    answer = await join_by(alice, room.room_id, peer.name)

    assert answer.error == NO_ANSWER
    assert await leases(here, room) == 0


async def test_an_attempt_that_fails_leaves_a_join_that_broke_off_as_it_was(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    carol = await here.nobody.register(unique_name("carol"))
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    early = room.event(user_of(peer, "tea"), "m.room.message", {"body": "early"})
    await send(here, peer, [early])
    failed = await join_by(carol, room.room_id, peer.name)
    waiting = await waiting_events(here, room)
    del room.answers["send_join"]
    await here.services.remote_joins.finish_broken_off()

    assert failed.error == NOT_FOUND
    assert waiting == 1
    assert await members(alice, room) == {user_of(peer, "tea"), alice.user_id}
    assert await leases(here, room) == 0


async def test_what_comes_early_waits_while_one_server_after_another_is_asked(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer, notary])
    held = []

    async def early(asked: Asked) -> Answer:
        message = room.event(user_of(peer, "tea"), "m.room.message", {"body": "early"}, apart=True)
        await send(here, peer, [message])
        return error_answer(502, "M_UNKNOWN")

    async def counted(asked: Asked) -> Answer:
        held.append((await leases(here, room), await waiting_events(here, room)))
        answer = ENDPOINTS["make_join"][2](room, asked)
        assert answer is not None
        return answer

    room.answers["send_join"] = lambda asked: early(asked) if asked.peer is peer else None
    room.answers["make_join"] = lambda asked: counted(asked) if asked.peer is notary else None
    answer = await join_by(alice, room.room_id, peer.name, notary.name)

    assert answer.status == 200
    assert held == [(1, 1)]


async def test_a_join_that_breaks_off_again_and_again_keeps_no_other_from_being_made(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, room = PlayedRoom.new([peer]), PlayedRoom.new([peer])
    for one in (broken, room):
        one.fail("send_join", 404, "M_NOT_FOUND")
        await join_by(alice, one.room_id, peer.name)
        await put_lease(here, one, alice)
        del one.answers["send_join"]
    check = JoinImports.check

    async def fail(imports: JoinImports, ref: RoomRef, *arguments: Any) -> Any:
        if ref.room_id == broken.room_id:
            raise ValueError("broken")
        return await check(imports, ref, *arguments)

    monkeypatch.setattr(JoinImports, "check", fail)
    await here.services.remote_joins.finish_broken_off()

    assert await leases(here, broken) == 1
    assert await members(alice, room) == {user_of(peer, "tea"), alice.user_id}


async def test_what_waits_for_a_join_that_is_given_up_is_left_out(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    room.fail("send_join", 404, "M_NOT_FOUND")
    await join_by(alice, room.room_id, peer.name)
    await put_lease(here, room, alice)
    early = room.event(user_of(peer, "tea"), "m.room.message", {"body": "early"})
    await send(here, peer, [early])
    waiting = await waiting_events(here, room)
    room.fail("make_join", 403, "M_FORBIDDEN")
    await here.services.remote_joins.finish_broken_off()
    async with asyncio.timeout(20):
        while await waiting_events(here, room):
            await asyncio.sleep(0.02)

    assert waiting == 1
    assert await leases(here, room) == 0


async def waiting_events(server: RunningServer, room: PlayedRoom) -> int:
    async with server.services.room_directory.database.connection() as tx:
        query = "SELECT count(*) FROM waiting_pdus JOIN rooms ON nid = room_nid WHERE room_id = $1"
        return int(await tx.fetchval(query, room.room_id))


@versions_of_each_form
async def test_what_the_state_says_of_others_of_ours_holds(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    carol = await here.nobody.register(unique_name("carol"))
    dave = await here.nobody.register(unique_name("dave"))
    tea = user_of(peer, "tea")
    since = {client: (await client.sync())["next_batch"] for client in (carol, dave)}
    room.event(tea, "m.room.member", {"membership": "invite"}, carol.user_id)
    room.event(tea, "m.room.member", {"membership": "ban"}, dave.user_id)
    await joined(alice, room)
    invited = await carol.sync(since[carol])

    assert set(invited["rooms"]["invite"]) == {room.room_id}
    assert (await join_by(dave, room.room_id, peer.name)).error == FORBIDDEN
    assert (await join_by(carol, room.room_id)).status == 200
    assert await members(alice, room) == {tea, alice.user_id, carol.user_id}


async def test_an_invite_that_came_before_becomes_part_of_the_room(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], join_rules={"join_rule": "invite"})
    assert (await room.invite(here, user_of(peer, "tea"), alice.user_id)).status == 200
    await joined(alice, room)
    answer = await alice.sync()

    assert room.room_id in answer["rooms"]["join"]
    assert room.room_id not in answer["rooms"].get("invite", {})
    assert (await join_by(alice, room.room_id)).status == 200


# -- restricted rooms


async def test_the_server_that_lets_us_in_signs_too(here: RunningServer, peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer], join_rules={"join_rule": "restricted", "allow": []})
    join = await joined(alice, room)
    event = await alice.get(room_path(room.room_id, "event", join.event_id))

    assert join.content[AUTHORISER] == user_of(peer, "tea")
    assert event.body["content"][AUTHORISER] == user_of(peer, "tea")
    assert set(join.json["signatures"]) == {peer.name, name_of(here)}


@pytest.mark.invariant("SEC-SIGN-2")
@pytest.mark.parametrize("fault", ["no event", "no signature", "bad signature", "other event"])
async def test_sec_sign_2_a_join_that_is_not_signed_by_who_lets_us_in_is_none(
    here: RunningServer, peer: Peer, alice: Client, fault: str
) -> None:
    room = PlayedRoom.new([peer], join_rules={"join_rule": "restricted", "allow": []})

    def answer(asked: Asked) -> Answer:
        event = dict(asked.content)
        join = room.add(room.parsed(event))
        given: Any = {
            "no event": None,
            "no signature": event,
            "bad signature": {**event, "signatures": {peer.name: {peer.keys[0].key_id: "A" * 86}}},
            "other event": room.events[room.state[CREATE]].json,
        }[fault]
        return answer_to_join(room, join, event=given)

    room.answers["send_join"] = answer

    assert (await join_by(alice, room.room_id, peer.name)).error == NO_ANSWER
    assert await members(alice, room) == set()


async def test_of_what_comes_back_for_the_join_only_the_signature_is_taken(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer], join_rules={"join_rule": "restricted", "allow": []})

    def answer(asked: Asked) -> Answer:
        signed = sign_event(room.version, asked.content, peer.name, peer.keys[0])
        join = room.add(room.parsed(signed))
        altered = {**signed, "content": {**signed["content"], "displayname": "Mallory"}}
        return answer_to_join(room, join, event={**altered, "unsigned": {"age": 5}, "redacts": "$x"})

    room.answers["send_join"] = answer
    join = await joined(alice, room, reason="thirsty")
    member = await state_of(alice, room, "m.room.member", alice.user_id)

    assert (
        member
        == join.content
        == {"membership": "join", "reason": "thirsty", AUTHORISER: user_of(peer, "tea")}
    )


@pytest.mark.parametrize("unable", UNABLE.values(), ids=UNABLE)
async def test_another_server_may_be_able_to_let_the_user_in(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, unable: str
) -> None:
    room = PlayedRoom.new([peer, notary], members=[user_of(notary, "tea"), user_of(peer, "tea")])
    room.answers["make_join"] = lambda asked: error_answer(400, unable) if asked.peer is peer else None
    answer = await join_by(alice, room.room_id, peer.name, notary.name)
    room.answers["make_join"] = lambda _asked: error_answer(400, unable)
    other = PlayedRoom.new([peer])
    other.answers["make_join"] = lambda _asked: error_answer(400, unable)

    assert answer.status == 200
    assert (await join_by(alice, other.room_id, peer.name)).error == (400, unable)


async def test_who_cannot_be_let_in_here_is_let_in_by_another_server(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    gate = await new_room(alice)
    rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": gate}]}
    room = PlayedRoom.new([peer], join_rules=rules, power_levels={"invite": 50})
    await joined(alice, room)
    others = [await here.nobody.register(unique_name()) for _ in range(2)]
    for other in others:
        await other.join(gate)
    joins = await asyncio.gather(*(joined(other, room) for other in others))
    everybody = {user_of(peer, "tea"), alice.user_id, *(other.user_id for other in others)}

    assert [join.content[AUTHORISER] for join in joins] == [user_of(peer, "tea")] * 2
    assert await members(alice, room) == everybody


async def test_a_join_that_others_take_but_our_rules_refuse_is_none(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    """The peer names somebody who may not let others in."""
    gate = await new_room(alice)
    rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": gate}]}
    tea, weak = user_of(peer, "tea"), user_of(peer, "weak")
    room = PlayedRoom.new([peer], members=[tea, weak], power_levels={"invite": 50})
    room.event(tea, "m.room.join_rules", rules, "")
    await joined(alice, room)
    other = await here.nobody.register(unique_name())
    await other.join(gate)

    def by_weak(asked: Asked) -> Answer:
        content = {"membership": "join", AUTHORISER: weak}
        event = room.event(other.user_id, "m.room.member", content, other.user_id, apart=True, signed_by=peer)
        return json_answer({"room_version": room.version.version, "event": event.json})

    room.answers["make_join"] = by_weak
    assert (await join_by(other, room.room_id, peer.name)).error == (403, "M_FORBIDDEN")
    assert await members(alice, room) == {tea, weak, alice.user_id}


# -- what other servers answer


@pytest.mark.invariant("SEC-SIGN-1")
@pytest.mark.parametrize(
    "changes",
    [
        {"type": "m.room.power_levels", "state_key": "", "content": {"users": {"@mallory:evil.test": 100}}},
        {"type": "m.room.member", "content": {"membership": "ban"}},
        {"content": {"membership": "invite"}},
        {"sender": "@mallory:evil.test"},
        {"state_key": "@mallory:evil.test"},
        {"room_id": "!other:evil.test"},
        {"content": {"membership": "join", AUTHORISER: "@mallory:evil.test"}},
        {"prev_events": []},
        {"prev_events": "x"},
        {"depth": "x"},
        None,
    ],
    ids=str,
)
async def test_sec_sign_1_a_malicious_template_gets_no_signature(
    peer: Peer, alice: Client, changes: JsonObject | None
) -> None:
    room = PlayedRoom.new([peer])
    template = {
        "type": "m.room.member",
        "room_id": room.room_id,
        "sender": alice.user_id,
        "state_key": alice.user_id,
        "content": {"membership": "join"},
        "prev_events": room.heads,
        "auth_events": room.heads,
        "depth": 5,
    }
    event = None if changes is None else {**template, **changes}
    room.answers["make_join"] = lambda _asked: json_answer({"room_version": "12", "event": event})

    assert (await join_by(alice, room.room_id, peer.name)).error == NO_ANSWER
    assert room.requests("send_join") == []


@pytest.mark.invariant("SEC-SIGN-1")
async def test_sec_sign_1_only_our_own_words_are_signed(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    template = {
        "type": "m.room.member",
        "room_id": room.room_id,
        "sender": alice.user_id,
        "state_key": alice.user_id,
        "content": {"membership": "join", "displayname": "Mallory", "third_party_invite": {"signed": {}}},
        "prev_events": room.heads,
        "auth_events": room.auth_events(
            alice.user_id, "m.room.member", {"membership": "join"}, alice.user_id, room.state
        ),
        "depth": room.depth_after(room.heads),
        "origin_server_ts": 1,
        "origin": "evil.test",
        "redacts": room.heads[0],
        "unsigned": {"age": 5},
        "hashes": {"sha256": "x"},
        "signatures": {"evil.test": {"ed25519:1": "x"}},
    }
    room.answers["make_join"] = lambda _asked: json_answer({"room_version": "12", "event": template})
    join = await joined(alice, room)

    assert set(join.json) == {
        "type", "room_id", "sender", "state_key", "content", "prev_events", "auth_events", "depth",
        "origin_server_ts", "hashes", "signatures",
    }  # fmt: skip
    assert join.content == {"membership": "join"}
    assert join.origin_server_ts == here.clock()


@pytest.mark.parametrize("version", [None, "1", "10", "13", 12, ["12"]])
async def test_a_version_that_was_not_asked_for_is_no_answer(peer: Peer, alice: Client, version: Any) -> None:
    room = PlayedRoom.new([peer])
    room.answers["make_join"] = lambda _asked: json_answer({"room_version": version, "event": {}})

    assert (await join_by(alice, room.room_id, peer.name)).error == NO_ANSWER


@pytest.mark.parametrize(
    ("status", "errcode", "error"),
    [
        (404, "M_NOT_FOUND", NOT_FOUND),
        (404, "M_UNRECOGNIZED", NO_ANSWER),
        (403, "M_FORBIDDEN", FORBIDDEN),
        (400, "M_INVALID_PARAM", NO_ANSWER),
        (400, "M_MISSING_PARAM", NO_ANSWER),
        (400, "M_INCOMPATIBLE_ROOM_VERSION", NO_ANSWER),
        (401, "M_UNAUTHORIZED", NO_ANSWER),
        (429, "M_LIMIT_EXCEEDED", NO_ANSWER),
        (500, "M_UNKNOWN", NO_ANSWER),
    ],
)
@pytest.mark.parametrize("endpoint", ["make_join", "send_join"])
async def test_a_refusal_is_told_in_our_words(
    here: RunningServer,
    peer: Peer,
    alice: Client,
    endpoint: str,
    status: int,
    errcode: str,
    error: tuple[int, str],
) -> None:
    room = PlayedRoom.new([peer])
    room.answers[endpoint] = lambda _asked: json_answer({"errcode": errcode, "error": "<b>tea</b>"}, status)
    answer = await join_by(alice, room.room_id, peer.name)

    assert answer.error == error
    assert "<b>" not in answer.body["error"]


async def test_a_room_of_a_version_that_we_do_not_speak(peer: Peer, alice: Client) -> None:
    room = PlayedRoom.new([peer])
    body = {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "?", "room_version": "13"}
    room.answers["make_join"] = lambda _asked: json_answer(body, 400)
    answer = await join_by(alice, room.room_id, peer.name)

    assert answer.error == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer.body["room_version"] == "13"


async def test_a_room_of_which_nobody_is_known_is_not_found(here: RunningServer, alice: Client) -> None:
    assert (await join_by(alice, "!" + "n" * 43)).error == NOT_FOUND
    assert (await join_by(alice, "!" + "n" * 43, name_of(here), "no server", "")).error == NOT_FOUND
    assert (await join_by(alice, f"!{new_word()}:{name_of(here)}")).error == NOT_FOUND


@pytest.mark.parametrize("failure", [(404, "M_NOT_FOUND"), (500, "M_UNKNOWN"), (400, "M_UNKNOWN")])
@pytest.mark.parametrize("endpoint", ["make_join", "send_join"])
async def test_the_next_server_is_asked_where_one_fails(
    peer: Peer, notary: Peer, alice: Client, endpoint: str, failure: tuple[int, str]
) -> None:
    room = PlayedRoom.new([peer, notary])
    room.answers[endpoint] = lambda asked: error_answer(*failure) if asked.peer is peer else None
    answer = await join_by(alice, room.room_id, NOBODY_THERE, peer.name, notary.name)

    assert answer.status == 200
    assert [asked.peer for asked in room.requests(endpoint)] == [peer, notary]


async def test_servers_that_say_nothing_take_a_share_of_the_time(
    peer: Peer, notary: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_handshakes, "MAKE_JOIN_PATIENCE_S", 4.0)
    room = PlayedRoom.new([peer, notary])
    for_ever = asyncio.Event()

    async def silent(asked: Asked) -> Answer:
        await for_ever.wait()
        return error_answer(500, "M_UNKNOWN")

    room.answers["make_join"] = lambda asked: silent(asked) if asked.peer is peer else None
    started = time.monotonic()
    answer = await join_by(alice, room.room_id, peer.name, notary.name)
    took_s = time.monotonic() - started
    for_ever.set()

    assert answer.status == 200
    assert 1.9 < took_s < 3.9


async def test_no_server_is_asked_twice_and_no_more_than_ten(peer: Peer, alice: Client) -> None:
    names = [f"127.0.0.1:{port}" for port in range(1, 10)]
    room = PlayedRoom.new([peer])
    found = await join_by(alice, room.room_id, *names, *names, peer.name)
    other = PlayedRoom.new([peer])
    late = await join_by(alice, other.room_id, *names, "127.0.0.1:10", peer.name)

    assert (found.status, late.error) == (200, NO_ANSWER)


# -- what other servers say of the room


@versions_of_each_form
@pytest.mark.parametrize("fault", ["signature", "hash", "auth", "level", "other room", "no event", "number"])
async def test_events_that_do_not_hold_are_left_out(
    here: RunningServer, peer: Peer, alice: Client, version: str, fault: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea, zoe = user_of(peer, "tea"), user_of(peer, "zoe")
    other = PlayedRoom.new([peer], version=version)
    room.event(tea, "m.room.name", {"name": "good"}, "")
    zoes = room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    by_zoe: Any = room.event(zoe, "m.room.avatar", {"url": "mxc://tea/1"}, "", rejected=fault == "level")
    bad: Any = zoes.json
    match fault:
        case "signature":
            bad = {**zoes.json, "signatures": {peer.name: {peer.keys[0].key_id: "A" * 86}}}
        case "hash":
            bad = {**zoes.json, "hashes": {}}
        case "auth":
            bad = None
        case "level":
            bad = zoes.json
        case "other room":
            bad = other.event(tea, "m.room.topic", {"topic": "of another room"}, "").json
        case "no event":
            bad = "tea"
        case "number":
            bad = {**zoes.json, "depth": 2**60}

    def answer(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        events = [event.json for event in room.events.values() if event.state_key is not None]
        events = [event for event in events if event not in (zoes.json, join.json)] + [bad]
        return answer_to_join(room, join, state=[*events, by_zoe.json], auth_chain=events)

    room.answers["send_join"] = answer
    await joined(alice, room)

    assert await members(alice, room) == {tea, alice.user_id} | ({zoe} if fault == "level" else set())
    assert await state_of(alice, room, "m.room.name") == {"name": "good"}
    assert await state_of(alice, room, "m.room.avatar") is None
    assert await state_of(alice, room, "m.room.topic") is None


@versions_of_each_form
@pytest.mark.parametrize(
    "fault",
    [
        "no create", "other create", "two creates", "banned", "not joinable", "no auth events",
        "members omitted", "no state", "no chain", "empty",
    ],
)  # fmt: skip
async def test_an_answer_that_does_not_let_us_in_is_none(
    here: RunningServer, peer: Peer, alice: Client, version: str, fault: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    other = PlayedRoom.new([peer], version=version)
    tea = user_of(peer, "tea")

    def answer(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        state = [room.events[event_id] for event_id in room.before[join.event_id].values()]
        create = room.events[room.before[join.event_id][CREATE]]
        others = [event.json for event in state if event is not create]
        elsewhere = other.events[other.state[CREATE]].json
        ban = room.event(
            tea, "m.room.member", {"membership": "ban"}, alice.user_id, prev=join.prev_events, apart=True
        )
        closed = room.event(
            tea, "m.room.join_rules", {"join_rule": "invite"}, "", prev=join.prev_events, apart=True
        )
        changes: dict[str, JsonObject] = {
            "no create": {"state": others},
            "other create": {"state": [elsewhere, *others]},
            "two creates": {"state": [create.json, elsewhere, *others]},
            "banned": {"state": [create.json, *others, ban.json]},
            "not joinable": {
                "state": [create.json, closed.json]
                + [event for event in others if event["type"] != "m.room.join_rules"]
            },
            "no auth events": {"state": [create.json], "auth_chain": []},
            "members omitted": {"members_omitted": True, "servers_in_room": [peer.name]},
            "no state": {"state": None},
            "no chain": {"auth_chain": {}},
            "empty": {"state": [], "auth_chain": []},
        }
        return answer_to_join(room, join, **changes[fault])

    room.answers["send_join"] = answer

    assert (await join_by(alice, room.room_id, peer.name)).error == NO_ANSWER
    assert await members(alice, room) == set()
    assert room.room_id not in (await alice.sync()).get("rooms", {}).get("join", {})
    del room.answers["send_join"]
    await joined(alice, room)
    assert await members(alice, room) == {tea, alice.user_id}


async def test_an_event_that_was_rejected_before_does_not_come_in_with_a_state(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = PlayedRoom.new([peer])
    tea = user_of(peer, "tea")
    await joined(alice, room)
    zoe = user_of(peer, "zoe")
    forged = room.event(zoe, "m.room.topic", {"topic": "forged"}, "", rejected=True)
    await send(here, peer, [forged])
    await alice.post(room_path(room.room_id, "leave"), {})

    def answer(asked: Asked) -> Answer:
        join = room.add(room.parsed(asked.content))
        state = [room.events[event_id].json for event_id in room.before[join.event_id].values()]
        return answer_to_join(room, join, state=[*state, forged.json])

    room.answers["send_join"] = answer
    await joined(alice, room)

    assert await state_of(alice, room, "m.room.topic") is None
    assert await members(alice, room) == {tea, alice.user_id}


async def test_a_room_whose_create_event_names_a_refused_event_is_not_joined(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    tea = user_of(peer, "tea")
    room = PlayedRoom(room_version("11"), [peer], RoomId(f"!{uuid4().hex}:{peer.name}"))
    join = {"membership": "join"}
    refused = room.event(tea, "m.room.member", join, tea, prev=[], auth=[], rejected=True)
    room.event(tea, "m.room.create", {"room_version": "11"}, "", prev=[], auth=[refused])
    room.event(tea, "m.room.member", join, tea)
    room.event(tea, "m.room.join_rules", {"join_rule": "public"}, "")
    room.serve()

    assert (await join_by(alice, room.room_id, peer.name)).error == NO_ANSWER
    assert await members(alice, room) == set()


# -- coming back


@versions_of_each_form
async def test_a_room_that_we_left_is_as_it_is_now_when_we_come_back(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = PlayedRoom.new([peer], version=version)
    tea, zoe, yan = (user_of(peer, name) for name in ("tea", "zoe", "yan"))
    room.event(tea, "m.room.topic", {"topic": "tea"}, "")
    room.event(zoe, "m.room.member", {"membership": "join"}, zoe)
    await joined(alice, room)
    await alice.say(room.room_id, "bye")
    await alice.post(room_path(room.room_id, "leave"), {})
    since = (await alice.sync())["next_batch"]
    for asked in peer.transactions:
        for json in asked.content["pdus"]:
            room.add(room.parsed(json))
    left = room.state["m.room.member", alice.user_id]
    room.event(zoe, "m.room.member", {"membership": "leave"}, zoe)
    room.event(yan, "m.room.member", {"membership": "join"}, yan)
    room.event(tea, "m.room.topic", {"topic": "coffee"}, "")
    missed = room.event(tea, "m.room.message", {"body": "missed"})
    await send(here, peer, [missed])
    join = await joined(alice, room)
    await send(here, peer, [room.event(tea, "m.room.message", {"body": "back?"})])
    await alice.say(room.room_id, "back")
    answer = (await alice.sync(since))["rooms"]["join"][room.room_id]

    assert left
    assert await members(alice, room) == {tea, yan, alice.user_id}
    assert await state_of(alice, room, "m.room.topic") == {"topic": "coffee"}
    assert (await state_of(alice, room, "m.room.member", zoe))["membership"] == "leave"
    texts = [event["content"].get("body") for event in answer["timeline"]["events"]]
    assert texts == [None, "back?", "back"]
    assert answer["timeline"]["events"][0]["event_id"] == join.event_id
    state = {(event["type"], event["state_key"]): event["content"] for event in answer["state"]["events"]}
    assert state["m.room.topic", ""] == {"topic": "coffee"}
    assert state["m.room.member", zoe]["membership"] == "leave"
