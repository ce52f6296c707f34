"""Cases of the authorization rules: a room, an event, and the rule that refuses it in each version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from homeserver.protocol.auth_events import auth_state_keys
from homeserver.protocol.auth_rules import check_auth
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.rooms import V11, V12, Draft, Room


@dataclass(frozen=True)
class Case:
    """An event in the room of `Room.with_members`, whose state `state` changes.

    `v11` and `v12` are the numbers of the rule that refuses it, as each version's page has them; None where
    it is allowed.
    """

    name: str
    event: Draft
    v11: str | None = None
    v12: str | None = None
    state: tuple[Draft, ...] = ()


def refusing_rule(version: RoomVersion, event: Pdu, state: dict[StateKey, Pdu]) -> str | None:
    """The rule that refuses an event, None if none does. It sees no more of the state than it may read."""
    keys = auth_state_keys(version, event.type, event.sender, event.state_key, event.content)
    try:
        check_auth(version, event, {key: state[key] for key in keys if key in state})
    except NotAllowed as refusal:
        return refusal.rule
    return None


def in_each_version(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Run a test that takes `version`, `case` and `rule` for each case in versions 11 and 12."""
    return pytest.mark.parametrize(
        ("version", "case", "rule"),
        [
            pytest.param(version, case, rule, id=f"{case.name}, version {version.version}")
            for case in cases
            for version, rule in ((V11, case.v11), (V12, case.v12))
        ],
    )


def outcome(version: RoomVersion, case: Case) -> str | None:
    """The rule that refuses the event of a case; None if it is allowed."""
    room = Room.with_members(version)
    room.put(*case.state)
    return refusing_rule(version, room.event(case.event), room.state)
