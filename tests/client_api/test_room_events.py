"""Client-Server API, sections "Sending events to a room", "Redactions" and "Transaction identifiers"."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client_api.rooms import join, new_room, room_path
from tests.clients import Client, Response
from tests.room_versions import all_versions
from tests.servers import RunningServer, unique_name

TEXT = {"msgtype": "m.text", "body": "tea?"}
LOGOUT = "/_matrix/client/v3/logout"


@pytest.fixture
async def room_id(alice: Client) -> str:
    """A public room of alice."""
    return await new_room(alice)


async def send(
    client: Client, room_id: str, txn_id: str, body: Any = None, event_type: str = "m.room.message"
) -> Response:
    return await client.put(room_path(room_id, "send", event_type, txn_id), TEXT if body is None else body)


async def redact(
    client: Client, room_id: str, event_id: str, txn_id: str = "1", body: Any = None
) -> Response:
    return await client.put(room_path(room_id, "redact", event_id, txn_id), body)


async def sent(client: Client, room_id: str) -> str:
    """A new event's ID."""
    event_id: str = (await send(client, room_id, unique_name())).body["event_id"]
    return event_id


@pytest.mark.invariant("PROM-TXN")
async def test_prom_txn_a_transaction_is_of_one_device_and_path(
    server: RunningServer, alice: Client, room_id: str
) -> None:
    at_once = await asyncio.gather(*(send(alice, room_id, "1", {"number": n}) for n in range(5)))
    [first] = {answer.body["event_id"] for answer in at_once}
    other_phone = await server.nobody.log_in(alice)
    same_phone = await server.nobody.log_in(alice, device_id=alice.device_id)
    elsewhere = [
        await send(other_phone, room_id, "1"),
        await send(same_phone, await new_room(alice.as_user(same_phone)), "1"),
        await send(same_phone, room_id, "1", event_type="org.example.message"),
        await send(same_phone, room_id, "2"),
    ]

    assert (await send(same_phone, room_id, "1")).body["event_id"] == first
    assert len({first, *(answer.body["event_id"] for answer in elsewhere)}) == 5


async def test_a_device_that_was_logged_out_begins_anew(server: RunningServer, alice: Client) -> None:
    room_id = await new_room(alice)
    first = await send(alice, room_id, "1")
    await alice.post(LOGOUT)
    again = await server.nobody.log_in(alice, device_id=alice.device_id)
    second = await send(again, room_id, "1")

    assert second.status == 200
    assert second.body != first.body


@pytest.mark.invariant("PROM-TXN")
async def test_prom_txn_a_redaction_is_made_once(alice: Client, room_id: str) -> None:
    target, other = await sent(alice, room_id), await sent(alice, room_id)
    at_once = await asyncio.gather(*(redact(alice, room_id, target, "1", {"reason": "a"}) for _ in range(3)))
    changed = await redact(alice, room_id, target, "1", {"reason": "b"})
    of_other = await redact(alice, room_id, other, "1")
    as_event = await send(alice, room_id, "1", {"redacts": other}, "m.room.redaction")

    assert len({answer.body["event_id"] for answer in (*at_once, changed)}) == 1
    assert len({answer.body["event_id"] for answer in (changed, of_other, as_event)}) == 3


@pytest.mark.parametrize("what", ["send", "redact"])
async def test_a_transaction_id_has_a_limit(alice: Client, room_id: str, what: str) -> None:
    target = "m.room.message" if what == "send" else await sent(alice, room_id)
    statuses = {
        length: (await alice.put(room_path(room_id, what, target, "é" * length), {})).status
        for length in (255, 256, 1000)
    }

    assert statuses == {255: 200, 256: 400, 1000: 400}


