"""Signatures of servers: over JSON, and over events.

Source: Appendices, "Signing JSON"; Server-Server API, "Signing Events"; "Room Versions", "Signing key
validity period".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadSignature, InvalidKey
from homeserver.protocol.event_hashes import reference_bytes
from homeserver.protocol.events import MAX_KEY_ID_BYTES, Pdu
from homeserver.protocol.identifiers import ServerName, is_user_id, server_name_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64, encode_base64

_ALGORITHM: Final = "ed25519"
_PREFIX: Final = "ed25519:"
_POLICY_SERVER_KEY_ID: Final = "ed25519:policy_server"
"""A policy server signs under this ID with a key that room state names, not with a key of its server."""
_SEED_BYTES: Final = 32
_PUBLIC_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_VERSION: Final = re.compile(rf"[A-Za-z0-9_]{{1,{MAX_KEY_ID_BYTES - len(_PREFIX)}}}\Z")

_KNOWN_PRIVATE_KEYS: Final = frozenset(
    decode_base64(text)
    for text in (
        "l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",  # shipped with a deployment kit: CVE-2026-24044
        "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI",  # Appendices, "Cryptographic Test Vectors"
    )
)
"""Public keys whose private key everybody can read."""


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A private key of this server."""

    key_id: str
    """`ed25519:` and the version, the name that the administrator or the first start gave it."""
    public_key: bytes
    _private_key: bytes = field(repr=False)
    """The seed and the public key, as libsodium wants them."""

    @classmethod
    def from_seed(cls, version: str, seed: bytes) -> SigningKey:
        """The key that 32 random bytes make. Raises InvalidKey for another version or size."""
        if not _VERSION.match(version):
            raise InvalidKey("the version of a signing key is made of A-Z, a-z, 0-9 and _")
        if len(seed) != _SEED_BYTES:
            raise InvalidKey(f"the seed of a signing key has {_SEED_BYTES} bytes")
        public_key, private_key = crypto_sign_seed_keypair(seed)
        return cls(_PREFIX + version, public_key, private_key)

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return crypto_sign(message, self._private_key)[:_SIGNATURE_BYTES]

    def to_text(self) -> str:
        """The line of the key file: `ed25519 VERSION SEED`. It is the secret itself."""
        seed = encode_base64(self._private_key[:_SEED_BYTES])
        return f"{_ALGORITHM} {self.key_id.removeprefix(_PREFIX)} {seed}\n"


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key of a server."""

    public_key: bytes
    valid_until_ts: int
    """Until when events may be signed with it, in ms: for an old key that is its `expired_ts`."""


ServerKeys: TypeAlias = Mapping[str, VerifyKey]
"""The keys that we know of one server, current and old ones, by key ID."""


def parse_signing_key(text: str) -> SigningKey:
    """The key in a key file of one line, `ed25519 VERSION SEED`, the seed in base64.

    Raises InvalidKey, also for a key that was published.
    """
    match text.split():
        case [algorithm, version, encoded] if algorithm == _ALGORITHM and len(text.splitlines()) == 1:
            seed = decode_base64(encoded)
        case _:
            raise InvalidKey("a signing key is one line: ed25519 VERSION SEED")
    key = SigningKey.from_seed(version, seed or b"")
    if key.public_key in _KNOWN_PRIVATE_KEYS:
        raise InvalidKey("this signing key was published: everybody can sign with it")
    return key


def decode_verify_key(text: object) -> bytes:
    """The 32 bytes of a public key in base64.

    Raises InvalidKey for what is no key: not 32 bytes, or not the one encoding of a point of the prime order
    subgroup, where every key made from a seed lies.
    """
    public_key = decode_base64(text)
    if public_key is None or len(public_key) != _PUBLIC_KEY_BYTES:
        raise InvalidKey("a verify key is base64 of 32 bytes")
    if not crypto_core_ed25519_is_valid_point(public_key):
        raise InvalidKey("a verify key is no point that signatures can be checked with")
    return public_key


def sign_json(value: JsonObject, server_name: ServerName, key: SigningKey) -> JsonObject:
    """A copy of an object with a signature of ours, beside those it has.

    Raises BadJson, and BadSignature where `signatures` is not what it should be.
    """
    return _with_signature(value, server_name, key, _signed_bytes(value))


def sign_event(
    version: RoomVersion, event: JsonObject, server_name: ServerName, key: SigningKey
) -> JsonObject:
    """A copy of a hashed event with a signature of ours, beside those it has.

    Raises BadJson, InvalidEvent, and BadSignature where `signatures` is not what it should be.
    """
    return _with_signature(event, server_name, key, reference_bytes(version, event))


def verify_signed_json(value: JsonObject, signer: str, keys: ServerKeys, *, valid_at: int) -> None:
    """Check that a server signed an object, with a key that was valid at a time in ms.

    Keys we do not know or that had expired and other algorithms are passed over; of the other signatures
    each must be good, and there must be one. Raises BadSignature, BadJson.
    Source: Appendices, "Checking for a Signature".
    """
    _verify(value.get("signatures"), _signed_bytes(value), signer, keys, valid_at)


def verify_event_signatures(version: RoomVersion, pdu: Pdu, keys: Mapping[ServerName, ServerKeys]) -> None:
    """Check that every server that must have signed an event did, with a key that was valid then.

    `keys`: what is known of each server that required_signers names. Raises BadSignature.
    Source: Server-Server API, "Validating hashes and signatures on received events".
    """
    message = reference_bytes(version, pdu.json)
    signatures = pdu.json.get("signatures")
    for server_name in required_signers(version, pdu):
        _verify(signatures, message, server_name, keys.get(server_name, {}), keys_valid_at(version, pdu))


def keys_valid_at(version: RoomVersion, pdu: Pdu) -> int:
    """The time in ms at which the keys must have been valid that an event is signed with; 0 for any key.

    Source: Room Version 5, "Signing key validity period".
    """
    return pdu.origin_server_ts if version.enforces_key_validity else 0


def required_signers(version: RoomVersion, pdu: Pdu) -> set[ServerName]:
    """The servers without whose signature an event is dropped.

    The sender's, but for the invitation of someone who had no user ID: there another server completed the
    event, and the authorization rules check what is signed. For a join that a user of the room authorised,
    also the server of that user; and where servers choose event IDs, the one that the event's ID names.
    Raises BadSignature where no server can be named.
    """
    content = pdu.content
    is_member = pdu.type == "m.room.member"
    signers = {server_name_of(pdu.event_id)} if version.has_chosen_event_ids else set()
    if is_member and pdu.membership == "invite" and isinstance(content.get("third_party_invite"), dict):
        return signers
    signers.add(server_name_of(pdu.sender))
    authoriser = "join_authorised_via_users_server"
    if is_member and pdu.membership == "join" and version.restricted_join_rules and authoriser in content:
        user_id = content[authoriser]
        if not is_user_id(user_id):
            raise BadSignature(f"{authoriser} is no user ID, so no server can have signed for it")
        signers.add(server_name_of(user_id))
    return signers


def signature_key_ids(signed: JsonObject, signer: str) -> list[str]:
    """The IDs of the server keys with which `signer` claims to have signed: those worth fetching."""
    signatures = signed.get("signatures")
    by_key_id = signatures.get(signer) if isinstance(signatures, dict) else None
    return [key_id for key_id in by_key_id if _is_server_key(key_id)] if isinstance(by_key_id, dict) else []


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check one Ed25519 signature. Raises BadSignature, also for keys that were published.

    libsodium refuses keys and points of small order and numbers in other than their one encoding, so
    nobody can turn a signature into a second one.
    """
    if public_key in _KNOWN_PRIVATE_KEYS:
        raise BadSignature("signed with a key that was published")
    if len(public_key) != _PUBLIC_KEY_BYTES or len(signature) != _SIGNATURE_BYTES:
        raise BadSignature("a key or signature of the wrong size")
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        raise BadSignature("the signature does not fit") from None


