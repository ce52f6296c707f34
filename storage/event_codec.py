"""How events.json keeps the canonical JSON of an event: zstd, with a dictionary that is part of the program.

A dictionary is never changed once released: a better one gets a new number and a new flag.
"""

from __future__ import annotations

import threading
from importlib import resources
from typing import Final

import orjson
import zstandard

from homeserver.protocol.canonical_json import canonical_event, read_json
from homeserver.protocol.event_hashes import decode_event_id
from homeserver.protocol.events import Pdu, stored_pdu
from homeserver.protocol.identifiers import RoomId
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from storage.event_flags import EventFlag

_LEVEL: Final = 3
_MAX_EVENT_BYTES: Final = 1 << 20  # a decompressed event is far smaller; more is damage
_DICTIONARY_1: Final = zstandard.ZstdCompressionDict(
    resources.files("storage.compression").joinpath("events-1.zdict").read_bytes()
)
_DICTIONARY_1.precompute_compress(level=_LEVEL)
_COMPRESSOR: Final = zstandard.ZstdCompressor(
    level=_LEVEL,
    dict_data=_DICTIONARY_1,
    write_checksum=False,
    write_dict_id=False,
)


class _Decompressor(threading.local):
    """A decompressor of each thread's own: one that two use at once gives wrong bytes."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor(dict_data=_DICTIONARY_1).decompress


_DECOMPRESSOR: Final = _Decompressor()

CODEC: Final = EventFlag.ZSTD_1
"""The flag that goes with what `encode_event` returns."""


def encode_event(canonical: bytes) -> bytes:
    """The stored form of an event's canonical JSON."""
    return _COMPRESSOR.compress(canonical)


def decode_event_bytes(flags: int, stored: bytes) -> bytes:
    """The canonical JSON of a stored event."""
    if flags & EventFlag.ZSTD_1:
        return _DECOMPRESSOR.decompress(stored, max_output_size=_MAX_EVENT_BYTES)
    return stored


def encode_pdu(version: RoomVersion, pdu: Pdu) -> bytes:
    """The stored form of an event."""
    return encode_event(canonical_event(version, pdu.json))


def decode_event(flags: int, stored: bytes, *, strict: bool = False) -> JsonObject:
    """A stored event as JSON. `strict`: its room version has no integers beyond 64 bits, which is quicker."""
    canonical = decode_event_bytes(flags, stored)
    event: JsonObject = orjson.loads(canonical) if strict else read_json(canonical)
    return event


def decode_pdu(version: RoomVersion, room_id: RoomId, stored_id: bytes, flags: int, stored: bytes) -> Pdu:
    """What a row of table events holds, by its event_id, flags and json; a redacted event comes pruned."""
    event = decode_event(flags, stored, strict=version.strict_json)
    if flags & EventFlag.REDACTED:
        event = redact(version, event)
    return stored_pdu(version, room_id, decode_event_id(stored_id), event)
