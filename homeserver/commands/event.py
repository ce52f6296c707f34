"""lair-chat event: what the core says of one event; no database, no configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from homeserver.commands.command_parser import Subparsers
from homeserver.commands.documents import add_document, judge_document, printable
from homeserver.protocol.auth_events import CREATE
from homeserver.protocol.event_reports import EventReport, ExpectedAuthEvent, report_on_event
from homeserver.protocol.strict_json import JsonObject


def add_to(commands: Subparsers) -> None:
    """Add `event check`."""
    group = commands.add_parser("event", help="what the rules make of an event").add_group()

    check_parser = group.add_parser(
        "check",
        help="print ID, content hash and auth verdict of an event; exit code 1 where it is refused",
        description='The document is {"room_version", "event", "auth_events"}, of whole events.',
    )
    add_document(check_parser)
    check_parser.set_defaults(run=check)


def check(arguments: argparse.Namespace) -> int:
    """Print what there is to say of the event: exit code 0 where it is allowed, 1 where it is refused."""
    return judge_document(arguments, _check)


def _check(document: JsonObject) -> int:
    report = report_on_event(document)
    for title, lines in (
        ("event ID", _event_id(report)),
        ("content hash", _content_hash(report)),
        ("auth events", _auth_events(report)),
        ("verdict", _verdict(report)),
    ):
        for index, line in enumerate(lines):
            print(printable(f"{'' if index else title:14}{line}"))
    return 0 if report.refusal is None else 1


def _event_id(report: EventReport) -> Iterator[str]:
    event_id = report.event.event_id
    if not report.has_given_id:
        yield f"{event_id} (computed)"
    elif report.computed_id in (None, event_id):
        yield f"{event_id} (as given)"
    else:
        yield f"{event_id} (as given)"
        yield f"{report.computed_id} (computed: it is another one)"


def _content_hash(report: EventReport) -> Iterator[str]:
    yield report.content_hash
    if report.claimed_hash is None:
        yield "the event has no hashes.sha256 to compare it with"
    elif report.has_valid_hash:
        yield "hashes.sha256 fits"
    else:
        yield f"hashes.sha256 does not fit: {report.claimed_hash}"
        yield "servers take such an event for an altered one, and keep its redacted form"
        if report.is_redacted:
            yield "the verdict is about that form"


def _auth_events(report: EventReport) -> Iterator[str]:
    if not report.expected:
        yield "none are expected: a create event comes first"
    width = max((len(_key(one)) for one in report.expected), default=0)
    for one in report.expected:
        yield f"{_key(one):{width}}  {_found(report, one)}"
    for event_id in report.not_there:
        yield f"{event_id} is named, but is not in the document; the verdict does without it"
    for event_id in report.not_named:
        yield f"{event_id} is in the document, but the event does not name it; it does not count"


def _key(one: ExpectedAuthEvent) -> str:
    event_type, state_key = one.key
    return f"{event_type} {json.dumps(state_key)}"


def _found(report: EventReport, one: ExpectedAuthEvent) -> str:
    if one.event_id is None and one.key == CREATE and report.version.room_id_is_create_hash:
        return "none: no event names it, but the document has to hold it"
    if one.event_id is None:
        return "none"
    return one.event_id if one.is_named else f"{one.event_id}, which the event does not name"


def _verdict(report: EventReport) -> Iterator[str]:
    page = f"room version {report.version.version}"
    if report.refusal is None:
        yield f"allowed by rule {report.allowed_by} of {page}"
    else:
        yield f"refused by rule {report.refusal.rule} of {page}: {report.refusal.reason}"
