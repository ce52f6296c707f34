"""python -m synapse_compat_tests.fuzz [--seconds 600]: compare our core with Synapse's on random rooms.

Prints how it goes on, and every difference that no known deviation of Synapse's explains; the exit code is 1
if there is one. With --version and --seed it looks at one room; --keep makes a case of what differs there.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from homeserver.protocol.room_versions import ROOM_VERSIONS
from synapse_compat_tests.core_cases import Case, KeptCase, keep
from synapse_compat_tests.core_differences import Difference
from synapse_compat_tests.core_reports import compare_room, made_small, report
from synapse_compat_tests.environment import synapse_python
from synapse_compat_tests.synapse_core_process import SynapseCore

PROGRESS_S: Final = 10.0
MAX_REPORTS: Final = 10
ROW: Final = "{:>8} {:>8} {:>9} {:>9} {:>12} {:>12}  {}"


@dataclass
class Tally:
    """What was compared in the rooms of one version."""

    rooms: int = 0
    events: int = 0
    verdicts: int = 0
    resolutions: int = 0
    unexplained: int = 0
    deviations: Counter[str] = field(default_factory=Counter)

    def count(self, case: Case, found: list[Difference]) -> None:
        """Add a room."""
        self.rooms += 1
        self.events += len(case.events)
        self.verdicts += len(case.by_auth_events) + len(case.by_state)
        self.resolutions += len(case.resolutions)
        self.unexplained += sum(not difference.deviations for difference in found)
        self.deviations.update(one.name for difference in found for one in difference.deviations)

    def row(self, version: str) -> str:
        """The line of a table."""
        deviations = ", ".join(f"{count} {name}" for name, count in self.deviations.most_common())
        counts = (self.rooms, self.events, self.verdicts, self.resolutions, self.unexplained)
        return ROW.format(version, *counts, deviations)


def fuzz(core: SynapseCore, versions: list[str], seconds: float, first_seed: int) -> int:
    """Compare rooms of all versions in turn until the time is over; returns the number of differences."""
    print(f"seeds from {first_seed}, versions {', '.join(versions)}", flush=True)
    tallies = {version: Tally() for version in versions}
    began = time.monotonic()
    next_progress = began + PROGRESS_S
    seed, reported = first_seed, 0
    while (now := time.monotonic()) < began + seconds:
        for version in versions:
            case, found = compare_room(core, version, seed)
            tallies[version].count(case, found)
            for difference in found:
                if not difference.deviations and reported < MAX_REPORTS:
                    print(report(core, version, seed, case, difference), flush=True)
                    reported += 1
        if now >= next_progress:
            print(progress(list(tallies.values()), now - began), flush=True)
            next_progress = now + PROGRESS_S
        seed += 1
    print(ROW.format("version", "rooms", "events", "verdicts", "resolutions", "unexplained", "deviations"))
    for version, tally in tallies.items():
        print(tally.row(version))
    return sum(tally.unexplained for tally in tallies.values())


def progress(tallies: list[Tally], seconds: float) -> str:
    """How much was compared, and how quickly."""
    parts = [
        f"{total} {name} ({total / seconds:.0f}/s)"
        for name in ("rooms", "events", "verdicts", "resolutions")
        for total in [sum(getattr(tally, name) for tally in tallies)]
    ]
    unexplained = sum(tally.unexplained for tally in tallies)
    return f"{seconds:5.0f} s: {', '.join(parts)}, {unexplained} differences unexplained"


def look(core: SynapseCore, version: str, seed: int, deviation: str | None, name: str | None) -> int:
    """Report the differences of one room, and keep the first under a name; returns their number."""
    case, differences = compare_room(core, version, seed)
    wanted = [] if deviation is None else [deviation]
    found = [one for one in differences if [deviation.name for deviation in one.deviations] == wanted]
    for difference in found:
        print(report(core, version, seed, case, difference))
    if name is not None and found:
        about = f"Found in a room of version {version}, seed {seed}"
        path = keep(KeptCase(name, about, wanted, made_small(core, case, found[0])))
        print(f"kept in {path}: say there what the case is about")
    return len(found)


def main() -> int:
    """Read the command line and do as it says."""
    parser = argparse.ArgumentParser(description="Compare our core with Synapse's on random rooms.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--version", action="append", choices=list(ROOM_VERSIONS), help="only these")
    parser.add_argument("--first-seed", type=int, default=secrets.randbelow(10**9), help="else a random one")
    parser.add_argument("--seed", type=int, help="look at the one room of this seed")
    parser.add_argument("--deviation", help="look for this deviation instead of what is unexplained")
    parser.add_argument("--keep", metavar="NAME", help="keep the first difference of the room as a case")
    arguments = parser.parse_args()
    versions: list[str] = arguments.version or list(ROOM_VERSIONS)
    if arguments.seed is not None and len(versions) != 1:
        parser.error("--seed is the seed of a room of one --version")
    with SynapseCore(synapse_python()) as core:
        if arguments.seed is None:
            return int(fuzz(core, versions, arguments.seconds, arguments.first_seed) > 0)
        return int(look(core, versions[0], arguments.seed, arguments.deviation, arguments.keep) > 0)


if __name__ == "__main__":
    sys.exit(main())