@pytest.mark.invariant("SEC-JSON-1")
@pytest.mark.parametrize("path", ["send/org.example.a/1", "state/org.example.a", "state/org.example.a/b"])
@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b"{} {}", "M_NOT_JSON"),
        (b'{"a": NaN}', "M_NOT_JSON"),
        (b'{"a": -Infinity}', "M_NOT_JSON"),
        (b'{"a": "\xff"}', "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'{"a": 1.5}', "M_BAD_JSON"),
        (b'{"a": 1e3}', "M_BAD_JSON"),
        (b'{"a": -0}', "M_BAD_JSON"),
        (b'{"a": 9007199254740992}', "M_BAD_JSON"),
        (b'{"a": 1, "a": 2}', "M_BAD_JSON"),
        (b'{"a": "\\ud800"}', "M_BAD_JSON"),
        (b'{"\\udfff": 1}', "M_BAD_JSON"),
        (b'{"a":' + 64 * b"[" + 64 * b"]" + b"}", "M_BAD_JSON"),
        (b'{"a":' + 5000 * b"9" + b"}", "M_BAD_JSON"),
    ],
)
async def test_sec_json_1_what_is_no_content_of_an_event_is_refused(
    alice: Client, room_id: str, path: str, body: bytes, errcode: str
) -> None:
    answer = await alice.put(f"{room_path(room_id)}/{path}", body)

    assert answer.error == (400, errcode)


async def test_content_may_hold_any_other_text(alice: Client, room_id: str) -> None:
    content = {"body": "nothing \0 more \U0001f375", "\0": 2**53 - 1, "deep": {"a": [[], {}, None, True]}}
    event_id = (await send(alice, room_id, "1", content)).body["event_id"]
    event = await alice.get(room_path(room_id, "event", event_id))

    assert event.body["content"] == content


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_an_event_that_is_too_large_is_refused(alice: Client, room_id: str) -> None:
    large = {"body": "x" * 64_000}
    for too_large in ({"body": "x" * 65_536}, {"body": "é" * 32_768}, {"body": "x" * 900_000}):
        assert (await send(alice, room_id, "1", too_large)).error == (413, "M_TOO_LARGE")
        state = await alice.put(room_path(room_id, "state", "org.example.a"), too_large)
        assert state.error == (413, "M_TOO_LARGE")

    assert (await send(alice, room_id, "1", large)).status == 200
    assert (await alice.put(room_path(room_id, "state", "org.example.a"), large)).status == 200


@pytest.mark.invariant("SEC-SIZE-1")
async def test_sec_size_1_types_and_state_keys_have_255_bytes(alice: Client, room_id: str) -> None:
    longest, too_long = "é" * 127 + "x", "é" * 128
    statuses = [
        [
            (await send(alice, room_id, unique_name(), event_type=text)).status,
            (await alice.put(room_path(room_id, "state", text), {})).status,
            (await alice.put(room_path(room_id, "state", "org.example.a", text), {})).status,
        ]
        for text in (longest, too_long)
    ]
    answer = await send(alice, room_id, "1", event_type=too_long)

    assert statuses == [[200, 200, 200], [400, 400, 400]]
    assert answer.error == (400, "M_INVALID_PARAM")


@pytest.mark.invariant("SEC-HTTP-1")
async def test_sec_http_1_path_segments_are_decoded_after_they_are_split(alice: Client, room_id: str) -> None:
    for event_type, key in [("org/example", "a/b"), ("a?b#c", "d&e"), ("50%", "%2F"), ("a", "+ ")]:
        path = room_path(room_id, "state", event_type, key)
        put = await alice.put(path, {"key": key})
        got = await alice.get(path, {"format": "event"})
        assert (put.status, got.body["type"], got.body["state_key"]) == (200, event_type, key)
    for broken in ("a%00b", "a%FFb", "a%2", "%zz"):
        answer = await alice.get(f"{room_path(room_id)}/state/{broken}")
        assert answer.status in {400, 404}


async def test_the_slash_before_an_empty_state_key_may_be_left_out(alice: Client, room_id: str) -> None:
    path = f"{room_path(room_id)}/state/org.example.a"
    first = await alice.put(path, {"a": 1})
    same = await alice.put(f"{path}/", {"a": 1})
    second = await alice.put(f"{path}/", {"a": 2})

    assert first.body == same.body != second.body
    assert (await alice.get(path)).body == (await alice.get(f"{path}/")).body == {"a": 2}
    assert (await alice.post(path, {})).error == (405, "M_UNRECOGNIZED")


