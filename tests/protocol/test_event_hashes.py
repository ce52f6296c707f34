from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from canonicaljson import encode_canonical_json
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.errors import InvalidEvent, InvalidIdentifier
from homeserver.protocol.event_hashes import (
    content_hash,
    decode_event_id,
    encode_event_id,
    event_id_of,
    has_valid_content_hash,
    reference_hash,
    room_id_of_create,
)
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64
from tests.protocol.rooms import V11

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

EVENT: JsonObject = {
    "auth_events": ["$a"],
    "content": {"membership": "join", "displayname": "Tea"},
    "depth": 3,
    "origin_server_ts": 1000000,
    "prev_events": [],
    "room_id": "!x:domain",
    "sender": "@a:domain",
    "state_key": "@a:domain",
    "type": "m.room.member",
    "x": 1,
}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {
                "room_id": "!x:domain",
                "sender": "@a:domain",
                "origin": "domain",
                "origin_server_ts": 1000000,
                "signatures": {},
                "hashes": {},
                "type": "X",
                "content": {},
                "prev_events": [],
                "auth_events": [],
                "depth": 3,
                "unsigned": {"age_ts": 1000000},
            },
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
        ),
        (
            {
                "content": {"body": "Here is the message content"},
                "event_id": "$0:domain",
                "origin": "domain",
                "origin_server_ts": 1000000,
                "type": "m.room.message",
                "room_id": "!r:domain",
                "sender": "@u:domain",
                "signatures": {},
                "unsigned": {"age_ts": 1000000},
            },
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
        ),
    ],
)
def test_the_content_hashes_of_the_specification(event: JsonObject, expected: str) -> None:
    """Source: Appendices, "Cryptographic Test Vectors", "Event Signing"."""
    assert encode_base64(content_hash(V11, event)) == expected
    event["hashes"] = {"sha256": expected}
    assert has_valid_content_hash(V11, event)
    event["content"]["body"] = "Another message"
    assert not has_valid_content_hash(V11, event)


def test_the_event_id_is_the_hash_of_what_a_redaction_leaves() -> None:
    event = {**EVENT, "hashes": {"sha256": encode_base64(content_hash(V11, EVENT))}}
    left = {key: value for key, value in event.items() if key != "x"} | {"content": {"membership": "join"}}
    digest = sha256(encode_canonical_json(left)).digest()

    assert reference_hash(V11, event) == digest
    event_id = "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
    for same in (event, {**event, "x": 2}, {**event, "signatures": {"a": {}}, "unsigned": {"age": 1}}):
        assert event_id_of(V11, same) == event_id
    assert event_id_of(V11, {**event, "depth": 4}) != event_id
    assert room_id_of_create(EventId(event_id)) == "!" + event_id[1:]


@pytest.mark.parametrize(
    "hashes", [None, [], {}, {"sha256": None}, {"sha256": 1}, {"sha256": "*"}, {"sha256": "A"}]
)
def test_a_content_hash_that_is_none_is_refused(hashes: object) -> None:
    with pytest.raises(InvalidEvent):
        has_valid_content_hash(V11, {**EVENT, "hashes": hashes})


def test_a_content_hash_may_be_padded_and_must_be_whole() -> None:
    text = encode_base64(content_hash(V11, EVENT))
    assert has_valid_content_hash(V11, {**EVENT, "hashes": {"sha256": text + "="}})
    assert not has_valid_content_hash(V11, {**EVENT, "hashes": {"sha256": text[:40]}})
    assert not has_valid_content_hash(V11, {**EVENT, "hashes": {"sha256": ""}})


@given(st.binary(min_size=32, max_size=32))
def test_a_hash_is_stored_as_its_32_bytes(digest: bytes) -> None:
    event_id = decode_event_id(digest)
    assert encode_event_id(event_id) == digest


@given(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.text(alphabet=ALPHABET, min_size=43, max_size=43).map(lambda text: "$" + text)
    | st.text(alphabet="$:aé", min_size=30, max_size=34)
)
def test_every_event_id_comes_back_from_storage_as_it_was(text: str) -> None:
    data = encode_event_id(EventId(text))
    assert decode_event_id(data) == text


@given(st.text(alphabet=ALPHABET, min_size=42, max_size=42))
def test_only_one_of_the_texts_with_the_same_bits_is_a_hash(stem: str) -> None:
    texts = ["$" + stem + last for last in ALPHABET]
    hashes = [text for text in texts if len(encode_event_id(EventId(text))) == 32]
    assert len(hashes) == 16
    assert len({encode_event_id(EventId(text)) for text in texts}) == 64
    for text in hashes:
        assert "$" + base64.urlsafe_b64encode(encode_event_id(EventId(text))).decode().rstrip("=") == text


@pytest.mark.parametrize("text", ["$a\0", "\0", "$" + "a" * 31 + "\0", "$\ud800"])
def test_a_text_that_no_event_has_as_its_id_is_not_stored(text: str) -> None:
    with pytest.raises(InvalidIdentifier):
        encode_event_id(EventId(text))


def test_bytes_that_are_no_event_id_are_seen() -> None:
    with pytest.raises(InvalidIdentifier):
        decode_event_id(b"\xff" * 31)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$",
        "$" + "A" * 42,
        "$" + "A" * 44,
        "!" + "A" * 43,
        "$" + "A" * 42 + "B",
        "$" + "A" * 43 + "\n",
        "$" + "A" * 42 + "=",
        "$+" + "A" * 42,
        "$" + "Ａ" * 43,
    ],
)
def test_other_texts_are_no_hashes(text: str) -> None:
    assert len(encode_event_id(EventId(text))) != 32
