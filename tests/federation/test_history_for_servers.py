"""What other servers may read of a room that they are in: events, history, states, auth chains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from federation.outbound.signed_client import uri_of
from homeserver.protocol.event_hashes import encode_event_id, event_id_of, reference_hash_text
from homeserver.protocol.events import referenced_ids, stored_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.signing import verify_event_signatures
from homeserver.protocol.strict_json import JsonObject
from homeserver.services import history_for_servers, history_walks
from storage import room_state, server_access
from storage.event_flags import EventFlag
from tests.client_api.rooms import new_room, room_path, set_state
from tests.clients import Client, Response
from tests.federation.history_requests import (
    V1,
    auth_uri,
    backfill_uri,
    event_uri,
    get,
    ids_of,
    keys_of,
    missing_uri,
    state_uri,
)
from tests.federation.homeservers import ask, name_of, new_word
from tests.federation.peers import Peer
from tests.federation.played_rooms import user_of
from tests.federation.rooms_with_guests import new_shared_room, put_fork, say, text
from tests.room_versions import versions_of_each_form
from tests.servers import RunningServer, StartServer, unique_name

FORBIDDEN, NOT_FOUND = (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND")
MISSING, INVALID = (400, "M_MISSING_PARAM"), (400, "M_INVALID_PARAM")
UNKNOWN_ROOM = "!" + "a" * 43
UNKNOWN_EVENT = "$" + "a" * 43
MESSAGE = "m.room.message"


async def ask_all(server: RunningServer, peer: Peer, room_id: str, event_id: str) -> list[Response]:
    """The answers of all endpoints that name a room."""
    between = {"earliest_events": [], "latest_events": [event_id]}
    return [
        await ask(server, peer, state_uri(room_id, event_id)),
        await ask(server, peer, state_uri(room_id, event_id, ids=True)),
        await ask(server, peer, auth_uri(room_id, event_id)),
        await ask(server, peer, backfill_uri(room_id, [event_id])),
        await ask(server, peer, missing_uri(room_id), between),
    ]


async def missing(
    server: RunningServer,
    peer: Peer,
    room_id: str,
    latest: Sequence[str],
    earliest: Sequence[str] = (),
    **more: int,
) -> list[str]:
    """The IDs of the events between some."""
    content = {"latest_events": list(latest), "earliest_events": list(earliest), **more}
    return ids_of((await get(server, peer, missing_uri(room_id), content))["events"])


async def backfilled(
    server: RunningServer, peer: Peer, room_id: str, event_ids: Sequence[str], limit: int = 100
) -> list[str]:
    """The IDs of events and those before them."""
    return ids_of((await get(server, peer, backfill_uri(room_id, event_ids, limit)))["pdus"])


# -- who may ask


async def test_only_servers_in_the_room_get_answers_and_others_do_not_learn_whether_it_is_there(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room = await new_shared_room(here, alice, peer)
    [said] = await say(alice, room, "tea")

    assert [answer.status for answer in await ask_all(here, peer, room.room_id, said)] == [200] * 5
    refused = await ask_all(here, notary, room.room_id, said)
    unknown = await ask_all(here, notary, UNKNOWN_ROOM, said)
    assert [answer.error for answer in refused] == [FORBIDDEN] * 5
    assert [answer.body for answer in refused] == [answer.body for answer in unknown]
    assert (await ask(here, notary, event_uri(said))).error == FORBIDDEN
    assert (await ask(here, notary, event_uri(UNKNOWN_EVENT))).error == NOT_FOUND


async def test_a_server_whose_last_user_has_left_gets_no_answers_until_one_comes_back(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob, carol = user_of(peer, "bob"), user_of(peer, "carol")
    room = await new_shared_room(here, alice, peer, bob, carol)
    [said] = await say(alice, room, "tea")

    async def statuses() -> set[int]:
        answers = await ask_all(here, peer, room.room_id, said)
        return {answer.status for answer in (*answers, await ask(here, peer, event_uri(said)))}

    await room.leave(peer, bob)
    assert await statuses() == {200}
    await room.leave(peer, carol)
    assert await statuses() == {403}
    await room.enter(peer, bob)
    assert await statuses() == {200}


async def test_a_server_that_was_removed_may_ask_what_came_before_that(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    """It is sent the event that removes it, and cannot take it without what that builds on."""
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    said = await say(alice, room, "one", "two")
    kick = await set_state(alice, room.room_id, "m.room.member", {"membership": "leave"}, bob)
    [after] = await say(alice, room, "after")

    assert (await missing(here, peer, room.room_id, [kick]))[-2:] == said
    assert after not in await missing(here, peer, room.room_id, [after, kick])
    for latest in ([after], said, []):
        answer = await ask(
            here, peer, missing_uri(room.room_id), {"latest_events": latest, "earliest_events": []}
        )
        assert answer.error == FORBIDDEN
    assert {answer.status for answer in await ask_all(here, peer, room.room_id, kick)} == {200, 403}
    assert (await ask(here, peer, event_uri(said[0]))).error == FORBIDDEN


async def test_a_server_that_the_acl_denies_gets_single_events_only(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room = await new_shared_room(here, alice, peer)
    acl = {"allow": ["*"], "deny": [peer.name.partition(":")[0].upper() + "*"], "allow_ip_literals": True}
    event_id = await set_state(alice, room.room_id, "m.room.server_acl", acl)

    denied = await ask_all(here, peer, room.room_id, event_id)
    stranger = await ask_all(here, notary, room.room_id, event_id)
    assert [answer.error for answer in denied] == [FORBIDDEN] * 5
    assert {answer.body["error"] for answer in stranger}.isdisjoint(answer.body["error"] for answer in denied)
    assert (await ask(here, peer, event_uri(event_id))).status == 200

    event_id = await set_state(alice, room.room_id, "m.room.server_acl", {**acl, "deny": []})
    assert [answer.status for answer in await ask_all(here, peer, room.room_id, event_id)] == [200] * 5
    # A redacted ACL allows nobody: that is what its empty content says.
    await room.put(peer, user_of(peer, "bob"), "m.room.redaction", {"redacts": event_id})
    assert {answer.status for answer in await ask_all(here, peer, room.room_id, event_id)} == {403}


async def test_an_acl_is_compiled_once(here: RunningServer, alice: Client, monkeypatch: Any) -> None:
    room_id = RoomId(await new_room(alice))
    allows = here.services.history_for_servers.access.acl_allows
    here.services.history_for_servers.access._acls.clear()
    loaded = 0
    load = server_access.acl_content

    async def count(*arguments: Any) -> JsonObject:
        nonlocal loaded
        loaded += 1
        return await load(*arguments)

    monkeypatch.setattr(server_access, "acl_content", count)
    assert await allows(ServerName("x.test"), room_id)
    assert await allows(ServerName("x.test"), RoomId(UNKNOWN_ROOM))
    await set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["*.evil.test"]})
    names = ["x.test", "X.EVIL.test", "y.evil.test:1", "evil.test", name_of(here)]
    assert [await allows(ServerName(name), room_id) for name in names] == [True, False, False, True, True]
    assert loaded == 1


@pytest.mark.parametrize(
    ("uri", "content", "error"),
    [
        (uri_of(f"{V1}/state", UNKNOWN_ROOM), None, MISSING),
        (uri_of(f"{V1}/state_ids", UNKNOWN_ROOM), None, MISSING),
        (state_uri(UNKNOWN_ROOM, "tea"), None, INVALID),
        (state_uri("tea", UNKNOWN_EVENT), None, INVALID),
        (auth_uri(UNKNOWN_ROOM, "tea"), None, INVALID),
        (event_uri("tea"), None, INVALID),
        (uri_of(f"{V1}/backfill", UNKNOWN_ROOM, query={"v": UNKNOWN_EVENT}), None, MISSING),
        (uri_of(f"{V1}/backfill", UNKNOWN_ROOM, query={"limit": "1"}), None, MISSING),
        (uri_of(f"{V1}/backfill", UNKNOWN_ROOM, query={"v": UNKNOWN_EVENT, "limit": "-1"}), None, INVALID),
        (missing_uri(UNKNOWN_ROOM), {"latest_events": []}, MISSING),
        (missing_uri(UNKNOWN_ROOM), {"earliest_events": []}, MISSING),
        (missing_uri(UNKNOWN_ROOM), {"earliest_events": 1, "latest_events": []}, (400, "M_BAD_JSON")),
        (missing_uri(UNKNOWN_ROOM), {"earliest_events": [1], "latest_events": []}, (400, "M_BAD_JSON")),
    ],
)
async def test_what_is_no_question_is_refused(
    here: RunningServer, peer: Peer, uri: str, content: JsonObject | None, error: tuple[int, str]
) -> None:
    assert (await ask(here, peer, uri, content)).error == error


async def test_requests_are_signed(here: RunningServer) -> None:
    for uri in (
        event_uri(UNKNOWN_EVENT),
        state_uri(UNKNOWN_ROOM, UNKNOWN_EVENT),
        state_uri(UNKNOWN_ROOM, UNKNOWN_EVENT, ids=True),
        auth_uri(UNKNOWN_ROOM, UNKNOWN_EVENT),
        backfill_uri(UNKNOWN_ROOM, []),
    ):
        assert (await here.nobody.get(uri)).error == (401, "M_UNAUTHORIZED")
    assert (await here.nobody.post(missing_uri(UNKNOWN_ROOM), {})).error == (401, "M_UNAUTHORIZED")


async def test_older_servers_ask_with_a_slash_at_the_end(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = await new_shared_room(here, alice, peer)
    [said] = await say(alice, room, "tea")
    for uri in (
        event_uri(said),
        state_uri(room.room_id, said),
        state_uri(room.room_id, said, ids=True),
        backfill_uri(room.room_id, [said]),
    ):
        path, question, query = uri.partition("?")
        answer = await get(here, peer, f"{path}/{question}{query}")
        assert answer == await get(here, peer, uri)


# -- single events


@versions_of_each_form
async def test_an_event_comes_signed_and_in_the_form_of_a_transaction(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = await new_shared_room(here, alice, peer, room_version=version)
    [said] = await say(alice, room, "tea")
    state = (await get(here, peer, state_uri(room.room_id, said)))["pdus"]
    keys = keys_of(here, peer)

    for event_id in (said, *ids_of(state, version)):
        body = await get(here, peer, event_uri(event_id))
        [event] = body["pdus"]
        assert (body["origin"], body["origin_server_ts"]) == (name_of(here), here.clock())
        assert ids_of([event], version) == [event_id]
        pdu = stored_pdu(room_version(version), RoomId(room.room_id), EventId(event_id), event)
        verify_event_signatures(room_version(version), pdu, keys)
        assert "unsigned" not in event
        assert ("room_id" in event) == (version != "12" or event["type"] != "m.room.create")
    for event in state:
        verify_event_signatures(
            room_version(version),
            stored_pdu(
                room_version(version),
                RoomId(room.room_id),
                event_id_of(room_version(version), event),
                event,
            ),
            keys,
        )


async def test_a_redacted_event_comes_without_its_content(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room = await new_shared_room(here, alice, peer)
    [said] = await say(alice, room, "secret tea")
    topic = await set_state(alice, room.room_id, "m.room.topic", {"topic": "secret tea"})
    for event_id in (said, topic):
        answer = await alice.put(room_path(room.room_id, "redact", event_id, new_word()), {})
        assert answer.status == 200
    [after] = await say(alice, room, "after")

    whole = {
        "event": await get(here, peer, event_uri(said)),
        "backfill": await get(here, peer, backfill_uri(room.room_id, [after])),
        "state": await get(here, peer, state_uri(room.room_id, after)),
    }
    assert "secret tea" not in str(whole)
    assert whole["event"]["pdus"][0]["content"] == {}
    assert topic in ids_of(whole["state"]["pdus"])


# -- states and auth chains


@versions_of_each_form
async def test_the_state_is_that_before_the_event_and_the_auth_chain_is_complete(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = await new_shared_room(here, alice, peer, room_version=version)
    topics = [await set_state(alice, room.room_id, "m.room.topic", {"topic": name}) for name in "abc"]
    for event_id, before in zip(topics, [None, *topics], strict=False):
        state = await get(here, peer, state_uri(room.room_id, event_id))
        assert list(state) == ["auth_chain", "pdus"]
        of_type = [event for event in state["pdus"] if event["type"] == "m.room.topic"]
        assert ids_of(of_type, version) == ([] if before is None else [before])
        check_chain(state["auth_chain"], state["pdus"], version)
        ids = await get(here, peer, state_uri(room.room_id, event_id, ids=True))
        assert ids == {
            "pdu_ids": ids_of(state["pdus"], version),
            "auth_chain_ids": ids_of(state["auth_chain"], version),
        }

    [create] = [event for event in state["pdus"] if event["type"] == "m.room.create"]
    first = await get(here, peer, state_uri(room.room_id, ids_of([create], version)[0]))
    assert first == {"auth_chain": [], "pdus": []}
    [joined] = [event for event in state["pdus"] if event["sender"] == user_of(peer, "bob")]
    before_join = await get(here, peer, state_uri(room.room_id, ids_of([joined], version)[0]))
    assert joined not in before_join["pdus"]


def check_chain(chain: Sequence[JsonObject], events: Sequence[JsonObject], version: str) -> None:
    """The chain is all that the events need to be authorised, once, and nothing else."""
    by_id = dict(zip(ids_of([*chain, *events], version), [*chain, *events], strict=True))
    create = next((key for key, event in by_id.items() if event["type"] == "m.room.create"), None)
    needed: set[str] = set()
    to_do = [*events]
    while to_do:
        event = to_do.pop()
        named: set[str] = {*referenced_ids(event["auth_events"])}
        if version == "12" and event["type"] != "m.room.create" and create is not None:
            assert create not in named
            named.add(create)
        to_do += [by_id[event_id] for event_id in named - needed]
        needed |= named
    assert sorted(ids_of(chain, version)) == sorted(needed)


@versions_of_each_form
async def test_the_auth_chain_of_an_event_is_without_the_event(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = await new_shared_room(here, alice, peer, room_version=version)
    [said] = await say(alice, room, "tea")
    state = await get(here, peer, state_uri(room.room_id, said))
    [said_event] = (await get(here, peer, event_uri(said)))["pdus"]

    for event in (said_event, *state["pdus"]):
        [event_id] = ids_of([event], version)
        chain = (await get(here, peer, auth_uri(room.room_id, event_id)))["auth_chain"]
        assert event not in chain
        assert bool(chain) == (event["type"] != "m.room.create")
        check_chain(chain, [event], version)


async def test_states_and_chains_are_only_of_events_that_the_room_has(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room, other = [await new_shared_room(here, alice, peer) for _ in range(2)]
    [elsewhere] = await say(alice, other, "tea")

    for event_id in (elsewhere, UNKNOWN_EVENT, "$tea", "$" + "é" * 100):
        for uri in (
            state_uri(room.room_id, event_id),
            state_uri(room.room_id, event_id, ids=True),
            auth_uri(room.room_id, event_id),
        ):
            assert (await ask(here, peer, uri)).error == NOT_FOUND


async def test_many_who_ask_for_the_same_state_get_the_same_answer_for_a_while(
    start_server: StartServer, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    alice = await server.nobody.register(unique_name("alice"))
    room = await new_shared_room(server, alice, peer)
    topic = await set_state(alice, room.room_id, "m.room.topic", {"topic": "tea"})
    said = await say(alice, room, "a", "b")
    asked: list[tuple[str, str]] = []
    whole = room_state.whole

    async def count(tx: Any, at: Any) -> Any:
        asked.append((room.room_id, str(at)))
        return await whole(tx, at)

    monkeypatch.setattr(room_state, "whole", count)
    uris = [state_uri(room.room_id, event_id) for event_id in said] * 3
    bodies = [answer.body for answer in await asyncio.gather(*(ask(server, peer, uri) for uri in uris))]
    assert all(body == bodies[0] for body in bodies)
    assert len(asked) == 1

    assert (await alice.put(room_path(room.room_id, "redact", topic, "1"), {})).status == 200
    server.clock.advance(history_for_servers.KEPT_MS - 1)
    assert (await get(server, peer, uris[0])) == bodies[0]
    server.clock.advance(1)
    assert (await get(server, peer, uris[0])) != bodies[0]
    assert len(asked) == 2


async def test_an_answer_that_would_be_too_large_is_refused(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await new_shared_room(here, alice, peer)
    [said] = await say(alice, room, "tea")
    monkeypatch.setattr(history_for_servers, "MAX_ANSWER_BYTES", 1000)

    for uri in (state_uri(room.room_id, said), auth_uri(room.room_id, said)):
        assert (await ask(here, peer, uri)).error == (413, "M_TOO_LARGE")
    assert (await ask(here, peer, state_uri(room.room_id, said, ids=True))).status == 200


# -- walks


async def test_backfill_goes_back_from_some_events_and_brings_them_too(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room, other = [await new_shared_room(here, alice, peer) for _ in range(2)]
    said = await say(alice, room, *"abcdef")
    [elsewhere] = await say(alice, other, "x")
    newest_first = said[::-1]

    assert await backfilled(here, peer, room.room_id, [said[-1]], 3) == newest_first[:3]
    assert await backfilled(here, peer, room.room_id, [said[3]], 2) == newest_first[2:4]
    assert await backfilled(here, peer, room.room_id, said[1:4], 4) == [said[3], said[2], said[1], said[0]]
    odd = [elsewhere, UNKNOWN_EVENT, "tea", "", said[1]]
    assert await backfilled(here, peer, room.room_id, odd, 2) == [said[1], said[0]]
    assert await backfilled(here, peer, room.room_id, [elsewhere]) == []
    assert await backfilled(here, peer, room.room_id, [said[0]], 0) == []
    whole = await backfilled(here, peer, room.room_id, [said[-1]], 1000)
    assert whole[:6] == newest_first
    body = await get(here, peer, backfill_uri(room.room_id, [said[-1]]))
    assert ids_of(body["pdus"]) == whole
    assert [event["prev_events"] for event in body["pdus"]] == [*([one] for one in whole[1:]), []]
    assert (body["origin"], body["origin_server_ts"]) == (name_of(here), here.clock())


async def test_missing_events_are_those_between(here: RunningServer, peer: Peer, alice: Client) -> None:
    room, other = [await new_shared_room(here, alice, peer) for _ in range(2)]
    said = await say(alice, room, *"abcdefghijklmnopqrstuvwxyz")
    [elsewhere] = await say(alice, other, "x")

    async def between(earliest: Sequence[str], latest: Sequence[str], **more: int) -> list[str]:
        return await missing(here, peer, room.room_id, latest, earliest, **more)

    assert await between([said[0]], [said[4]]) == said[1:4]
    assert await between([said[0]], [said[4]], limit=2) == said[2:4]
    assert await between([said[0]], [said[-1]]) == said[15:25]
    assert await between([said[0]], [said[-1]], limit=1000) == said[5:25]
    assert await between([said[0]], [said[-1]], limit=0) == []
    assert await between([said[0]], [said[3], said[6]], limit=20) == [*said[1:3], *said[4:6]]
    assert await between([said[3], said[1]], [said[4]]) == []
    assert await between([], [UNKNOWN_EVENT, elsewhere, "tea", ""]) == []
    assert await between([], []) == []
    assert await between([elsewhere, "tea"], [said[1]], limit=1) == [said[0]]
    [event] = (await get(here, peer, event_uri(said[3])))["pdus"]
    assert await between([], [said[6]], min_depth=event["depth"]) == said[3:6]
    assert await between([], [said[6]], min_depth=2**60) == []


async def test_walks_follow_all_forks(here: RunningServer, peer: Peer, alice: Client) -> None:
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    [before] = await say(alice, room, "before")
    [one] = await say(alice, room, "one")
    fork = await put_fork(room, peer, bob, "fork", EventId(before))
    [merge] = await say(alice, room, "merge")

    found = await backfilled(here, peer, room.room_id, [merge], 4)
    assert (found[0], set(found[1:3]), found[3]) == (merge, {one, fork.event_id}, before)
    between = await missing(here, peer, room.room_id, [merge], [before])
    assert set(between) == {one, fork.event_id}
    assert await missing(here, peer, room.room_id, [fork.event_id], limit=1) == [before]

    twice = await room.put(peer, bob, MESSAGE, text("twice"), prev=[EventId(merge)] * 2)
    assert await backfilled(here, peer, room.room_id, [twice.event_id] * 2, 2) == [twice.event_id, merge]
    assert await missing(here, peer, room.room_id, [twice.event_id] * 2, limit=1) == [merge]


async def test_the_order_of_history_does_not_depend_on_what_events_say_of_their_depth(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    [said] = await say(alice, room, "tea")
    line = [EventId(said)]
    for depth in (2**50, 1, 7, 2**53 - 1, 0):
        event = await room.put(peer, bob, MESSAGE, text(str(depth)), prev=line[-1:], depth=depth)
        line.append(event.event_id)
    both = await room.put(peer, bob, MESSAGE, text("both"), prev=[line[-1], line[2], line[4]], depth=3)

    assert await backfilled(here, peer, room.room_id, [both.event_id], 7) == [both.event_id, *line[::-1]]
    assert await backfilled(here, peer, room.room_id, [both.event_id], 3) == [both.event_id, *line[:-3:-1]]
    assert await missing(here, peer, room.room_id, [both.event_id], line[:1]) == line[1:]


async def test_rejected_events_are_served_to_nobody_and_soft_failed_ones_when_they_are_named(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    [before] = await say(alice, room, "before")
    rejected = await room.put(peer, bob, MESSAGE, text("rejected"), flags=EventFlag.REJECTED)
    failed = await room.put(peer, bob, MESSAGE, text("failed"), flags=EventFlag.SOFT_FAILED)
    named = [rejected.event_id, failed.event_id]
    naming = await room.put(
        peer, bob, MESSAGE, text("naming"), prev=named, place=lambda _head: {"prev_nids": ()}
    )

    assert (await ask(here, peer, event_uri(rejected.event_id))).error == NOT_FOUND
    assert ids_of((await get(here, peer, event_uri(failed.event_id)))["pdus"]) == [failed.event_id]
    # The way to older events leads over both.
    found = await backfilled(here, peer, room.room_id, [naming.event_id], 3)
    assert found == [naming.event_id, failed.event_id, before]
    assert await missing(here, peer, room.room_id, [naming.event_id], [before]) == [failed.event_id]
    assert before in await backfilled(here, peer, room.room_id, [rejected.event_id])
    # Nobody names them from the newest event on.
    [after] = await say(alice, room, "after")
    assert rejected.event_id not in await backfilled(here, peer, room.room_id, [after])

    for event_id, error in ((rejected.event_id, NOT_FOUND), (failed.event_id, None)):
        for uri in (
            state_uri(room.room_id, event_id),
            state_uri(room.room_id, event_id, ids=True),
            auth_uri(room.room_id, event_id),
        ):
            answer = await ask(here, peer, uri)
            assert (answer.error if error else answer.status) == (error or 200)


@pytest.mark.invariant("SEC-VIS-3")
async def test_sec_vis_3_outliers_are_served_to_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    await say(alice, room, "before")
    outlier = await room.put_outlier(peer, bob, "m.room.topic", {"topic": "outlier"}, "")
    naming = await room.put(
        peer, bob, MESSAGE, text("x"), prev=[outlier.event_id], place=lambda _head: {"prev_nids": ()}
    )

    for uri in (
        event_uri(outlier.event_id),
        state_uri(room.room_id, outlier.event_id),
        state_uri(room.room_id, outlier.event_id, ids=True),
        auth_uri(room.room_id, outlier.event_id),
    ):
        assert (await ask(here, peer, uri)).error == NOT_FOUND
    assert await backfilled(here, peer, room.room_id, [outlier.event_id]) == []
    assert await missing(here, peer, room.room_id, [outlier.event_id]) == []
    assert await backfilled(here, peer, room.room_id, [naming.event_id]) == [naming.event_id]
    assert await missing(here, peer, room.room_id, [naming.event_id]) == []


@pytest.mark.invariant("SEC-VIS-3")
async def test_sec_vis_3_auth_chains_are_told_to_servers_in_the_room_only(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room, other = await new_shared_room(here, alice, peer), await new_shared_room(here, alice, notary)
    [said] = await say(alice, room, "tea")

    assert (await get(here, peer, auth_uri(room.room_id, said)))["auth_chain"]
    for room_id, error in ((room.room_id, FORBIDDEN), (other.room_id, NOT_FOUND)):
        for uri in (auth_uri(room_id, said), state_uri(room_id, said), state_uri(room_id, said, ids=True)):
            assert (await ask(here, notary, uri)).error == error


async def test_a_marker_that_only_carries_a_change_of_state_is_served_to_nobody(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    marker = await room.put(peer, bob, "org.example.marker", {})
    async with room.database.connection() as tx:
        query = "UPDATE events SET flags = flags | $2 WHERE event_id = $1"
        await tx.execute(query, encode_event_id(marker.event_id), EventFlag.HIDDEN)

    assert (await ask(here, peer, event_uri(marker.event_id))).error == NOT_FOUND
    assert (await ask(here, peer, state_uri(room.room_id, marker.event_id))).error == NOT_FOUND
    assert await backfilled(here, peer, room.room_id, [marker.event_id]) == []


async def test_a_walk_ends_however_long_the_history_of_rejected_events_is(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_walks, "MAX_STEPS", 5)
    bob = user_of(peer, "bob")
    room = await new_shared_room(here, alice, peer, bob)
    [before] = await say(alice, room, "before")
    prev = [EventId(before)]
    for number in range(8):
        event = await room.put(peer, bob, MESSAGE, text(str(number)), flags=EventFlag.REJECTED, prev=prev)
        prev = [event.event_id]

    assert await backfilled(here, peer, room.room_id, prev) == []
    assert await missing(here, peer, room.room_id, prev) == []
    monkeypatch.setattr(history_walks, "MAX_STEPS", 100)
    assert (await backfilled(here, peer, room.room_id, prev))[0] == before
    assert (await missing(here, peer, room.room_id, prev))[-1] == before


@pytest.mark.parametrize("version", ["1", "2"])
async def test_the_hashes_beside_references_are_those_of_the_events(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room = await new_shared_room(here, alice, peer, room_version=version)
    await say(alice, room, "one", "two")
    await set_state(alice, room.room_id, "m.room.topic", {"topic": "tea"})
    here.services.room_events.persister._heads.forget(RoomId(room.room_id))  # as after a restart
    await say(alice, room, "three")
    await alice.put(room_path(room.room_id, "redact", (await say(alice, room, "four"))[0], new_word()), {})
    [last] = await say(alice, room, "five")
    own = f":{name_of(here)}"
    events = (await get(here, peer, backfill_uri(room.room_id, [last], limit=100)))["pdus"]
    hashes = {event["event_id"]: reference_hash_text(room_version(version), event) for event in events}
    references = [
        (event_id, of_event["sha256"])
        for event in events
        if event["event_id"].endswith(own)
        for event_id, of_event in (*event["prev_events"], *event["auth_events"])
    ]

    assert len(references) > 20
    assert references == [(event_id, hashes[event_id]) for event_id, _ in references]
