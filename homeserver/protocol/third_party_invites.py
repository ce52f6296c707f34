"""Invitations to someone who had no user ID yet: who may take one up.

Source: Client-Server API, "m.room.third_party_invite"; Appendices, "Checking for a Signature".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadJson
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64

MAX_VERIFICATIONS: Final = 100
"""How many pairs of a signature and a key are tried: two events could name a million of them."""


def is_signed_by_a_key_of(signed: JsonObject, token_content: JsonObject) -> bool:
    """Whether any signature in `signed` fits any public key in `token_content`, that of the token's event."""
    unsigned = {key: value for key, value in signed.items() if key not in ("signatures", "unsigned")}
    try:
        message = canonical_json(unsigned)
    except BadJson:
        return False
    pairs = product(dict.fromkeys(_public_keys(token_content)), dict.fromkeys(_signatures(signed)))
    return any(_verifies(message, signature, key) for key, signature in islice(pairs, MAX_VERIFICATIONS))


def _public_keys(content: JsonObject) -> Iterator[bytes]:
    """The Ed25519 keys, 32 bytes each, that a token event names."""
    entries = content.get("public_keys")
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for entry in (content, *objects):
        key = decode_base64(entry.get("public_key"))
        if key is not None and len(key) == 32:
            yield key


def _signatures(signed: JsonObject) -> Iterator[bytes]:
    """The Ed25519 signatures, 64 bytes each, by whichever server."""
    servers = signed.get("signatures")
    if not isinstance(servers, dict):
        return
    for by_key_id in servers.values():
        if not isinstance(by_key_id, dict):
            continue
        for key_id, text in by_key_id.items():
            signature = decode_base64(text) if key_id.startswith("ed25519:") else None
            if signature is not None and len(signature) == 64:
                yield signature


def _verifies(message: bytes, signature: bytes, key: bytes) -> bool:
    try:
        VerifyKey(key).verify(message, signature)
    except BadSignatureError:
        return False
    return True
