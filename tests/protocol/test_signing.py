from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from nacl.bindings import crypto_core_ed25519_add
from signedjson.key import decode_signing_key_base64, read_signing_keys
from signedjson.sign import sign_json as sign_otherwise

from homeserver.protocol.errors import BadJson, BadSignature, InvalidKey
from homeserver.protocol.event_hashes import content_hash
from homeserver.protocol.events import EventDraft, Pdu, build_pdu, parse_pdu, redact_pdu
from homeserver.protocol.identifiers import EventId, RoomId, ServerName, UserId
from homeserver.protocol.signing import (
    ServerKeys,
    SigningKey,
    VerifyKey,
    decode_verify_key,
    parse_signing_key,
    required_signers,
    sign_event,
    sign_json,
    signature_key_ids,
    verify_event_signatures,
    verify_signature,
    verify_signed_json,
)
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64, encode_base64
from tests.protocol.json_values import canonical_objects
from tests.protocol.rooms import V11, V12

NOW: Final = 1_700_000_000_000
ONE: Final = ServerName("one.test")
TWO: Final = ServerName("two.test")
KEY: Final = SigningKey.from_seed("a_1", b"1" * 32)
OTHER_KEY: Final = SigningKey.from_seed("b", b"2" * 32)
KEYS: Final[ServerKeys] = {"ed25519:a_1": VerifyKey(KEY.public_key, NOW)}

# Appendices, "Cryptographic Test Vectors"
SPEC_SEED: Final = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"
SPEC_SERVER: Final = ServerName("domain")
# Room version 1 keeps more of an event than version 11; these are the keys that the vectors have.
SPEC_VERSION: Final = replace(V11, redaction_keeps=V11.redaction_keeps | {"origin"})

GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
SMALL_ORDER: Final = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)
NOT_CANONICAL: Final = (
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
)


def spec_key() -> SigningKey:
    seed = decode_base64(SPEC_SEED)
    assert seed is not None
    return SigningKey.from_seed("1", seed)


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_the_json_signatures_of_the_specification(value: JsonObject, signature: str) -> None:
    """Source: Appendices, "Cryptographic Test Vectors", "JSON Signing"."""
    expected = {**value, "signatures": {"domain": {"ed25519:1": signature}}}
    assert sign_json(value, SPEC_SERVER, spec_key()) == expected


