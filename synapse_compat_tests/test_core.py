"""Our core and Synapse's say the same of random rooms, and of kept cases, but for known deviations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

import pytest

from homeserver.protocol.room_versions import ROOM_VERSIONS
from synapse_compat_tests.core_cases import KeptCase, kept_cases
from synapse_compat_tests.core_differences import compare
from synapse_compat_tests.core_reports import compare_room, made_small, report
from synapse_compat_tests.deviations import DEVIATIONS
from synapse_compat_tests.synapse_core_process import SynapseCore

ROOMS = 60
"""How many rooms of each version: seeds from 0 on, so the same in every run."""


@pytest.mark.invariant("SEC-AUTH-1")
@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_sec_auth_1_random_rooms_are_the_same_to_both_cores(core: SynapseCore, version: str) -> None:
    reports: list[str] = []
    for seed in range(ROOMS):
        case, found = compare_room(core, version, seed)
        reports += [report(core, version, seed, case, one) for one in found if not one.deviations]

    assert not reports, "\n".join(reports)


@pytest.mark.parametrize("kept", kept_cases(), ids=lambda kept: kept.name)
def test_a_kept_case_shows_what_it_says_and_nothing_else(core: SynapseCore, kept: KeptCase) -> None:
    found = compare(core, kept.case)

    assert {tuple(one.name for one in difference.deviations) for difference in found} == (
        {tuple(kept.deviations)} if kept.deviations else set()
    )


def test_every_deviation_is_shown_by_a_kept_case() -> None:
    shown = {name for kept in kept_cases() for name in kept.deviations}

    assert shown == {deviation.name for deviation in DEVIATIONS}


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("events", patch("homeserver.protocol.redaction._keep", lambda *_: None)),
        ("by_state", patch("homeserver.protocol.power_levels.PowerLevels.invite", 50)),
        ("by_auth_events", patch("homeserver.protocol.membership_rules.creators_of", lambda *_: ())),
        ("resolved", patch("homeserver.protocol.state_resolution.resolve.is_power_event", lambda _: False)),
    ],
    ids=["redaction", "level to invite", "creators", "power events"],
)
def test_what_is_wrong_here_is_found_and_shown_by_a_small_case(
    core: SynapseCore, part: str, wrong: AbstractContextManager[object]
) -> None:
    with wrong:
        case, difference = next(
            (case, difference)
            for case, found in (compare_room(core, "11", seed) for seed in range(ROOMS))
            for difference in found
            if difference.part == part and not difference.deviations
        )
        small = made_small(core, case, difference)
        assert compare(core, small)

    assert len(small.events) < len(case.events)
    assert compare(core, small) == []
