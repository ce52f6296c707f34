"""The few errors of the core; the services say what each means for a client or a peer."""

from __future__ import annotations

from collections.abc import Iterable


class ProtocolError(Exception):
    """Base of the core's own errors: nothing else may leave a function of the core."""


class BadJson(ProtocolError):
    """Bytes or a value that strict or canonical JSON does not allow.

    `syntax` tells bytes that are no JSON at all from JSON that the specification forbids here.
    """

    def __init__(self, message: str, *, syntax: bool = False) -> None:
        super().__init__(message)
        self.syntax = syntax


class InvalidIdentifier(ProtocolError):
    """A text that is not the identifier it claims to be."""


class UnknownRoomVersion(ProtocolError):
    """A room version that this server does not speak."""


class InvalidEvent(ProtocolError):
    """A PDU whose shape, field types or identifiers its room version does not allow."""


class EventTooLarge(InvalidEvent):
    """A PDU, or one of its identifiers, above the size limits."""


class FieldTooLong(EventTooLarge):
    """A text of a PDU that has more than 255 bytes: its type or state key, or an identifier."""


class InvalidKey(ProtocolError):
    """A signing or verify key that is malformed, or that must not be used."""


class BadSignature(ProtocolError):
    """A signature that is missing, malformed, wrong, or by a key that was not valid then."""


class NotAllowed(ProtocolError):
    """The authorization rules refuse an event; `rule` names the rule that decided."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"{reason} (rule {rule})")
        self.rule = rule
        self.reason = reason


class InvalidContent(NotAllowed):
    """The authorization rules refuse an event for the form of its content, whoever sends it."""


class BadDocument(ProtocolError):
    """A document about a room or an event that says nothing: `where` in it the fault is, and `why`."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.where = where
        self.why = why


class MissingEvents(ProtocolError):
    """A computation needs events that it was not given: load them and ask again."""

    def __init__(self, references: Iterable[object]) -> None:
        self.references = frozenset(references)
        super().__init__(f"{len(self.references)} events are needed that were not given")
