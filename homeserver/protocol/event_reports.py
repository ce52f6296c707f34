"""What the core says of one event: its ID, its content hash, and what its auth events allow it.

The document is {"room_version", "event", "auth_events"}; the latter are taken to be accepted events.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.auth_rules import check_against_auth_events
from homeserver.protocol.document_events import DocumentEvent, field_of, is_create, read_events
from homeserver.protocol.errors import BadDocument, BadJson, NotAllowed
from homeserver.protocol.event_hashes import content_hash, event_id_of
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_documents import version_of_document
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import decode_base64, encode_base64


@dataclass(frozen=True, slots=True)
class ExpectedAuthEvent:
    """A place in the state that the rules read for the event, and what the document has for it."""

    key: StateKey
    event_id: EventId | None
    """The event that is there for it, None where none is."""
    is_named: bool
    """Whether it counts: the event names it, or its room ID does."""


@dataclass(frozen=True, slots=True)
class EventReport:
    """What there is to say of an event."""

    version: RoomVersion
    event: Pdu
    has_given_id: bool
    computed_id: EventId | None
    """The ID by the event's own hashes, None where it has no hashes, or its version makes no IDs of them."""
    content_hash: str
    claimed_hash: str | None
    """hashes.sha256, None where the event has no such hash."""
    has_valid_hash: bool
    is_redacted: bool
    """The content hash is wrong, so the verdict is about the redacted event."""
    expected: tuple[ExpectedAuthEvent, ...]
    not_there: tuple[EventId, ...]
    """The auth events that it names and the document has not."""
    not_named: tuple[EventId, ...]
    """Those that the document has, and neither the event nor its room ID names: they do not count."""
    allowed_by: str | None
    """The rule that allows the event, as its version's page numbers it; None where it is refused."""
    refusal: NotAllowed | None
    """What refuses the event; None where it is allowed."""


def report_on_event(document: JsonObject) -> EventReport:
    """Judge the event of a document by those of its auth events that are there. Raises BadDocument.

    An event that was written down without auth_events has all that the document has.
    """
    source = field_of("", document, "event", dict)
    if source is None:
        raise BadDocument("event", "is missing")
    listed = field_of("", document, "auth_events", list) or []
    places = [(f"auth_events[{index}]", value) for index, value in enumerate(listed)]
    version = version_of_document(document, [*places, ("event", source)])
    *given, event = read_events(version, [*places, ("event", source)])
    return _report(version, event, [one.pdu for one in given])


def _report(version: RoomVersion, event: DocumentEvent, given: list[Pdu]) -> EventReport:
    pdu = event.pdu
    by_id = {one.event_id: one for one in given}
    creates = [one for one in given if is_create(one.json)]
    create = creates[0] if version.room_id_is_create_hash and creates else None
    names = pdu.auth_events
    if "auth_events" not in event.source:
        names = tuple(event_id for event_id, one in by_id.items() if one is not create)
    own = [by_id[event_id] for event_id in names if event_id in by_id]
    counting = {one.event_id for one in own} | ({create.event_id} if create is not None else set())
    allowed_by, refusal = None, None
    try:
        allowed_by = check_against_auth_events(version, pdu, own, (), create)
    except NotAllowed as error:
        refusal = error
    computed_id, hash_of_content, claimed_hash = _hashes(version, event)
    return EventReport(
        version=version,
        event=pdu,
        has_given_id=event.has_given_id,
        computed_id=computed_id,
        content_hash=hash_of_content,
        claimed_hash=claimed_hash,
        has_valid_hash=claimed_hash is not None and _same_hash(claimed_hash, hash_of_content),
        is_redacted=event.is_redacted,
        expected=_expected(version, pdu, given, counting),
        not_there=tuple(event_id for event_id in names if event_id not in by_id),
        not_named=tuple(event_id for event_id in by_id if event_id not in counting),
        allowed_by=allowed_by,
        refusal=refusal,
    )


def _expected(
    version: RoomVersion, pdu: Pdu, given: list[Pdu], counting: set[EventId]
) -> tuple[ExpectedAuthEvent, ...]:
    """For each key that the rules read the event that counts, or else one that could."""
    by_key: dict[StateKey, Pdu] = {}
    for one in sorted(given, key=lambda one: one.event_id in counting):
        if one.state_key is not None:
            by_key[one.key] = one
    expected = []
    for key in auth_state_keys(version, pdu.type, pdu.sender, pdu.state_key, pdu.content):
        found = by_key.get(key)
        event_id = None if found is None else found.event_id
        expected.append(ExpectedAuthEvent(key, event_id, event_id in counting))
    return tuple(expected)


def _hashes(version: RoomVersion, event: DocumentEvent) -> tuple[EventId | None, str, str | None]:
    """The computed event ID, the content hash, and the one that the event has."""
    source = event.source
    makes_ids = not version.has_chosen_event_ids
    if makes_ids:  # an event_id was added by somebody then, and no hash is made of it
        source = {key: value for key, value in source.items() if key != "event_id"}
    hashes = source.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    if type(claimed) is not str:
        claimed = None
    try:
        computed_id = event_id_of(version, source) if makes_ids and claimed is not None else None
        return computed_id, encode_base64(content_hash(version, source)), claimed
    except BadJson as error:
        raise BadDocument(event.where, str(error)) from None


def _same_hash(claimed: str, computed: str) -> bool:
    return decode_base64(claimed) == decode_base64(computed)
