"""The rows of invariants.csv and the tests that prove them.

As a plugin of pytest it refuses a marker that names no row, and a test that is not named for its row.
`python -m tests.invariants` lists the rows without a test.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROWS = Path(__file__).with_name("invariants.csv")


def rows() -> dict[str, str]:
    """The title of each row, by its ID, in the order of the file."""
    with ROWS.open(encoding="utf-8", newline="") as lines:
        return {row["id"]: row["title"] for row in csv.DictReader(lines)}


def proven_by(item: pytest.Item) -> list[str]:
    """The rows that the markers of a test name. Raises UsageError for a marker that names anything else."""
    proven: list[str] = []
    for marker in item.iter_markers("invariant"):
        if len(marker.args) != 1 or marker.kwargs:
            raise pytest.UsageError(f"{item.nodeid}: the marker invariant takes one row")
        [row] = marker.args
        if row not in rows():
            raise pytest.UsageError(f"{item.nodeid}: invariants.csv has no row {row}")
        proven.append(row)
    starts = [f"test_{row.lower().replace('-', '_')}_" for row in proven]
    if starts and not item.name.startswith(tuple(starts)):
        raise pytest.UsageError(f"{item.nodeid}: the name of the test has to begin with {starts[0]}")
    return proven


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the markers of every test that has been collected."""
    for item in items:
        proven_by(item)


class Collector:
    """A plugin that remembers which rows the collected tests prove."""

    def __init__(self) -> None:
        self.proven: set[str] = set()

    def pytest_collection_modifyitems(self, items: Iterable[pytest.Item]) -> None:
        """Note the rows of each test."""
        for item in items:
            self.proven.update(proven_by(item))


def without_test(proven: Iterable[str]) -> list[str]:
    """One line for each row that is not among those proven."""
    proven = set(proven)
    return [f"{row:<14}{title}" for row, title in rows().items() if row not in proven]


def main() -> int:
    """Collect the suite and list the rows without a test; returns pytest's exit code where that failed."""
    collector = Collector()
    report = io.StringIO()
    with redirect_stdout(report):
        code = pytest.main(["--collect-only", "-qq"], plugins=[collector])
    if code != pytest.ExitCode.OK:
        sys.stderr.write(report.getvalue())
        return int(code)
    missing = without_test(collector.proven)
    sys.stdout.write("".join(f"{line}\n" for line in missing))
    sys.stdout.write(f"{len(missing)} of {len(rows())} rows have no test\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
