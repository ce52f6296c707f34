"""The bytes of a room's section in a response to /sync."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from homeserver.protocol.strict_json import JsonObject
from homeserver.services.sync_tokens import RoomToken

_ENDS: Final = {
    "join": b'"account_data":{"events":[]},"ephemeral":{"events":[]}',
    "leave": b'"account_data":{"events":[]}',
}


@dataclass(frozen=True, slots=True)
class RoomPart:
    """What a section shows of a room; many viewers may share it."""

    timeline: bytes
    state: Sequence[bytes]
    is_empty: bool
    """Whether neither timeline nor state show an event."""
    limited: bool
    is_whole: bool
    """Whether this is all there is, not only what is new."""
    changes_summary: bool
    """Whether the room's summary may be another than at the beginning."""
    speakers: Mapping[str, int]
    """The senders whose member events the viewer needs beside this, and in which version of the state."""
    members: Collection[str]
    """The users whose member events are here already."""
    state_upto: int
    """The newest version of the state that the viewer may know."""


def timeline_json(events: Sequence[bytes], *, limited: bool, prev_batch: RoomToken) -> bytes:
    """The key `timeline` with its value."""
    return b'"timeline":{"events":[%s],"limited":%s,"prev_batch":"%s"}' % (
        b",".join(events),
        b"true" if limited else b"false",
        str(prev_batch).encode(),
    )


def section_json(
    kind: str, part: RoomPart, state_key: str, members: Sequence[bytes], summary: JsonObject
) -> bytes:
    """A room's section. `members`: member events that go into the state for this viewer."""
    state = b",".join([*part.state, *members]) if members else b",".join(part.state)
    json = b'{%s,"%s":{"events":[%s]},%s' % (part.timeline, state_key.encode(), state, _ENDS[kind])
    if kind == "leave":
        return json + b"}"
    return json + (b',"summary":' + orjson.dumps(summary) + b"}" if summary else b',"summary":{}}')
