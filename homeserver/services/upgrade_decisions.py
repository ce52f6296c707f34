"""The decisions of an upgrade: what each of the two rooms gets, given its head.

Source: Client-Server API, "Room Upgrades".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.events import EventDraft, Pdu
from homeserver.protocol.identifiers import RoomId, parse_room_id
from homeserver.services.canonical_aliases import CANONICAL_ALIAS, without_alias
from homeserver.services.clock import Clock
from homeserver.services.event_building import build_event
from homeserver.services.event_series import EventSeries
from homeserver.services.upgraded_power_levels import TOMBSTONE, levels_of_silenced_room
from homeserver.services.upgraded_state import SPACE_CHILD, OldRoom, Upgrade
from storage.room_heads import RoomHead

BODY: Final = "This room has been replaced"
PROTECTING: Final = ("m.room.power_levels", "m.room.server_acl")
"""No room takes the place of another one without these."""


class Replaced(Exception):
    """A room has been replaced already."""

    def __init__(self, create: Pdu, tombstone: Pdu, replacement: RoomId) -> None:
        super().__init__(f"{create.room_id} has been replaced by {replacement}")
        self.create = create
        self.tombstone = tombstone
        self.replacement = replacement


class Changed(Exception):
    """The state of a room has changed since it was looked at."""


def check_upgradable(head: RoomHead, upgrade: Upgrade) -> RoomHead:
    """The head of a room that may be upgraded. Raises NotAllowed, Replaced."""
    build_event(head, _tombstone(head.room.room_id), upgrade.upgrader, 0)
    create, tombstone = head.event(*CREATE), head.event(TOMBSTONE)
    assert create is not None
    if tombstone is not None and (replacement := _replacement(tombstone)) is not None:
        raise Replaced(create, tombstone, replacement)
    return head


def events_of_new_room(series: EventSeries, drafts: Sequence[EventDraft]) -> list[Pdu]:
    """The first events of a new room. What its rules refuse, or is too large now, is left out.

    But nothing that protects the room: raises what EventSeries.add raises.
    """
    for draft in drafts:
        if draft.type in PROTECTING:
            series.add(draft)
        else:
            series.add_if_possible(draft)
        if draft.type == SPACE_CHILD:
            series.origin_server_ts += 1  # rooms of a space are shown in the order of these
    return series.pdus


def more_events_of_new_room(
    head: RoomHead, *, upgrade: Upgrade, drafts: Sequence[EventDraft], origin_server_ts: int
) -> list[Pdu]:
    """Further ones, where they are too many for one decision."""
    return events_of_new_room(_series(head, upgrade, drafts, origin_server_ts), drafts)


def events_for_changes(
    head: RoomHead, *, upgrade: Upgrade, drafts: Sequence[EventDraft], clock: Clock
) -> list[Pdu]:
    """What the new room gets because the old one has changed, as far as the upgrader may say it by now."""
    series = _series(head, upgrade, drafts, clock())
    for draft in drafts:
        series.add_if_possible(draft)
    return series.pdus


def last_events(
    head: RoomHead, *, old: OldRoom, new_room_id: RoomId, upgrade: Upgrade, clock: Clock, is_patient: bool
) -> list[Pdu]:
    """The tombstone of the old room, and what silences it as far as the upgrader may do that.

    Raises Changed, if `is_patient`, for a room whose state has changed since it was looked at; and what
    `check_upgradable` raises.
    """
    check_upgradable(head, upgrade)
    if is_patient and head.state_ver > old.seq:
        raise Changed
    series = EventSeries(head, upgrade.upgrader, clock())
    series.add(_tombstone(new_room_id))
    if (event := head.event(CANONICAL_ALIAS)) is not None:
        left = event.content
        for alias in old.aliases:
            left = without_alias(left, alias)
        if left != event.content:
            series.add_if_possible(EventDraft(CANONICAL_ALIAS, left, ""))
    levels = levels_of_silenced_room(head.version, old.create, head.event(*POWER_LEVELS))
    if levels is not None:
        series.add_if_possible(EventDraft("m.room.power_levels", levels, ""))
    return series.pdus


def _series(
    head: RoomHead, upgrade: Upgrade, drafts: Sequence[EventDraft], origin_server_ts: int
) -> EventSeries:
    """A series on a head that has all that so many drafts need: it is asked for at once, not one by one."""
    keys = ((draft.type, draft.state_key or "") for draft in drafts)
    head.events([*keys, ("m.room.member", upgrade.upgrader)])
    return EventSeries(head, upgrade.upgrader, origin_server_ts)


def _tombstone(replacement: RoomId) -> EventDraft:
    return EventDraft(TOMBSTONE, {"body": BODY, "replacement_room": replacement}, "")


def _replacement(tombstone: Pdu) -> RoomId | None:
    """The other room that a tombstone names, if it names any."""
    named = tombstone.content.get("replacement_room")
    if not isinstance(named, str) or named == tombstone.room_id:
        return None
    try:
        return parse_room_id(named)
    except InvalidIdentifier:
        return None
