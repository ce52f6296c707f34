"""What `make fuzz` says, and that a difference which it keeps is a case that can be read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synapse_compat_tests import core_cases
from synapse_compat_tests.core_cases import kept_cases
from synapse_compat_tests.core_differences import compare
from synapse_compat_tests.core_reports import compare_room
from synapse_compat_tests.deviations import UNFEDERATED_TARGET
from synapse_compat_tests.fuzz import fuzz, look
from synapse_compat_tests.synapse_core_process import SynapseCore


def test_it_ends_in_time_and_tells_what_it_compared(
    core: SynapseCore, capsys: pytest.CaptureFixture[str]
) -> None:
    differences = fuzz(core, ["11", "12"], 0.2, 0)

    *_, heading, of_11, of_12 = capsys.readouterr().out.splitlines()
    assert differences == 0
    assert heading.split()[:5] == ["version", "rooms", "events", "verdicts", "resolutions"]
    assert [int(row.split()[1]) > 0 for row in (of_11, of_12)] == [True, True]


def test_a_difference_is_kept(
    core: SynapseCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core_cases, "KEPT", tmp_path)
    wanted = (UNFEDERATED_TARGET,)
    seed = next(
        seed
        for seed in range(100)
        if any(found.deviations == wanted for found in compare_room(core, "12", seed)[1])
    )

    assert look(core, "12", seed, UNFEDERATED_TARGET.name, "a_target") > 0

    document = capsys.readouterr().out.partition("`lair-chat event check`:\n")[2]
    assert json.JSONDecoder().raw_decode(document)[0]["room_version"] == "12"
    [kept] = kept_cases()
    assert (kept.name, kept.deviations) == ("a_target", [UNFEDERATED_TARGET.name])
    assert [found.deviations for found in compare(core, kept.case)] == [wanted]