@pytest.mark.parametrize(
    ("event", "signature"),
    [
        (
            {
                "room_id": "!x:domain",
                "sender": "@a:domain",
                "origin": "domain",
                "origin_server_ts": 1000000,
                "signatures": {},
                "type": "X",
                "content": {},
                "prev_events": [],
                "auth_events": [],
                "depth": 3,
                "unsigned": {"age_ts": 1000000},
            },
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
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
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ],
)
def test_the_event_signatures_of_the_specification(event: JsonObject, signature: str) -> None:
    """Source: Appendices, "Cryptographic Test Vectors", "Event Signing"."""
    hashed = {**event, "hashes": {"sha256": encode_base64(content_hash(SPEC_VERSION, event))}}
    signed = sign_event(SPEC_VERSION, hashed, SPEC_SERVER, spec_key())
    assert signed == {**hashed, "signatures": {"domain": {"ed25519:1": signature}}}


@given(canonical_objects())
def test_signatures_are_those_of_a_second_implementation(value: JsonObject) -> None:
    value = {key: part for key, part in value.items() if key not in ("signatures", "unsigned")}
    before = deepcopy(value)
    signed = sign_json(value, ONE, KEY)
    other_key = decode_signing_key_base64("ed25519", "a_1", KEY.to_text().split()[2])
    assert signed == sign_otherwise(deepcopy(value), ONE, other_key)
    assert value == before
    verify_signed_json({**signed, "unsigned": {"age": 1}}, ONE, KEYS, valid_at=NOW)


def test_a_key_file_is_one_line_that_others_read() -> None:
    text = KEY.to_text()
    assert text == f"ed25519 a_1 {encode_base64(b'1' * 32)}\n"
    for line in (text, text.strip(), text.strip() + "=\r\n"):
        key = parse_signing_key(line)
        assert (key.key_id, key.public_key) == ("ed25519:a_1", KEY.public_key)
        assert key.sign(b"tea") == KEY.sign(b"tea")
    [other] = read_signing_keys([text])
    assert bytes(other.verify_key) == KEY.public_key
    assert "MTEx" not in repr(KEY) and "1111" not in repr(KEY)


SEED: Final = encode_base64(b"1" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "ed25519",
        "ed25519 a",
        f"a {SEED}",
        f"rsa a {SEED}",
        f"ed25519 a:b {SEED}",
        f"ed25519 a/b {SEED}",
        f"ed25519 é {SEED}",
        f"ed25519 {'k' * 57} {SEED}",
        f"ed25519 a {SEED} x",
        f"ed25519 a {SEED}\ned25519 b {SEED}",
        f"ed25519\na\n{SEED}",
        f"ed25519 a {SEED[:-2]}",
        f"ed25519 a {SEED}AAAA",
        f"ed25519 a *{SEED[1:]}",
        "ed25519 a \ud800",
    ],
)
def test_a_key_file_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        parse_signing_key(text)


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_keys_that_were_published_are_refused() -> None:
    with pytest.raises(InvalidKey):
        parse_signing_key(f"ed25519 1 {SPEC_SEED}")

    published = spec_key()
    keys = {"ed25519:1": VerifyKey(published.public_key, NOW), **KEYS}
    for signed in (sign_json({}, ONE, published), sign_json(sign_json({}, ONE, KEY), ONE, published)):
        with pytest.raises(BadSignature):
            verify_signed_json(signed, ONE, keys, valid_at=NOW)

    key = decode_verify_key("l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og")
    with pytest.raises(BadSignature, match="published"):
        verify_signature(key, b"", bytes(64))


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize("point", [*SMALL_ORDER, *NOT_CANONICAL])
def test_sec_sign_3_points_that_fit_any_message_are_refused(point: str) -> None:
    public_key = bytes.fromhex(point)
    with pytest.raises(InvalidKey):
        decode_verify_key(encode_base64(public_key))
    for first in (*SMALL_ORDER, *NOT_CANONICAL):
        for message in (b"", b"a", b"b", b"c"):
            with pytest.raises(BadSignature):
                verify_signature(public_key, message, bytes.fromhex(first) + bytes(32))


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_a_key_mixed_with_a_small_one_is_refused() -> None:
    assert decode_verify_key(encode_base64(KEY.public_key)) == KEY.public_key
    mixed = crypto_core_ed25519_add(KEY.public_key, bytes.fromhex(SMALL_ORDER[4]))
    with pytest.raises(InvalidKey):
        decode_verify_key(encode_base64(mixed))


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_nobody_makes_a_second_signature_of_a_first() -> None:
    signature = KEY.sign(b"tea")
    verify_signature(KEY.public_key, b"tea", signature)
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    with pytest.raises(BadSignature):
        verify_signature(KEY.public_key, b"tea", signature[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize(
    "text", [None, 1, "", "A", "****", encode_base64(b"1" * 31), encode_base64(b"1" * 33), ["x"]]
)
def test_sec_sign_3_what_is_no_key_is_refused(text: object) -> None:
    with pytest.raises(InvalidKey):
        decode_verify_key(text)


def signed_by_one(**signatures: object) -> JsonObject:
    """An object with signatures of one.test: those given, beside a good one."""
    good = sign_json({"a": 1}, ONE, KEY)["signatures"][ONE]
    return {
        "a": 1,
        "signatures": {ONE: {**good, **{f"ed25519:{version}": text for version, text in signatures.items()}}},
    }


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_signatures_by_keys_nobody_knows_are_passed_over() -> None:
    value = signed_by_one(unknown="x", policy_server="x")
    value["signatures"][ONE]["rsa:a_1"] = 5
    value["signatures"][TWO] = {"ed25519:a_1": "x"}
    keys = {**KEYS, "ed25519:policy_server": KEYS["ed25519:a_1"], "rsa:a_1": KEYS["ed25519:a_1"]}
    verify_signed_json(value, ONE, keys, valid_at=NOW)
    assert signature_key_ids(value, ONE) == ["ed25519:a_1", "ed25519:unknown"]


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize(
    "text", ["", "A", "no base64", encode_base64(bytes(64)), encode_base64(bytes(63)), None, 1, [], {}]
)
def test_sec_sign_3_one_bad_signature_by_a_known_key_is_enough(text: object) -> None:
    value = signed_by_one(b=text)
    verify_signed_json(value, ONE, KEYS, valid_at=NOW)
    with pytest.raises(BadSignature):
        verify_signed_json(
            value, ONE, {**KEYS, "ed25519:b": VerifyKey(OTHER_KEY.public_key, NOW)}, valid_at=NOW
        )


@pytest.mark.invariant("SEC-SIGN-3")
@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        "x",
        {},
        {ONE: None},
        {ONE: []},
        {ONE: {}},
        {ONE: {"rsa:1": "x"}},
        {TWO: {"ed25519:a_1": "x"}},
    ],
)
def test_sec_sign_3_at_least_one_good_signature_is_needed(signatures: Any) -> None:
    with pytest.raises(BadSignature):
        verify_signed_json({"signatures": signatures}, ONE, KEYS, valid_at=NOW)
    with pytest.raises(BadSignature):
        verify_signed_json({}, ONE, KEYS, valid_at=NOW)


@pytest.mark.parametrize("signatures", [None, [], {ONE: []}])
def test_nothing_is_signed_beside_odd_signatures(signatures: Any) -> None:
    with pytest.raises(BadSignature):
        sign_json({"signatures": signatures}, ONE, KEY)


def test_what_is_no_json_is_not_signed() -> None:
    with pytest.raises(BadJson):
        sign_json({"a": 2**70}, ONE, KEY)


