"""The packed form of room state: sorted entries of fixed size, compressed.

An entry is (type_nid u32, skey_nid u64, event_nid u64), little-endian. An event_nid of 0 says that the key
has no event any more; only differences hold such entries, a whole state does not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import zstandard

Key: TypeAlias = tuple[int, int]
"""(type_nid, skey_nid): what names a piece of state in the database."""

StateEntries: TypeAlias = dict[Key, int]
"""The number of the event of each key; 0 for a key that has none any more."""

REMOVED: Final = 0

_ENTRY: Final = struct.Struct("<IQQ")
_KEY: Final = struct.Struct("<IQ")
_MAX_BYTES: Final = 1 << 28
_COMPRESSOR: Final = zstandard.ZstdCompressor(level=3, write_checksum=True)
_DECOMPRESSOR: Final = zstandard.ZstdDecompressor()


def difference(older: Mapping[Key, int], newer: Mapping[Key, int]) -> StateEntries:
    """What a whole state has otherwise than another one, 0 for the keys that it lacks."""
    removed = dict.fromkeys(older.keys() - newer.keys(), REMOVED)
    return removed | {key: event_nid for key, event_nid in newer.items() if older.get(key) != event_nid}


class PackedState:
    """Packed entries, decompressed: single keys are found by bisection, without unpacking all."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    @classmethod
    def of(cls, entries: Mapping[Key, int]) -> PackedState:
        """Pack entries."""
        pack = _ENTRY.pack
        return cls(b"".join([pack(*key, event_nid) for key, event_nid in sorted(entries.items())]))

    @classmethod
    def stored(cls, compressed: bytes) -> PackedState:
        """What `compressed` made."""
        return cls(_DECOMPRESSOR.decompress(compressed, max_output_size=_MAX_BYTES))

    @property
    def data(self) -> bytes:
        """The entries themselves: equal states have equal bytes."""
        return self._data

    @property
    def compressed(self) -> bytes:
        """The entries as tables hold them."""
        return _COMPRESSOR.compress(self._data)

    def __len__(self) -> int:
        return len(self._data) // _ENTRY.size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return _ENTRY.iter_unpack(self._data)

    def entries(self) -> StateEntries:
        """All entries, unpacked."""
        return {(type_nid, skey_nid): event_nid for type_nid, skey_nid, event_nid in self}

    def get(self, key: Key) -> int | None:
        """The event of a key; None where there is no entry."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if _KEY.unpack_from(self._data, middle * _ENTRY.size) < key:
                low = middle + 1
            else:
                high = middle
        if low == len(self):
            return None
        *found, event_nid = _ENTRY.unpack_from(self._data, low * _ENTRY.size)
        return event_nid if tuple(found) == key else None
