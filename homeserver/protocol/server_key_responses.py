"""The list of its keys that a server publishes: making ours, and checking another's.

Source: Server-Server API, "Retrieving server keys", GET /_matrix/key/v2/server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.errors import InvalidKey
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.signing import (
    SigningKey,
    VerifyKey,
    decode_verify_key,
    sign_json,
    verify_signed_json,
)
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64

MAX_KEYS: Final = 100
"""A list of more keys is refused."""
MAX_KEY_ID_BYTES: Final = 255
"""A key under a longer ID counts for nothing. Those of other servers may be longer than ours."""

LONGEST_VALIDITY_MS: Final = 7 * 24 * 3600 * 1000
"""A key counts for at most so long after it was fetched, whatever its server says."""

_KEY_ID: Final = re.compile(r"ed25519:[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, slots=True)
class KeyResponse:
    """The checked list of a server's keys. Times are ms since 1970.

    `current`: each valid until `valid_until_ts`, or seven days after `now` where that is earlier. `old`: each
    until its server stopped to use it, which is before `now`. `json`: the list with that server's signatures
    and no others.
    """

    server_name: ServerName
    current: Mapping[str, VerifyKey]
    old: Mapping[str, VerifyKey]
    valid_until_ts: int
    json: JsonObject


def make_key_response(
    server_name: ServerName,
    keys: Sequence[SigningKey],
    old_keys: Mapping[str, VerifyKey],
    valid_until_ts: int,
) -> JsonObject:
    """The list of our keys, signed by each that is in use."""
    response: JsonObject = {
        "server_name": server_name,
        "valid_until_ts": valid_until_ts,
        "verify_keys": {key.key_id: {"key": encode_base64(key.public_key)} for key in keys},
        "old_verify_keys": {
            key_id: {"key": encode_base64(key.public_key), "expired_ts": key.valid_until_ts}
            for key_id, key in old_keys.items()
        },
    }
    for key in keys:
        response = sign_json(response, server_name, key)
    return response


def parse_key_response(value: Any, server_name: ServerName, now: int) -> KeyResponse:
    """Check the list of keys that was asked for.

    It must be that server's, signed by one of the keys it says are in use, and well-formed; keys of other
    algorithms are passed over, and old keys that can check nothing. Raises InvalidKey, BadSignature, BadJson.
    """
    if not isinstance(value, dict) or value.get("server_name") != server_name:
        raise InvalidKey("not a list of the keys of that server")
    verify_keys = _entries(value, "verify_keys")
    old_verify_keys = _entries(value, "old_verify_keys") if "old_verify_keys" in value else {}
    if len(verify_keys) + len(old_verify_keys) > MAX_KEYS:
        raise InvalidKey("too many keys")
    valid_until_ts = min(_time(value, "valid_until_ts"), now + LONGEST_VALIDITY_MS)
    current = {
        key_id: VerifyKey(decode_verify_key(entry.get("key")), valid_until_ts)
        for key_id, entry in verify_keys.items()
        if _is_usable(key_id)
    }
    old: dict[str, VerifyKey] = {}
    for key_id, entry in old_verify_keys.items():
        if not _is_usable(key_id) or key_id in current:
            continue
        expired_ts = min(_time(entry, "expired_ts"), now - 1)
        try:
            old[key_id] = VerifyKey(decode_verify_key(entry.get("key")), expired_ts)
        except InvalidKey:
            continue
    in_use = {key_id: VerifyKey(key.public_key, MAX_INTEGER) for key_id, key in current.items()}
    verify_signed_json(value, server_name, in_use, valid_at=now)
    own_signatures = {server_name: value["signatures"][server_name]}
    return KeyResponse(server_name, current, old, valid_until_ts, {**value, "signatures": own_signatures})


def _entries(value: JsonObject, name: str) -> dict[str, JsonObject]:
    entries = value.get(name)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InvalidKey(f"{name} is no object of objects")
    return entries


def _time(value: JsonObject, name: str) -> int:
    time = value.get(name)
    if type(time) is not int or not 0 <= time <= MAX_INTEGER:
        raise InvalidKey(f"{name} is no time")
    return time


def _is_usable(key_id: str) -> bool:
    return len(key_id) <= MAX_KEY_ID_BYTES and _KEY_ID.match(key_id) is not None
