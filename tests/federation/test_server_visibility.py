"""Which events of a room other servers see whole, and of which they see what a redaction leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.history_visibility import View, Visibility, may_see, strongest_membership
from homeserver.protocol.identifiers import EventId, RoomId
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import room_version
from homeserver.protocol.signing import verify_event_signatures
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.client_events import ReadEvent
from homeserver.services.server_visibility import ServerVisibility
from storage import room_timeline
from storage.event_codec import decode_event
from storage.packed_state import StateEntries
from storage.room_heads import RoomRef
from storage.state_deltas import ForkState
from tests.client_api.rooms import new_room, set_state
from tests.clients import Client
from tests.federation.history_requests import (
    backfill_uri,
    event_uri,
    get,
    ids_of,
    keys_of,
    missing_uri,
)
from tests.federation.peers import Peer
from tests.federation.played_rooms import user_of
from tests.federation.rooms_with_guests import SharedRoom, new_shared_room, put_fork, say
from tests.servers import RunningServer

UNKNOWN_EVENT = "$" + "a" * 43
MESSAGE = "m.room.message"


def is_pruned(event: JsonObject) -> bool:
    """Whether an event is as a redaction leaves it, which its content shows."""
    return event["content"] == {} or event == redact(room_version("12"), event)


async def shown(here: RunningServer, peer: Peer, room: SharedRoom, event_ids: Sequence[str]) -> list[bool]:
    """Which messages a peer sees whole, as all endpoints agree."""
    latest = event_ids[-1]
    by_endpoint: list[Mapping[str, JsonObject]] = []
    events = (await get(here, peer, backfill_uri(room.room_id, [latest])))["pdus"]
    by_endpoint.append(dict(zip(ids_of(events), events, strict=True)))
    single = [(await get(here, peer, event_uri(event_id)))["pdus"][0] for event_id in event_ids]
    by_endpoint.append(dict(zip(event_ids, single, strict=True)))
    between: dict[str, JsonObject] = {}
    for one, later in pairwise(event_ids):
        content = {"latest_events": [later], "earliest_events": [], "limit": 20}
        events = (await get(here, peer, missing_uri(room.room_id), content))["events"]
        between |= dict(zip(ids_of(events), events, strict=True))
        assert one in between
    by_endpoint.append({**between, latest: single[-1]})
    seen = [[not is_pruned(events[event_id]) for event_id in event_ids] for events in by_endpoint]
    assert seen[0] == seen[1] == seen[2]
    return seen[0]


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("visibility", Visibility)
async def test_sec_vis_1_a_server_sees_what_any_of_its_users_may_see(
    here: RunningServer, peer: Peer, notary: Peer, alice: Client, visibility: Visibility
) -> None:
    bob, carol, dave = user_of(peer, "bob"), user_of(peer, "carol"), user_of(notary, "dave")
    rules = [{"type": "m.room.history_visibility", "content": {"history_visibility": visibility.value}}]
    room = SharedRoom(here, await new_room(alice, initial_state=rules))
    await room.enter(notary, dave)
    said = await say(alice, room, "nobody of them was here")
    await room.put(notary, dave, "m.room.member", {"membership": "invite"}, bob)
    said += await say(alice, room, "bob was invited")
    await room.enter(peer, bob)
    said += await say(alice, room, "bob is here")
    await room.leave(peer, bob)
    said += await say(alice, room, "bob has left")
    await room.enter(peer, carol)
    said += await say(alice, room, "carol is here")

    expected = {
        Visibility.WORLD_READABLE: [True] * 5,
        Visibility.SHARED: [True] * 5,
        Visibility.INVITED: [False, True, True, False, True],
        Visibility.JOINED: [False, False, True, False, True],
    }[visibility]
    assert await shown(here, peer, room, said) == expected


@pytest.mark.invariant("SEC-VIS-1")
async def test_sec_vis_1_events_that_change_what_a_server_sees_are_seen_if_either_side_shows_them(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob, carol = user_of(peer, "bob"), user_of(peer, "carol")
    rules = [{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}]
    room = SharedRoom(here, await new_room(alice, initial_state=rules))
    join = await room.put(peer, bob, "m.room.member", {"membership": "join", "displayname": "Bob"}, bob)
    leave = await room.put(peer, bob, "m.room.member", {"membership": "leave", "reason": "tea"}, bob)
    hidden = await set_state(alice, room.room_id, "m.room.topic", {"topic": "hidden"})
    visibility = {"history_visibility": "shared", "org.example.why": "tea"}
    opened = await set_state(alice, room.room_id, "m.room.history_visibility", visibility)
    visible = await set_state(alice, room.room_id, "m.room.topic", {"topic": "visible"})
    closed = await set_state(
        alice, room.room_id, "m.room.history_visibility", {**visibility, "history_visibility": "invited"}
    )
    hidden_again = await set_state(alice, room.room_id, "m.room.topic", {"topic": "hidden again"})
    await room.enter(peer, carol)
    [last] = await say(alice, room, "last")

    event_ids = [join.event_id, leave.event_id, hidden, opened, visible, closed, hidden_again, last]
    expected = [True, True, False, True, True, True, False, True]
    assert await shown(here, peer, room, event_ids) == expected


@pytest.mark.invariant("SEC-VIS-1")
async def test_sec_vis_1_an_event_on_a_fork_is_judged_by_the_state_before_it(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    bob, carol = user_of(peer, "bob"), user_of(peer, "carol")
    rules = [{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}]
    room = SharedRoom(here, await new_room(alice, initial_state=rules))
    [first] = await say(alice, room, "first")
    await room.enter(peer, bob)
    await say(alice, room, "second")
    await room.enter(peer, carol)
    persister = here.services.room_events.persister
    numbers: dict[str, tuple[int, int]] = {}
    async with room.database.connection() as tx:
        for event_type, state_key in (
            ("m.room.member", bob),
            ("m.room.member", carol),
            ("m.room.history_visibility", ""),
        ):
            row = await tx.fetchrow(
                "SELECT event_types.nid, atoms.nid FROM event_types, atoms WHERE name = $1 AND s = $2",
                event_type.encode(),
                state_key.encode(),
            )
            numbers[state_key] = (row[0], row[1])
    head_seq = await persister.consider(RoomId(room.room_id), lambda head: head.seq)
    bobs_join = await persister.consider(
        RoomId(room.room_id), lambda head: head.stored(("m.room.member", bob))
    )
    assert bobs_join is not None
    create_ver = 5

    async def put(state: ForkState) -> str:
        return (await put_fork(room, peer, bob, "fork", EventId(first), state=state)).event_id

    neither = {numbers[bob]: 0, numbers[carol]: 0}
    expected = {
        await put(ForkState(create_ver)): False,
        await put(ForkState(create_ver, {numbers[bob]: bobs_join.nid})): True,
        await put(ForkState(head_seq)): True,
        await put(ForkState(head_seq, {numbers[bob]: 0})): True,
        await put(ForkState(head_seq, neither)): False,
        await put(ForkState(head_seq, {**neither, numbers[""]: 0})): True,
    }
    assert {
        event_id: not is_pruned((await get(here, peer, event_uri(event_id)))["pdus"][0])
        for event_id in expected
    } == expected


async def test_hidden_events_still_have_their_ids_and_signatures(
    here: RunningServer, peer: Peer, alice: Client
) -> None:
    rules = [{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}]
    room = SharedRoom(here, await new_room(alice, initial_state=rules))
    [said] = await say(alice, room, "tea")
    await room.enter(peer, user_of(peer, "bob"))

    [event] = (await get(here, peer, event_uri(said)))["pdus"]

    assert event["content"] == {}
    assert ids_of([event]) == [said]
    pdu = stored_pdu(room_version("12"), RoomId(room.room_id), EventId(said), event)
    verify_event_signatures(room_version("12"), pdu, keys_of(here))


async def test_an_open_history_takes_no_look_at_the_users_and_a_closed_one_a_bounded_one(
    here: RunningServer, peer: Peer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [user_of(peer, name) for name in ("bob", "carol", "dave")]
    room = await new_shared_room(here, alice, peer, *users)
    await say(alice, room, *"abc")
    queries: list[str] = []

    async def judged() -> list[bool]:
        async with room.database.connection() as tx:
            row = await tx.fetchrow("SELECT nid FROM rooms WHERE room_id = $1", room.room_id)
            ref = RoomRef(row["nid"], RoomId(room.room_id), room_version("12"))
            rows = await room_timeline.read_forwards(tx, ref.nid, (0, 0), (10**9, 0), 100)
            events = [ReadEvent(row, row.pdu(ref)) for row in rows]
            queries.clear()
            with tx.query_logger(lambda record: queries.append(record.query)):
                visible = await ServerVisibility().visible(tx, ref, peer.name, events)
        return [event.row.nid in visible for event in events]

    assert all(await judged())
    assert len(queries) == 3
    assert not any("memberships" in query for query in queries)
    await set_state(alice, room.room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    await say(alice, room, "d")
    assert all(await judged())
    assert len(queries) == 5
    # Where not all can be looked at, what is not looked at does not count.
    monkeypatch.setattr("homeserver.services.server_visibility.MAX_CHANGES", 1)
    for name in ("erin", "frank"):
        await room.leave(peer, users.pop(0))
        await room.enter(peer, user_of(peer, name))
    await say(alice, room, "e")
    assert (await judged())[-1] is False
    monkeypatch.setattr("homeserver.services.server_visibility.USERS_AT_ONCE", 1)
    assert all(await judged())
    monkeypatch.setattr("homeserver.services.server_visibility.MAX_USERS", 0)
    assert (await judged())[-1] is False


@pytest.mark.invariant("SEC-VIS-1")
@pytest.mark.parametrize("seed", range(6))
async def test_sec_vis_1_in_random_rooms_a_server_sees_what_the_states_before_events_let_it_see(
    here: RunningServer,
    peer: Peer,
    notary: Peer,
    alice: Client,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Against a model that keeps all memberships and the visibility at every version of the state."""
    random = Random(seed)
    monkeypatch.setattr("homeserver.services.server_visibility.USERS_AT_ONCE", random.choice((1, 2, 500)))
    room = SharedRoom(here, await new_room(alice))
    users = [(peer, user_of(peer, name)) for name in ("bob", "carol")] + [(notary, user_of(notary, "dave"))]
    states: list[tuple[Visibility, dict[str, object]]] = []
    expected: dict[EventId, bool] = {}

    def note(pdu: Pdu, ver: int, own: Mapping[str, object]) -> None:
        visibility, members = states[ver]
        held = [
            membership for user, membership in {**members, **own}.items() if user.endswith(f":{peer.name}")
        ]
        before = View(visibility, strongest_membership(held))
        expected[pdu.event_id] = may_see(before, before.after(pdu, peer.name), joined_later=True)

    head_seq = await here.services.room_events.persister.consider(RoomId(room.room_id), lambda head: head.seq)
    states += [(Visibility.SHARED, {})] * (head_seq + 1)
    steps = [random.choice(("visibility", "member", "message", "fork")) for _ in range(38)]
    for step, kind in enumerate(("visibility", "message", *steps)):
        origin, user = random.choice(users)
        visibility, members = states[-1]
        content: dict[str, Any] = {"number": step}
        if kind == "visibility":
            closed = (Visibility.JOINED, Visibility.INVITED)
            visibility = random.choice([*closed, *Visibility] if step else closed)
            content |= {"history_visibility": visibility.value}
            pdu = await room.put(origin, user, "m.room.history_visibility", content, "")
        elif kind == "member":
            membership = random.choice(("join", "invite", "leave", "leave"))
            members = {**members, user: membership}
            pdu = await room.put(origin, user, "m.room.member", content | {"membership": membership}, user)
        elif kind == "message":
            pdu = await room.put(origin, user, MESSAGE, content)
        ver, own = len(states) - 1, dict[str, object]()
        if kind == "fork":
            ver = random.randrange(head_seq, len(states))
            entries, own = await random_members(room, random, users)
            pdu = await put_fork(
                room, origin, user, str(step), EventId(UNKNOWN_EVENT), state=ForkState(ver, entries)
            )
        note(pdu, ver, own)
        states.append((visibility, members))
    await room.enter(peer, users[0][1])

    async with room.database.connection() as tx:
        row = await tx.fetchrow("SELECT nid FROM rooms WHERE room_id = $1", room.room_id)
        ref = RoomRef(row["nid"], RoomId(room.room_id), room_version("12"))
        rows = await room_timeline.read_forwards(tx, ref.nid, (head_seq + 1, 0), (10**9, 0), 40)
        random.shuffle(rows)
        visible = await ServerVisibility().visible(
            tx, ref, peer.name, [ReadEvent(row, row.pdu(ref)) for row in rows]
        )
    assert {row.event_id: row.nid in visible for row in rows} == expected
    assert len(set(expected.values())) == 2


async def random_members(
    room: SharedRoom, random: Random, users: Sequence[tuple[Peer, str]]
) -> tuple[StateEntries, dict[str, object]]:
    """Other member events for some users: in numbers, and what they say."""
    entries: StateEntries = {}
    members: dict[str, object] = {}
    async with room.database.connection() as tx:
        for _, user in random.sample(users, random.randint(0, 2)):
            rows = await tx.fetch(
                """
                SELECT atoms.nid AS user_nid, events.nid, events.flags, events.json
                FROM atoms JOIN events ON skey_nid = atoms.nid AND type_nid = 1
                JOIN rooms ON rooms.nid = room_nid WHERE s = $1 AND room_id = $2 ORDER BY room_seq
                """,
                user.encode(),
                room.room_id,
            )
            if not rows:
                continue
            row = random.choice([*rows, None])
            entries[1, rows[0]["user_nid"]] = 0 if row is None else row["nid"]
            members[user] = row and decode_event(row["flags"], row["json"])["content"]["membership"]
    return entries, members
