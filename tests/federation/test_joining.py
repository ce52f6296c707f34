"""Users of other servers join and leave rooms of ours."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from federation.outbound.signed_client import uri_of
from homeserver.protocol.auth_events import AUTHORISER, CREATE
from homeserver.protocol.events import Pdu
from homeserver.protocol.room_versions import ROOM_VERSIONS, room_version
from tests.client_api.rooms import join, new_room, room_path, set_state
from tests.clients import Client, Response
from tests.federation.homeservers import ask, name_of
from tests.federation.peers import OurSide, Peer
from tests.federation.played_rooms import V1, V2, PlayedRoom, user_of
from tests.federation.played_rooms import send as send_transaction
from tests.federation.room_answers import accept_invites
from tests.room_versions import versions_of_each_form, versions_with_restricted_joins
from tests.servers import RunningServer, unique_name

BAD, FORBIDDEN, NOT_FOUND = (400, "M_INVALID_PARAM"), (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND")
UNKNOWN_ROOM: Final = "!" + "a" * 43
MEMBERSHIPS = pytest.mark.parametrize("membership", ["join", "leave"])


async def make(
    server: RunningServer, peer: Peer, membership: str, room_id: str, user_id: str, *versions: str
) -> Response:
    query = {"ver": list(versions or ROOM_VERSIONS)} if membership == "join" else {}
    return await ask(server, peer, uri_of(f"{V1}/make_{membership}", room_id, user_id, query=query))  # type: ignore[arg-type]


async def made(server: RunningServer, peer: Peer, membership: str, room_id: str, user_id: str) -> Pdu:
    """The event that a template becomes, signed by the peer."""
    answer = await make(server, peer, membership, room_id, user_id)
    assert answer.status == 200, answer.body
    return sealed(peer, answer.body)


def sealed(peer: Peer, template: dict[str, Any], **changes: Any) -> Pdu:
    version = room_version(template["room_version"])
    event = {**template["event"], "origin_server_ts": peer.clock(), **changes}
    return PlayedRoom(version, [peer], event["room_id"]).sealed(event, peer)


async def send(
    server: RunningServer,
    peer: Peer,
    membership: str,
    pdu: Pdu,
    *,
    version: str = V2,
    room_id: str | None = None,
    event_id: str | None = None,
    query: str = "",
) -> Response:
    uri = uri_of(f"{version}/send_{membership}", room_id or pdu.room_id, event_id or pdu.event_id) + query
    return await ask(server, peer, uri, pdu.json, method="PUT")


async def membership_of(client: Client, room_id: str, user_id: str) -> Any:
    answer = await client.get(room_path(room_id, "state", "m.room.member", user_id))
    return answer.body.get("membership", answer.status)


async def restricted(client: Client, gate: str, **wanted: Any) -> str:
    """A room for the members of another one."""
    rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": gate}]}
    state = [{"type": "m.room.join_rules", "content": rules}]
    return await new_room(client, initial_state=state, **wanted)


@versions_of_each_form
async def test_a_user_of_another_server_joins(
    here: RunningServer, peer: Peer, ours: OurSide, alice: Client, version: str
) -> None:
    room_id = await new_room(alice, room_version=version, name="Tea")
    user_id = user_of(peer, "bob")
    template = await make(here, peer, "join", room_id, user_id)
    before = await membership_of(alice, room_id, user_id)
    pdu = sealed(peer, template.body, content={"membership": "join", "displayname": "Bob"})
    answer = await send(here, peer, "join", pdu)

    assert template.body["room_version"] == version
    assert {
        key: template.body["event"][key] for key in ("type", "sender", "state_key", "content", "origin")
    } == {
        "type": "m.room.member",
        "sender": user_id,
        "state_key": user_id,
        "content": {"membership": "join"},
        "origin": name_of(here),
    }
    assert "signatures" not in template.body["event"] and "hashes" not in template.body["event"]
    assert (before, answer.status) == (404, 200)
    assert answer.body["event"] == pdu.json
    assert (answer.body["members_omitted"], answer.body["origin"]) == (False, name_of(here))
    assert "servers_in_room" not in answer.body
    member = await alice.get(room_path(room_id, "state", "m.room.member", user_id))
    assert member.body == {"membership": "join", "displayname": "Bob"}
    for events in (answer.body["state"], answer.body["auth_chain"]):
        outcomes = await ours.gate.verify(room_version(version), events, pushed=False)
        assert all(isinstance(outcome, Pdu) for outcome in outcomes)
    state = {(event["type"], event["state_key"]) for event in answer.body["state"]}
    assert state > {CREATE, ("m.room.name", ""), ("m.room.member", alice.user_id)}
    assert ("m.room.member", user_id) not in state


@versions_of_each_form
async def test_the_auth_chain_covers_the_join_and_the_state(
    here: RunningServer, peer: Peer, alice: Client, version: str
) -> None:
    room_id = await new_room(alice, room_version=version)
    for level in (50, 60):
        await set_state(alice, room_id, "m.room.power_levels", {"state_default": level, "users": {}} | (
            {"users": {alice.user_id: 100}} if version != "12" else {}
        ))  # fmt: skip
    pdu = await made(here, peer, "join", room_id, user_of(peer, "bob"))
    answer = await send(here, peer, "join", pdu)
    played = PlayedRoom(room_version(version), [peer], pdu.room_id)
    chain = {event.event_id: event for event in map(played.parsed, answer.body["auth_chain"])}
    state = [played.parsed(event) for event in answer.body["state"]]

    assert len(answer.body["auth_chain"]) == len(chain)
    assert pdu.event_id not in chain
    for event in (pdu, *state, *chain.values()):
        assert set(event.auth_events) <= set(chain)
    powers = [event for event in chain.values() if event.type == "m.room.power_levels"]
    assert len(powers) >= 2


async def test_who_left_and_comes_back_gets_the_state_with_the_old_membership(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    left = await made(here, peer, "leave", room_id, user_id)
    assert (await send(here, peer, "leave", left)).body == {}
    gone = await membership_of(alice, room_id, user_id)
    again = await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    members = {event["state_key"]: event for event in again.body["state"] if event["type"] == "m.room.member"}

    assert gone == "leave"
    assert members[user_id] == left.json
    assert await membership_of(alice, room_id, user_id) == "join"


async def test_a_join_that_is_sent_twice_is_stored_once(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id = await new_room(alice)
    pdu = await made(here, peer, "join", room_id, user_of(peer, "bob"))
    first, second = [await send(here, peer, "join", pdu) for _ in range(2)]

    assert first.status == 200
    assert first.body == second.body


async def test_older_servers_get_a_pair(here: RunningServer, peer: Peer, alice: Client) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    joined = await send(here, peer, "join", await made(here, peer, "join", room_id, user_id), version=V1)
    leave = await made(here, peer, "leave", room_id, user_id)
    left = await send(here, peer, "leave", leave, version=V1)

    assert (joined.body[0], set(joined.body[1]) > {"state", "auth_chain", "event"}) == (200, True)
    assert left.body == [200, {}]


@pytest.mark.parametrize("versions", [None, ["1"], ["10"], ["1", "2"], ["12 "]])
async def test_a_server_that_does_not_speak_the_version_is_told_so(
    here: RunningServer, peer: Peer, alice: Client, versions: list[str] | None
) -> None:
    room_id = await new_room(alice)
    uri = uri_of(
        f"{V1}/make_join", room_id, user_of(peer, "bob"), query={"ver": versions} if versions else None
    )
    answer = await ask(here, peer, uri)

    assert answer.error == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer.body["room_version"] == "12"


@MEMBERSHIPS
async def test_only_the_server_of_a_user_gets_a_template(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, membership: str
) -> None:
    room_id = await new_room(alice)

    for user_id in (user_of(notary, "bob"), alice.user_id):
        assert (await make(here, peer, membership, room_id, user_id)).error == FORBIDDEN


@MEMBERSHIPS
async def test_a_room_that_nobody_here_is_in_is_unknown(
    here: RunningServer, peer: Peer, alice: Client, membership: str
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    pdu = await made(here, peer, membership, room_id, user_id)
    await alice.post(room_path(room_id, "leave"), {})

    assert (await make(here, peer, membership, room_id, user_id)).error == NOT_FOUND
    assert (await make(here, peer, membership, UNKNOWN_ROOM, user_id)).error == NOT_FOUND
    assert (await send(here, peer, membership, pdu)).error == NOT_FOUND


async def test_whom_the_rules_refuse_gets_no_template(here: RunningServer, peer: Peer, alice: Client) -> None:
    closed, banned = await new_room(alice, preset="private_chat"), await new_room(alice)
    user_id = user_of(peer, "bob")
    await alice.post(room_path(banned, "ban"), {"user_id": user_id})

    for room_id in (closed, banned):
        assert (await make(here, peer, "join", room_id, user_id)).error == FORBIDDEN
        assert (await make(here, peer, "leave", room_id, user_id)).error == FORBIDDEN


async def test_a_join_that_is_not_allowed_any_more_is_not_stored(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    pdu = await made(here, peer, "join", room_id, user_id)
    await alice.post(room_path(room_id, "ban"), {"user_id": user_id})

    assert (await send(here, peer, "join", pdu)).error == FORBIDDEN
    assert (await send(here, peer, "join", pdu)).error == FORBIDDEN
    assert await membership_of(alice, room_id, user_id) == "ban"


@pytest.mark.invariant("SEC-AUTH-3")
@MEMBERSHIPS
async def test_sec_auth_3_what_was_refused_when_it_was_pushed_is_refused_again(
    here: RunningServer, peer: Peer, alice: Client, membership: str
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    if membership == "leave":
        await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    pdu = await made(here, peer, membership, room_id, user_id)
    await alice.post(room_path(room_id, "ban"), {"user_id": user_id})
    assert (await send_transaction(here, peer, [pdu])).body == {"pdus": {pdu.event_id: {}}}
    await alice.post(room_path(room_id, "unban"), {"user_id": user_id})
    if membership == "leave":
        await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    before = await membership_of(alice, room_id, user_id)

    assert (await send(here, peer, membership, pdu)).error == FORBIDDEN
    assert before == await membership_of(alice, room_id, user_id) != membership


@pytest.mark.invariant("SEC-AUTH-2")
async def test_sec_auth_2_a_membership_without_prev_events_has_no_place(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    template = (await make(here, peer, "join", room_id, user_id)).body
    assert (await send(here, peer, "join", sealed(peer, template, prev_events=[]))).error == FORBIDDEN
    await send(here, peer, "join", sealed(peer, template))
    template = (await make(here, peer, "leave", room_id, user_id)).body
    assert (await send(here, peer, "leave", sealed(peer, template, prev_events=[]))).error == FORBIDDEN
    assert await membership_of(alice, room_id, user_id) == "join"


@pytest.mark.invariant("SEC-AUTH-2")
@MEMBERSHIPS
@pytest.mark.parametrize(
    "changes",
    [
        {"type": "m.room.power_levels"},
        {"state_key": "@carol:elsewhere.test"},
        {"state_key": None},
        {"sender": "@carol:elsewhere.test", "state_key": "@carol:elsewhere.test"},
        {"content": {"membership": "ban"}},
        {"content": {"membership": ["join"]}},
        {"content": {}},
        {"room_id": "!other:elsewhere.test"},
        {"room_id": None},
        {"depth": -1},
        {"prev_events": None},
        {"auth_events": ["tea"]},
        {"hashes": {}},
        {"hashes": None, "signatures": {}},
        {"signatures": {"elsewhere.test": {"ed25519:1": "tea"}}},
    ],
    ids=str,
)
async def test_sec_auth_2_an_event_that_is_not_what_it_should_be_is_refused(
    here: RunningServer, peer: Peer, alice: Client, membership: str, changes: dict[str, Any]
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    if membership == "leave":
        await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    before = await membership_of(alice, room_id, user_id)
    template = (await make(here, peer, membership, room_id, user_id)).body
    version = room_version(template["room_version"])
    played = PlayedRoom(version, [peer], template["event"]["room_id"])
    good = played.sealed({**template["event"], **changes}, peer).json
    pdu = played.parsed({**good, **{key: value for key, value in changes.items() if value is not None}})

    for endpoint in (V1, V2):
        assert (await send(here, peer, membership, pdu, version=endpoint, room_id=room_id)).error == BAD
    assert await membership_of(alice, room_id, user_id) == before


@pytest.mark.invariant("SEC-AUTH-2")
@MEMBERSHIPS
async def test_sec_auth_2_path_and_event_have_to_agree(
    here: RunningServer, peer: Peer, alice: Client, membership: str
) -> None:
    room_id, other, user_id = await new_room(alice), await new_room(alice), user_of(peer, "bob")
    await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    pdu = await made(here, peer, membership, room_id, user_id)

    assert (await send(here, peer, membership, pdu, room_id=other)).error == BAD
    assert (await send(here, peer, membership, pdu, room_id=UNKNOWN_ROOM)).error == BAD
    assert (await send(here, peer, membership, pdu, event_id="$" + "e" * 43)).error == BAD


@pytest.mark.invariant("SEC-AUTH-2")
async def test_sec_auth_2_one_server_does_not_send_the_join_of_another(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(notary, "bob")
    pdu = await made(here, notary, "join", room_id, user_id)

    assert (await send(here, peer, "join", pdu)).error == BAD
    assert await membership_of(alice, room_id, user_id) == 404


async def test_what_was_altered_on_the_way_is_stored_as_a_redaction_leaves_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    pdu = await made(here, peer, "join", room_id, user_id)
    altered = PlayedRoom(room_version("12"), [peer], pdu.room_id).parsed(
        {**pdu.json, "content": {"membership": "join", "displayname": "Mallory"}}
    )
    answer = await send(here, peer, "join", altered)

    assert answer.body["event"]["content"] == {"membership": "join"}
    member = await alice.get(room_path(room_id, "state", "m.room.member", user_id))
    assert member.body == {"membership": "join"}


async def test_a_server_that_the_acl_denies_gets_nowhere(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    pdus = {
        membership: await made(here, peer, membership, room_id, user_id) for membership in ("join", "leave")
    }
    host = peer.name.partition(":")[0]
    await set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": [host]})

    for membership, pdu in pdus.items():
        assert (await make(here, peer, membership, room_id, user_id)).error == FORBIDDEN
        assert (await send(here, peer, membership, pdu)).error == FORBIDDEN


async def test_who_is_invited_may_refuse(here: RunningServer, peer: Peer, alice: Client) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    accept_invites(peer)
    assert (await make(here, peer, "leave", room_id, user_id)).error == FORBIDDEN
    invited = await alice.post(room_path(room_id, "invite"), {"user_id": user_id})
    template = (await make(here, peer, "leave", room_id, user_id)).body
    leave = sealed(peer, template, content={"membership": "leave", "reason": "coffee"})
    answer = await send(here, peer, "leave", leave)

    assert (invited.status, answer.status, answer.body) == (200, 200, {})
    member = await alice.get(room_path(room_id, "state", "m.room.member", user_id))
    assert member.body == {"membership": "leave", "reason": "coffee"}
    assert (await make(here, peer, "leave", room_id, user_id)).error == FORBIDDEN


async def test_the_other_servers_in_the_room_hear_of_joins_and_leaves(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    zoe = await made(here, notary, "join", room_id, user_of(notary, "zoe"))
    await send(here, notary, "join", zoe)
    sent = [await made(here, peer, "join", room_id, user_id)]
    await send(here, peer, "join", sent[0])
    sent.append(await made(here, peer, "leave", room_id, user_id))
    await send(here, peer, "leave", sent[1])
    told: list[Any] = []
    for _ in range(200):
        told = [json for transaction in notary.transactions for json in transaction.content["pdus"]]
        if len(told) >= len(sent):
            break
        await asyncio.sleep(0.02)

    assert told == [pdu.json for pdu in sent]


# -- restricted rooms


@versions_with_restricted_joins
async def test_a_member_of_the_allowed_room_is_let_in(
    here: RunningServer, peer: Peer, ours: OurSide, alice: Client, version: str
) -> None:
    gate, user_id = await new_room(alice), user_of(peer, "bob")
    room_id = await restricted(alice, gate, room_version=version)
    refused = await make(here, peer, "join", room_id, user_id)
    await send(here, peer, "join", await made(here, peer, "join", gate, user_id))
    pdu = await made(here, peer, "join", room_id, user_id)
    answer = await send(here, peer, "join", pdu)

    assert refused.error == FORBIDDEN
    assert pdu.content == {"membership": "join", AUTHORISER: alice.user_id}
    event = answer.body["event"]
    assert set(event["signatures"]) == {peer.name, name_of(here)}
    assert {**event, "signatures": pdu.json["signatures"]} == pdu.json
    [outcome] = await ours.gate.verify(room_version(version), [event], pushed=True)
    assert isinstance(outcome, Pdu)
    again = await make(here, peer, "join", room_id, user_id)
    assert again.body["event"]["content"] == {"membership": "join"}


async def test_the_conditions_are_checked_again_when_the_join_comes(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    gate, user_id = await new_room(alice), user_of(peer, "bob")
    room_id = await restricted(alice, gate)
    await send(here, peer, "join", await made(here, peer, "join", gate, user_id))
    pdu = await made(here, peer, "join", room_id, user_id)
    await send(here, peer, "leave", await made(here, peer, "leave", gate, user_id))

    assert (await send(here, peer, "join", pdu)).error == FORBIDDEN
    assert await membership_of(alice, room_id, user_id) == 404


@pytest.mark.invariant("SEC-SIGN-1")
async def test_sec_sign_1_nobody_is_let_in_by_whom_another_server_chose(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    gate, user_id = await new_room(alice), user_of(peer, "bob")
    room_id = await restricted(alice, gate, power_level_content_override={"invite": 50})
    carol = await here.nobody.register(unique_name("carol"))
    for room in (gate, room_id):
        await join(carol, room)
    template = (await make(here, peer, "join", gate, user_id)).body
    await send(here, peer, "join", sealed(peer, template))
    template = (await make(here, peer, "join", room_id, user_id)).body
    by_carol = sealed(peer, template, content={"membership": "join", AUTHORISER: carol.user_id})
    by_nobody = sealed(peer, template, content={"membership": "join"})
    of_others = sealed(peer, template, content={"membership": "join", AUTHORISER: "@zoe:elsewhere.test"})
    of_nowhere = sealed(peer, template, content={"membership": "join", AUTHORISER: ["zoe"]})

    errors = [
        (await send(here, peer, "join", pdu)).error for pdu in (by_carol, by_nobody, of_others, of_nowhere)
    ]
    assert errors == [FORBIDDEN, FORBIDDEN, BAD, BAD]
    assert await membership_of(alice, room_id, user_id) == 404


async def test_conditions_that_cannot_be_checked_here(here: RunningServer, peer: Peer, alice: Client) -> None:
    left, user_id = await new_room(alice), user_of(peer, "bob")
    await send(here, peer, "join", await made(here, peer, "join", left, user_id))
    await alice.post(room_path(left, "leave"), {})

    for gate in (UNKNOWN_ROOM, left):
        room_id = await restricted(alice, gate)
        answer = await make(here, peer, "join", room_id, user_id)
        assert answer.error == (400, "M_UNABLE_TO_AUTHORISE_JOIN")


async def test_nobody_here_may_let_the_user_in(here: RunningServer, peer: Peer, alice: Client) -> None:
    gate, user_id = await new_room(alice), user_of(peer, "bob")
    levels = {"invite": 50}
    room_id = await restricted(alice, gate, power_level_content_override=levels)
    carol = await here.nobody.register(unique_name("carol"))
    for room in (gate, room_id):
        await join(carol, room)
    await send(here, peer, "join", await made(here, peer, "join", gate, user_id))
    await alice.post(room_path(room_id, "leave"), {})

    answer = await make(here, peer, "join", room_id, user_id)
    assert answer.error == (400, "M_UNABLE_TO_GRANT_JOIN")


# -- without members


@pytest.mark.parametrize("naming", [None, "m.room.name", "m.room.canonical_alias"])
async def test_members_are_left_out_but_for_those_who_name_the_room(
    here: RunningServer, peer: Peer, alice: Client, naming: str | None
) -> None:
    room_id, user_id = await new_room(alice), user_of(peer, "bob")
    others = [await here.nobody.register(unique_name()) for _ in range(6)]
    for other in others:
        await join(other, room_id)
    if naming is not None:
        await set_state(alice, room_id, naming, {})
    await send(here, peer, "join", await made(here, peer, "join", room_id, user_id))
    left = await made(here, peer, "leave", room_id, user_id)
    await send(here, peer, "leave", left)
    pdu = await made(here, peer, "join", room_id, user_id)
    answer = await send(here, peer, "join", pdu, query="?omit_members=true")
    state = answer.body["state"]
    members = [event["state_key"] for event in state if event["type"] == "m.room.member"]
    whole = {event["type"] for event in state} - {"m.room.member"}

    assert answer.body["members_omitted"] is True
    assert answer.body["servers_in_room"] == [name_of(here)]
    heroes = [alice.user_id, *(other.user_id for other in others[:4])] if naming is None else []
    assert sorted(members) == sorted([user_id, *heroes])
    assert whole >= {"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.history_visibility"}
    assert not [event for event in answer.body["auth_chain"] if event in state]
    played = PlayedRoom(room_version("12"), [peer], pdu.room_id)
    told = {event.event_id for event in map(played.parsed, [*state, *answer.body["auth_chain"]])}
    for event in map(played.parsed, state):
        assert set(event.auth_events) <= told


async def test_the_servers_in_a_room_are_those_before_the_join(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client
) -> None:
    room_id = await new_room(alice)
    first = await made(here, notary, "join", room_id, user_of(notary, "zoe"))
    await send(here, notary, "join", first)
    pdu = await made(here, peer, "join", room_id, user_of(peer, "bob"))
    answer = await send(here, peer, "join", pdu, query="?omit_members=true")

    assert answer.body["servers_in_room"] == sorted([name_of(here), notary.name])