def _verify(signatures: object, message: bytes, signer: str, keys: ServerKeys, valid_at: int) -> None:
    by_key_id = signatures.get(signer) if isinstance(signatures, dict) else None
    if not isinstance(by_key_id, dict):
        raise BadSignature(f"not signed by {signer}")
    verified = False
    for key_id, text in by_key_id.items():
        key = keys.get(key_id) if _is_server_key(key_id) else None
        if key is None or key.valid_until_ts < valid_at:
            continue
        signature = decode_base64(text)
        if signature is None:
            raise BadSignature(f"a signature of {signer} is not base64")
        verify_signature(key.public_key, message, signature)
        verified = True
    if not verified:
        raise BadSignature(f"not signed by {signer} with a key known and valid then")


def _is_server_key(key_id: str) -> bool:
    return key_id.startswith(_PREFIX) and key_id != _POLICY_SERVER_KEY_ID


def _signed_bytes(value: JsonObject) -> bytes:
    return canonical_json({key: part for key, part in value.items() if key not in ("signatures", "unsigned")})


def _with_signature(
    value: JsonObject, server_name: ServerName, key: SigningKey, message: bytes
) -> JsonObject:
    signatures = value.get("signatures", {})
    own = signatures.get(server_name, {}) if isinstance(signatures, dict) else None
    if not isinstance(own, dict):
        raise BadSignature("signatures is no object of objects")
    added = {**own, key.key_id: encode_base64(key.sign(message))}
    return {**value, "signatures": {**signatures, server_name: added}}
