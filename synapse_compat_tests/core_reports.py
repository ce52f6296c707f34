"""What is said of a difference: where it was, the two answers, and the smallest document that shows it."""

from __future__ import annotations

import json

from synapse_compat_tests.core_cases import Case
from synapse_compat_tests.core_differences import Difference, compare
from synapse_compat_tests.random_rooms import random_case
from synapse_compat_tests.small_cases import document, small_case
from synapse_compat_tests.synapse_core_process import SynapseCore


def compare_room(core: SynapseCore, version: str, seed: int) -> tuple[Case, list[Difference]]:
    """The room of a seed, and what differs there; an error names the seed."""
    try:
        case = random_case(version, seed)
        return case, compare(core, case)
    except Exception as error:
        error.add_note(f"in the room of version {version} with the seed {seed}")
        raise


def report(core: SynapseCore, version: str, seed: int, case: Case, difference: Difference) -> str:
    """The text that tells a difference in the room of a seed, and how to keep it."""
    small = made_small(core, case, difference)
    command = "room resolve" if small.resolutions else "event check"
    return (
        f"Room version {version}, seed {seed}, {difference.part}[{difference.index}]\n"
        f"  ours:     {json.dumps(difference.ours)}\n"
        f"  Synapse:  {json.dumps(difference.synapses)}\n"
        f"  to keep:  python -m synapse_compat_tests.fuzz --version {version} --seed {seed} --keep NAME\n"
        f"  for `lair-chat {command}`:\n{document(small)}\n"
    )


def made_small(core: SynapseCore, case: Case, difference: Difference) -> Case:
    """The smallest case with a difference of the same kind, explained by the same deviations or by none."""

    def differs(smaller: Case) -> bool:
        kinds = [(found.part, found.deviations) for found in compare(core, smaller)]
        return (difference.part, difference.deviations) in kinds

    return small_case(case, difference, differs)
