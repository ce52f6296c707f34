"""The keys of other servers, as our services find and keep them."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web

from homeserver.errors import Unauthorized
from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.server_key_responses import make_key_response
from homeserver.protocol.signing import ServerKeys, SigningKey, VerifyKey, sign_json
from homeserver.protocol.unpadded_base64 import decode_base64
from homeserver.services.server_keys import LONGEST_WAIT_FOR_NEW_KEYS_MS, LONGEST_WAIT_MS
from homeserver.services.signing_key_file import new_signing_key
from storage import server_keys
from storage.database import Database
from storage.server_keys import MAX_KEYS_OF_A_SERVER
from tests.federation.peers import (
    KEY_LIST,
    KEY_QUERY,
    Authority,
    OurSide,
    Peer,
    json_answer,
    our_side,
    running_peer,
)
from tests.servers import MovableClock

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


def answer_queries(notary: Peer, *responses: dict[str, Any], attested: bool = True) -> None:
    """Let a notary answer queries with lists of keys."""
    found = [notary.attest(response) if attested else response for response in responses]
    notary.answers[KEY_QUERY] = lambda: json_answer({"server_keys": found})


async def keys_now(ours: OurSide, peer: Peer, *keys: SigningKey) -> ServerKeys:
    """The keys of a peer, after looking for its first one or for others."""
    key_ids = [key.key_id for key in keys or peer.keys[:1]]
    return await ours.key_ring.keys_for(peer.name, key_ids, ours.clock())


async def test_keys_are_fetched_once_and_kept(
    ours: OurSide, peer: Peer, database: Database, authority: Authority
) -> None:
    fetched = await keys_now(ours, peer)
    again = await keys_now(ours, peer)
    async with our_side(database, authority, ours.clock) as other_process:
        elsewhere = await keys_now(other_process, peer)

    assert fetched == {peer.keys[0].key_id: VerifyKey(peer.keys[0].public_key, ours.clock() + HOUR_MS)}
    assert fetched == again == elsewhere
    assert peer.asked(KEY_LIST) == 1


async def test_the_same_keys_are_not_fetched_twice_at_once(ours: OurSide, peer: Peer) -> None:
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(keys_now(ours, peer)) for _ in range(5)]

    assert all(task.result() for task in found)
    assert peer.asked(KEY_LIST) == 1


async def test_one_who_gives_up_does_not_keep_the_others_from_the_keys(ours: OurSide, peer: Peer) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> web.StreamResponse:
        arrived.set()
        await go_on.wait()
        return json_answer(peer.response())

    peer.answers[KEY_LIST] = slow
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(keys_now(ours, peer))
        await arrived.wait()
        second = tasks.create_task(keys_now(ours, peer))
        await asyncio.sleep(0)
        first.cancel()
        go_on.set()

    assert first.cancelled()
    assert set(second.result()) == {peer.keys[0].key_id}


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_key_is_fetched_again_once_it_has_expired(ours: OurSide, peer: Peer) -> None:
    await keys_now(ours, peer)
    ours.clock.advance(HOUR_MS)
    await keys_now(ours, peer)
    before = peer.asked(KEY_LIST)
    ours.clock.advance(1)
    renewed = await keys_now(ours, peer)

    assert (before, peer.asked(KEY_LIST)) == (1, 2)
    assert renewed[peer.keys[0].key_id].valid_until_ts == ours.clock() + HOUR_MS


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_far_validity_is_cut_to_seven_days(ours: OurSide, peer: Peer) -> None:
    peer.valid_until_ts = MAX_INTEGER
    keys = await keys_now(ours, peer)

    assert keys[peer.keys[0].key_id].valid_until_ts == ours.clock() + 7 * DAY_MS


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_replaced_key_is_good_for_what_it_signed_before(ours: OurSide, peer: Peer) -> None:
    old, signed_ts = peer.keys[0], ours.clock()
    await keys_now(ours, peer)
    ours.clock.advance(60_000)
    peer.keys = [new_signing_key()]
    peer.old_keys = {old.key_id: VerifyKey(old.public_key, signed_ts)}
    keys = await keys_now(ours, peer)

    assert keys[old.key_id] == VerifyKey(old.public_key, signed_ts)
    assert keys[peer.keys[0].key_id].valid_until_ts == ours.clock() + HOUR_MS


async def test_a_key_once_seen_is_kept_when_its_server_drops_it(ours: OurSide, peer: Peer) -> None:
    dropped = peer.keys[0]
    await keys_now(ours, peer)
    ours.clock.advance(60_000)
    peer.keys = [new_signing_key()]
    keys = await keys_now(ours, peer)

    assert keys[dropped.key_id] == VerifyKey(dropped.public_key, ours.clock() - 60_000 + HOUR_MS)
    assert await ours.key_ring.keys_for(peer.name, [dropped.key_id], ours.clock()) == keys
    assert peer.asked(KEY_LIST) == 2


async def test_for_old_room_versions_any_key_will_do(ours: OurSide, peer: Peer) -> None:
    old = new_signing_key()
    peer.old_keys = {old.key_id: VerifyKey(old.public_key, 5)}
    keys = await ours.key_ring.keys_for(peer.name, [old.key_id], 0)

    assert keys[old.key_id] == VerifyKey(old.public_key, 5)
    assert await ours.key_ring.keys_for(peer.name, [old.key_id], 0) == keys
    assert peer.asked(KEY_LIST) == 1


async def test_our_own_keys_are_known(ours: OurSide) -> None:
    keys = await ours.key_ring.keys_for(ours.name, ["ed25519:any"], ours.clock())

    assert keys == {ours.key.key_id: VerifyKey(ours.key.public_key, MAX_INTEGER)}


async def test_where_nothing_is_signed_nothing_is_fetched(ours: OurSide, peer: Peer) -> None:
    assert await ours.key_ring.keys_for(peer.name, [], ours.clock()) == {}
    assert peer.server.received == []


async def test_a_server_is_asked_in_vain_ever_more_rarely(ours: OurSide, peer: Peer) -> None:
    peer.answers[KEY_LIST] = lambda: json_answer({}, 500)
    waits_s = []
    await keys_now(ours, peer)
    for asked in range(1, 12):
        waited_s = 0
        while peer.asked(KEY_LIST) == asked:
            ours.clock.advance(1000)
            waited_s += 1
            assert await keys_now(ours, peer) == {}
        waits_s.append(waited_s)
    del peer.answers[KEY_LIST]
    ours.clock.advance(LONGEST_WAIT_MS)

    assert waits_s == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert await keys_now(ours, peer) != {}


async def test_unknown_key_ids_do_not_make_us_ask_all_the_time(ours: OurSide, peer: Peer) -> None:
    for number in range(20):
        keys = await ours.key_ring.keys_for(peer.name, [f"ed25519:{number}"], ours.clock())
        assert set(keys) == {peer.keys[0].key_id}
    assert peer.asked(KEY_LIST) == 1


async def test_a_new_key_is_seen_before_long_whatever_was_looked_for_in_vain(
    ours: OurSide, peer: Peer
) -> None:
    for number in range(20):
        await ours.key_ring.keys_for(peer.name, [f"ed25519:{number}"], ours.clock())
        ours.clock.advance(LONGEST_WAIT_FOR_NEW_KEYS_MS)
    peer.keys = [new_signing_key()]
    await ours.key_ring.keys_for(peer.name, ["ed25519:20"], ours.clock() + HOUR_MS)
    ours.clock.advance(LONGEST_WAIT_FOR_NEW_KEYS_MS)

    assert peer.keys[0].key_id in await ours.key_ring.keys_for(peer.name, [peer.keys[0].key_id], ours.clock())


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": "evil.test"},
        {"valid_until_ts": MAX_INTEGER},
        {"verify_keys": {}},
        {"old_verify_keys": 5},
    ],
)
async def test_a_list_that_is_not_in_order_is_discarded(
    ours: OurSide, peer: Peer, changes: dict[str, Any]
) -> None:
    await keys_now(ours, peer)
    peer.answers[KEY_LIST] = lambda: json_answer({**peer.response(), **changes})
    ours.clock.advance(HOUR_MS + 1)
    keys = await keys_now(ours, peer)

    assert keys[peer.keys[0].key_id].valid_until_ts == ours.clock() - 1


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_a_key_that_was_published_is_no_key(ours: OurSide, peer: Peer) -> None:
    seed = decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")  # of the specification's examples
    assert seed is not None
    peer.keys = [SigningKey.from_seed("1", seed)]

    assert await keys_now(ours, peer) == {}


async def test_a_list_that_is_too_long_is_not_read(ours: OurSide, peer: Peer) -> None:
    peer.answers[KEY_LIST] = lambda: json_answer({**peer.response(), "padding": "x" * 300_000})

    assert await keys_now(ours, peer) == {}


async def test_a_server_has_so_many_keys_and_no_more(database: Database, peer: Peer) -> None:
    many = {f"ed25519:{n}": VerifyKey(bytes(32), n) for n in range(MAX_KEYS_OF_A_SERVER)}
    more = {"ed25519:0": VerifyKey(bytes(32), 7), "ed25519:more": VerifyKey(bytes(32), 7)}
    async with database.connection() as tx:
        await server_keys.replace(tx, peer.name, many)
        await server_keys.replace(tx, peer.name, more)
        await server_keys.extend(tx, peer.name, {"ed25519:most": VerifyKey(bytes(32), 7)})
        stored = await server_keys.load(tx, peer.name)

    assert stored == {**many, "ed25519:0": VerifyKey(bytes(32), 7)}


async def ask_about_absent(
    database: Database, authority: Authority, clock: MovableClock, absent: Peer, *notaries: Peer
) -> ServerKeys:
    """The keys of a server that cannot be asked itself, for one that trusts some notaries."""
    absent.answers[KEY_LIST] = lambda: json_answer({}, 503)
    names = [notary.name for notary in notaries]
    async with our_side(database, authority, clock, notaries=names) as ours:
        return await keys_now(ours, absent)


async def test_a_notary_is_asked_where_a_server_does_not_answer(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer
) -> None:
    answer_queries(notary, {"server_name": "other.test"}, peer.response())
    keys = await ask_about_absent(database, authority, clock, peer, notary)
    [query] = [received for received in notary.server.received if received.target == KEY_QUERY]

    assert keys == {peer.keys[0].key_id: VerifyKey(peer.keys[0].public_key, clock() + HOUR_MS)}
    assert orjson.loads(query.body) == {
        "server_keys": {peer.name: {peer.keys[0].key_id: {"minimum_valid_until_ts": clock()}}}
    }


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize("fault", ["notary", "origin", "other notary", "other server", "status", "no list"])
async def test_sec_sign_3_a_notary_is_believed_only_with_both_signatures(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer, fault: str
) -> None:
    response = peer.response()
    match fault:
        case "notary":
            answer_queries(notary, response, attested=False)
        case "origin":
            answer_queries(notary, {**response, "signatures": {}})
        case "other notary":
            forged = sign_json(response, notary.name, new_signing_key())
            answer_queries(notary, forged, attested=False)
        case "other server":
            answer_queries(notary, make_key_response(ServerName("evil.test"), peer.keys, {}, clock() + 5))
        case "status":
            notary.answers[KEY_QUERY] = lambda: json_answer({"errcode": "M_FORBIDDEN"}, 403)
        case _:
            notary.answers[KEY_QUERY] = lambda: json_answer({"server_keys": {peer.name: response}})

    assert await ask_about_absent(database, authority, clock, peer, notary) == {}


async def test_the_next_notary_is_asked_where_one_does_not_know(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer
) -> None:
    async with running_peer(authority, clock) as ignorant:
        answer_queries(ignorant)
        answer_queries(notary, peer.response())
        keys = await ask_about_absent(database, authority, clock, peer, ignorant, notary)

    assert set(keys) == {peer.keys[0].key_id}


@pytest.mark.invariant("SEC-SIGN-3")
async def test_sec_sign_3_an_older_list_of_a_notary_shortens_and_replaces_nothing(
    database: Database, authority: Authority, clock: MovableClock, peer: Peer, notary: Peer
) -> None:
    current, dropped = peer.keys[0], new_signing_key()
    same_id = SigningKey.from_seed(current.key_id.removeprefix("ed25519:"), bytes([7]) * 32)
    async with our_side(database, authority, clock, notaries=[notary.name]) as ours:
        before = await keys_now(ours, peer)
        peer.answers[KEY_LIST] = lambda: json_answer({}, 503)
        shorter = make_key_response(peer.name, [current, dropped], {}, clock() + 5)
        answer_queries(notary, shorter)
        clock.advance(2000)
        extended = await keys_now(ours, peer, dropped)
        answer_queries(notary, make_key_response(peer.name, [same_id], {}, clock() + DAY_MS))
        clock.advance(600_000)
        replaced = await keys_now(ours, peer, dropped)

    old = VerifyKey(dropped.public_key, clock() - 602_000 + 5)
    assert notary.asked(KEY_QUERY) == 2
    assert extended == replaced == {**before, dropped.key_id: old}


async def test_a_request_is_checked_against_the_keys_of_its_origin(ours: OurSide, peer: Peer) -> None:
    request = {"method": "GET", "uri": "/", "origin": peer.name, "destination": ours.name}
    signed = sign_json(request, peer.name, peer.keys[0])

    await ours.key_ring.verify_request(peer.name, signed)
    for wrong in ({**signed, "uri": "/?"}, request, {**signed, "content": 2**80}):
        with pytest.raises(Unauthorized):
            await ours.key_ring.verify_request(peer.name, wrong)