def event_of_alice(event_type: str = "m.room.message", state_key: str | None = None, **content: Any) -> Pdu:
    return build_pdu(
        V12,
        room_id=RoomId("!" + "r" * 42 + "A"),
        draft=EventDraft(event_type, content, state_key),
        sender=UserId(f"@alice:{ONE}"),
        prev_events=(EventId("$" + "p" * 42 + "A"),),
        auth_events=(),
        depth=3,
        origin_server_ts=NOW,
    )


def signed(pdu: Pdu, server_name: ServerName = ONE, key: SigningKey = KEY) -> Pdu:
    return parse_pdu(V12, sign_event(V12, pdu.json, server_name, key), event_id=pdu.event_id)


def test_an_event_carries_the_signature_of_its_sender() -> None:
    pdu = signed(event_of_alice(body="tea"))
    verify_event_signatures(V12, pdu, {ONE: KEYS})
    verify_event_signatures(V12, redact_pdu(V12, pdu), {ONE: KEYS})
    changed = parse_pdu(V12, {**pdu.json, "depth": 4})
    for event, keys in (
        (event_of_alice(body="tea"), {ONE: KEYS}),
        (pdu, {}),
        (pdu, {TWO: KEYS}),
        (pdu, {ONE: {"ed25519:a_1": VerifyKey(OTHER_KEY.public_key, NOW)}}),
        (changed, {ONE: KEYS}),
        (signed(event_of_alice(body="tea"), TWO), {ONE: KEYS, TWO: KEYS}),
    ):
        with pytest.raises(BadSignature):
            verify_event_signatures(V12, event, keys)


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_a_key_counts_for_events_of_its_time_only() -> None:
    pdu = signed(event_of_alice(body="tea"))
    for valid_until_ts in (NOW, NOW + 1):
        verify_event_signatures(V12, pdu, {ONE: {KEY.key_id: VerifyKey(KEY.public_key, valid_until_ts)}})
    expired = {KEY.key_id: VerifyKey(KEY.public_key, NOW - 1)}
    with pytest.raises(BadSignature):
        verify_event_signatures(V12, pdu, {ONE: expired})

    both = signed(pdu, key=OTHER_KEY)
    verify_event_signatures(
        V12, both, {ONE: {**expired, OTHER_KEY.key_id: VerifyKey(OTHER_KEY.public_key, NOW)}}
    )


def test_a_join_that_someone_authorised_is_signed_by_their_server_too() -> None:
    join = event_of_alice(
        "m.room.member", f"@alice:{ONE}", membership="join", join_authorised_via_users_server=f"@bob:{TWO}"
    )
    assert required_signers(V12, join) == {ONE, TWO}
    other_keys = {OTHER_KEY.key_id: VerifyKey(OTHER_KEY.public_key, NOW)}
    keys = {ONE: KEYS, TWO: other_keys}
    with pytest.raises(BadSignature):
        verify_event_signatures(V12, signed(join), keys)
    both = signed(signed(join), TWO, OTHER_KEY)
    verify_event_signatures(V12, both, keys)
    verify_event_signatures(V12, redact_pdu(V12, both), keys)


@pytest.mark.parametrize("authoriser", [None, 1, "", "bob", "@bob", "bob:two.test", [], {}])
def test_an_authoriser_who_is_no_user_sinks_a_join(authoriser: object) -> None:
    join = event_of_alice(
        "m.room.member", "x", membership="join", join_authorised_via_users_server=authoriser
    )
    with pytest.raises(BadSignature):
        required_signers(V12, join)


def test_other_events_name_no_authoriser() -> None:
    authoriser = {"join_authorised_via_users_server": f"@bob:{TWO}"}
    for event in (
        event_of_alice("m.room.member", "x", membership="leave", **authoriser),
        event_of_alice("m.room.message", membership="join", **authoriser),
    ):
        assert required_signers(V12, event) == {ONE}
    join = event_of_alice("m.room.member", "x", membership="join", **authoriser)
    assert required_signers(replace(V12, restricted_join_rules=frozenset()), join) == {ONE}


def test_an_invitation_that_another_server_completed_needs_no_signature_of_its_sender() -> None:
    invite = event_of_alice("m.room.member", "x", membership="invite", third_party_invite={"signed": {}})
    assert required_signers(V12, invite) == set()
    verify_event_signatures(V12, invite, {})
    for other in (
        event_of_alice("m.room.member", "x", membership="invite"),
        event_of_alice("m.room.member", "x", membership="invite", third_party_invite="x"),
        event_of_alice("m.room.member", "x", membership="join", third_party_invite={"signed": {}}),
        event_of_alice("m.room.message", membership="invite", third_party_invite={"signed": {}}),
    ):
        assert required_signers(V12, other) == {ONE}


@pytest.mark.parametrize(
    "value", [{}, {"signatures": []}, {"signatures": {ONE: []}}, {"signatures": {TWO: {"ed25519:1": ""}}}]
)
def test_an_object_without_signatures_of_a_server_names_no_keys(value: JsonObject) -> None:
    assert signature_key_ids(value, ONE) == []
