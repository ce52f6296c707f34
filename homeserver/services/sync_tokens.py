"""Tokens that clients give back: a position of the stream, and a place in a room's timeline.

Clients must not look into them; both forms are taken by /sync and by the paginated endpoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

_SYNC: Final = re.compile(r"s(\d{1,18})_(\d{1,18})_([A-Za-z0-9_\-]{1,32})\Z", re.ASCII)
_ROOM: Final = re.compile(r"t(\d{1,18})_(-?\d{1,9})(?:_(\d{1,9}))?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class SyncToken:
    """Everything up to a position of the stream."""

    pos: int
    ms: int
    """When the token was given out."""
    incarnation: str
    """Of the database: a token of another history means nothing."""

    def __str__(self) -> str:
        return f"s{self.pos}_{self.ms}_{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The token of a text; None for what is no such token."""
        found = _SYNC.match(text)
        return None if found is None else cls(int(found[1]), int(found[2]), found[3])


@dataclass(frozen=True, slots=True)
class RoomToken:
    """The place in a room's timeline just before the event at (room_seq, sub)."""

    seq: int
    sub: int
    turn: int = 0
    """How often a client was told to come again, since nothing had come yet: so no token is given twice."""

    def __str__(self) -> str:
        return f"t{self.seq}_{self.sub}_{self.turn}" if self.turn else f"t{self.seq}_{self.sub}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The token of a text; None for what is no such token."""
        found = _ROOM.match(text)
        return None if found is None else cls(int(found[1]), int(found[2]), int(found[3] or 0))
