"""The bits of events.flags."""

from __future__ import annotations

from typing import Final


class EventFlag:
    """What is known of a stored event besides its content; plain numbers, for speed."""

    SOLE: Final = 1
    """After this event the only forward extremity was itself: the state after it is trunk(room_seq)."""
    GAP: Final = 2
    """Events before this one were never received."""
    FED: Final = 4
    """Other servers in the room are owed this event."""
    HIDDEN: Final = 8
    """A marker that carries a change of state; no client and no server ever sees it."""
    SOFT_FAILED: Final = 16
    REJECTED: Final = 32
    REDACTED: Final = 64
    """A redaction of this event holds: readers prune it."""
    UNSIGNED: Final = 128
    """An event of ours whose signature is made when it first leaves this server."""
    ZSTD_1: Final = 256
    """events.json is compressed with dictionary 1; otherwise it is plain."""
    UNCHECKED: Final = 512
    """An outlier that came out-of-band: nothing has checked whether its room allows it, and auth is NULL."""
    RESOLVED: Final = 1024
    """A state resolution came with it: the room's state changed otherwise than by this event alone."""
    OPEN: Final = 2048
    """It brings a state of its own, in which the history is shared or world-readable: so whoever was in the
    room when it came may see it. Without this flag such an event has to be judged by that state."""
    SERVERS_ONLY: Final = 4096
    """Other servers get it, clients do not: a redaction without effect, or without any yet; a dummy event."""

    NOT_FOR_CLIENTS: Final = HIDDEN | SOFT_FAILED | REJECTED | SERVERS_ONLY
    """What no client is ever shown."""