async def test_who_is_not_in_a_room_cannot_send_to_it(alice: Client, bob: Client, room_id: str) -> None:
    for room in (room_id, "!unknown:test"):
        assert (await send(bob, room, "1")).error == (403, "M_FORBIDDEN")
        state = await bob.put(room_path(room, "state", "m.room.name"), {"name": "Coffee"})
        assert state.error == (403, "M_FORBIDDEN")
        assert (await redact(bob, room, "$unknown")).error == (403, "M_FORBIDDEN")
    assert (await send(alice, "no room", "1")).error == (400, "M_INVALID_PARAM")


async def test_state_that_no_client_can_set(alice: Client, bob: Client, room_id: str) -> None:
    refused = {
        "m.room.create": await alice.put(room_path(room_id, "state", "m.room.create"), {}),
        "m.room.redaction": await alice.put(
            room_path(room_id, "state", "m.room.redaction"), {"redacts": "$a"}
        ),
    }
    of_bob = await alice.put(room_path(room_id, "state", "org.example.a", bob.user_id), {})

    assert {answer.status for answer in refused.values()} == {400}
    assert of_bob.error == (403, "M_FORBIDDEN")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"allow": "*"},
        {"allow": ["elsewhere"]},
        {"allow": ["*"], "deny": ["TEST"]},
        {"allow": ["*"], "deny": ["t?s*"]},
    ],
)
async def test_an_acl_does_not_shut_out_the_server_that_sets_it(
    alice: Client, room_id: str, content: dict[str, Any]
) -> None:
    path = room_path(room_id, "state", "m.room.server_acl")
    refused = await alice.put(path, content)
    allowed = await alice.put(path, {"allow": ["*"], "deny": ["*.evil.example"]})

    assert refused.error == (400, "M_UNKNOWN")
    assert allowed.status == 200


@all_versions
async def test_who_may_redact_what(alice: Client, bob: Client, version: str) -> None:
    room_id = await new_room(alice, room_version=version)
    await join(bob, room_id)
    of_alice, of_bob = await sent(alice, room_id), await sent(bob, room_id)
    create = (await alice.get(room_path(room_id, "state", "m.room.create"), {"format": "event"})).body

    assert (await redact(bob, room_id, of_alice)).error == (403, "M_FORBIDDEN")
    assert (await redact(bob, room_id, of_bob)).status == 200
    assert (await redact(alice, room_id, of_bob)).status == 200
    assert (await redact(alice, room_id, create["event_id"])).error == (403, "M_FORBIDDEN")
    assert (await redact(alice, room_id, "$unknown")).error == (404, "M_NOT_FOUND")
    assert (await redact(alice, await new_room(alice), of_alice)).error == (404, "M_NOT_FOUND")
    event = (await alice.get(room_path(room_id, "event", of_bob))).body
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["redacts"] == of_bob


async def test_a_redaction_says_what_it_is_asked_to(alice: Client, room_id: str) -> None:
    target = await sent(alice, room_id)
    refused = [
        (await redact(alice, room_id, target, "1", {"reason": 5})).error,
        (await redact(alice, room_id, target, "1", {"redacts": "$other"})).error,
        (await redact(alice, room_id, target, "1", b"{")).error,
        (await redact(alice, room_id, "no event", "1")).error,
        (await send(alice, room_id, "1", {}, "m.room.redaction")).error,
    ]
    event_id = (await redact(alice, room_id, target, "1", {"reason": "cold"})).body["event_id"]
    event = (await alice.get(room_path(room_id, "event", event_id))).body

    assert refused == [
        (400, "M_BAD_JSON"),
        (400, "M_INVALID_PARAM"),
        (400, "M_NOT_JSON"),
        (400, "M_INVALID_PARAM"),
        (400, "M_BAD_JSON"),
    ]
    assert event["content"] == {"reason": "cold", "redacts": target}
    assert event["redacts"] == target


@pytest.mark.invariant("SEC-VIS-4")
async def test_sec_vis_4_a_stranger_learns_nothing_of_a_rooms_events(alice: Client, bob: Client) -> None:
    room_id = await new_room(alice, preset="private_chat")
    known = await redact(bob, room_id, await sent(alice, room_id))
    unknown = await redact(bob, room_id, "$unknown")

    assert known.error == (403, "M_FORBIDDEN")
    assert (known.status, known.body) == (unknown.status, unknown.body)
