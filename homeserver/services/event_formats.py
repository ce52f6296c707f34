"""The forms in which clients get events, as bytes.

Most of an event never changes and is kept without its last brace; `unsigned`, which does, is put behind it.
Source: Client-Server API, "Room Event Format", "Filtering" (`event_fields`, `event_format`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from homeserver.protocol.canonical_json import read_json, write_json
from homeserver.protocol.event_fields import FieldPath, only_fields, parse_field_path
from homeserver.protocol.events import Pdu, client_event
from homeserver.protocol.filters import Filter
from homeserver.protocol.strict_json import JsonObject

Opening: TypeAlias = Callable[[Pdu], bytes]
"""Makes the bytes of an event without `unsigned` and without the last brace."""


def open_client_json(pdu: Pdu) -> bytes:
    """An event as /sync shows it, not closed yet."""
    return write_json(client_event(pdu, with_room_id=False))[:-1]


def open_federation_json(pdu: Pdu) -> bytes:
    """An event as servers exchange it, with its ID, not closed yet; ours are signed when they leave."""
    return write_json({**pdu.json, "event_id": pdu.event_id})[:-1]


def closed_json(open_event: bytes, unsigned: JsonObject) -> bytes:
    """An event that was left open, completed."""
    if not unsigned:
        return open_event + b"}"
    return open_event + b',"unsigned":' + write_json(unsigned) + b"}"


@dataclass(frozen=True, slots=True)
class EventFormat:
    """What a filter says about the form of events."""

    open: Opening = open_client_json
    fields: Sequence[FieldPath] | None = None
    """The only fields that are wanted; None for all."""

    @classmethod
    def of(cls, filter_: Filter) -> EventFormat:
        """The form that a filter asks for."""
        if filter_.event_fields is None and filter_.event_format == "client":
            return COMMON_FORMAT
        return cls(
            open_federation_json if filter_.event_format == "federation" else open_client_json,
            None
            if filter_.event_fields is None
            else [parse_field_path(field) for field in filter_.event_fields],
        )

    def finish(self, event: bytes) -> bytes:
        """A complete event, reduced to the fields that are wanted."""
        if self.fields is None:
            return event
        return write_json(only_fields(read_json(event), self.fields))


COMMON_FORMAT: Final = EventFormat()
"""The form of those who wish nothing else."""
