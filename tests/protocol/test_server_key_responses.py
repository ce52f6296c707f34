"""The lists of keys that servers publish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadJson, BadSignature, InvalidKey
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.server_key_responses import (
    LONGEST_VALIDITY_MS,
    MAX_KEY_ID_BYTES,
    MAX_KEYS,
    make_key_response,
    parse_key_response,
)
from homeserver.protocol.signing import SigningKey, VerifyKey, sign_json
from homeserver.protocol.strict_json import parse_json_object
from homeserver.protocol.unpadded_base64 import encode_base64

TEA = ServerName("tea.test")
NOW = 1_700_000_000_000
KEY = SigningKey.from_seed("a_1", bytes(32))
SECOND = SigningKey.from_seed("a_2", bytes([2]) * 32)
OLD = SigningKey.from_seed("old", bytes([3]) * 32)


def response(*keys: SigningKey, valid_until_ts: int = NOW + 1000, **changes: Any) -> dict[str, Any]:
    """A list of keys with changes, properly signed by those in use."""
    made = make_key_response(TEA, keys, {OLD.key_id: VerifyKey(OLD.public_key, NOW - 5000)}, valid_until_ts)
    changed: dict[str, Any] = {**made, **changes, "signatures": {}}
    for key in keys:
        changed = sign_json(changed, TEA, key)
    return changed


def test_a_list_that_is_made_is_accepted() -> None:
    made = response(KEY, SECOND)
    parsed = parse_key_response(parse_json_object(canonical_json(made)), TEA, NOW)

    assert set(made["signatures"][TEA]) == {"ed25519:a_1", "ed25519:a_2"}
    assert parsed.current == {
        "ed25519:a_1": VerifyKey(KEY.public_key, NOW + 1000),
        "ed25519:a_2": VerifyKey(SECOND.public_key, NOW + 1000),
    }
    assert parsed.old == {"ed25519:old": VerifyKey(OLD.public_key, NOW - 5000)}
    assert parsed.json == made


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_a_key_is_valid_for_seven_days_at_most() -> None:
    parsed = parse_key_response(response(KEY, valid_until_ts=2**53 - 1), TEA, NOW)

    assert parsed.valid_until_ts == NOW + LONGEST_VALIDITY_MS
    assert parsed.current[KEY.key_id].valid_until_ts == NOW + LONGEST_VALIDITY_MS


@pytest.mark.invariant("SEC-SIGN-3")
def test_sec_sign_3_an_old_key_is_not_valid_now_whatever_its_server_says() -> None:
    old = {OLD.key_id: {"key": encode_base64(OLD.public_key), "expired_ts": NOW + 10**9}}
    parsed = parse_key_response(response(KEY, old_verify_keys=old), TEA, NOW)

    assert parsed.old[OLD.key_id].valid_until_ts < NOW


def test_signatures_of_others_are_left_out() -> None:
    attested = sign_json(response(KEY), ServerName("notary.test"), SECOND)

    assert parse_key_response(attested, TEA, NOW).json == response(KEY)


def test_another_server_may_give_its_keys_longer_ids_than_we_do() -> None:
    long = replace(KEY, key_id="ed25519:" + "k" * (MAX_KEY_ID_BYTES - len("ed25519:")))
    too_long = replace(KEY, key_id=long.key_id + "k")

    assert set(parse_key_response(response(long), TEA, NOW).current) == {long.key_id}
    with pytest.raises(BadSignature):
        parse_key_response(response(too_long), TEA, NOW)


def test_keys_that_can_check_nothing_are_passed_over() -> None:
    verify_keys = {
        KEY.key_id: {"key": encode_base64(KEY.public_key)},
        "rsa:1": {"key": 5},
        "ed25519:not valid": {"key": encode_base64(SECOND.public_key)},
    }
    old = {
        "ed25519:broken": {"key": "AAAA", "expired_ts": 5},
        "foo:1": {"key": "AA"},
        KEY.key_id: {"key": encode_base64(OLD.public_key), "expired_ts": 5},
    }
    parsed = parse_key_response(response(KEY, verify_keys=verify_keys, old_verify_keys=old), TEA, NOW)

    assert set(parsed.current) == {KEY.key_id}
    assert parsed.old == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": "evil.test"},
        {"server_name": None},
        {"verify_keys": None},
        {"verify_keys": {}},
        {"verify_keys": {KEY.key_id: encode_base64(KEY.public_key)}},
        {"verify_keys": {KEY.key_id: {}}},
        {"verify_keys": {KEY.key_id: {"key": encode_base64(bytes(32))}}},
        {"verify_keys": {KEY.key_id: {"key": encode_base64(SECOND.public_key)}}},
        {"verify_keys": {SECOND.key_id: {"key": encode_base64(SECOND.public_key)}}},
        {"old_verify_keys": []},
        {"old_verify_keys": {OLD.key_id: {"key": encode_base64(OLD.public_key)}}},
        {"old_verify_keys": {OLD.key_id: {"key": encode_base64(OLD.public_key), "expired_ts": True}}},
        {"old_verify_keys": {f"ed25519:{n}": {"key": "", "expired_ts": 5} for n in range(MAX_KEYS)}},
        {"valid_until_ts": "1"},
        {"valid_until_ts": 1.5},
        {"valid_until_ts": -1},
        {"valid_until_ts": True},
        {"valid_until_ts": 2**60},
    ],
)
def test_other_lists_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((InvalidKey, BadSignature, BadJson)):
        parse_key_response(response(KEY, **changes), TEA, NOW)


def test_a_list_without_a_good_signature_is_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"signatures": {}},
        {"extra": 1},
        {"signatures": {TEA: {KEY.key_id: "AAAA"}}},
    ]
    for changes in wrong:
        with pytest.raises(BadSignature):
            parse_key_response({**response(KEY), **changes}, TEA, NOW)
    with pytest.raises(InvalidKey):
        parse_key_response([], TEA, NOW)
