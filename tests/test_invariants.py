"""The rows of invariants and their tests."""

from __future__ import annotations

import pytest

from tests import invariants

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["tests.invariants"]'


def test_every_row_has_a_title_of_its_own() -> None:
    titles = list(invariants.rows().values())

    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_rows_without_a_test_are_listed() -> None:
    rows = invariants.rows()
    listed = invariants.without_test(row for row in rows if row != "SEC-WEB-1")

    assert listed == [f"SEC-WEB-1     {rows['SEC-WEB-1']}"]


@pytest.mark.parametrize(
    ("marker", "name", "complaint"),
    [
        ("'SEC-WEB-1'", "test_sec_web_1_holds", None),
        ("'SEC-WEB-1'", "test_it_holds", "*has to begin with test_sec_web_1_*"),
        ("'SEC-WEB-99'", "test_sec_web_99_holds", "*has no row SEC-WEB-99*"),
        ("'SEC-WEB-1', 'SEC-FED-1'", "test_sec_web_1_holds", "*takes one row*"),
    ],
)
def test_a_marker_names_a_row_and_so_does_the_test(
    pytester: pytest.Pytester, marker: str, name: str, complaint: str | None
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers = invariant(id)")
    pytester.makepyfile(f"import pytest\n@pytest.mark.invariant({marker})\ndef {name}(): pass\n")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "-p", "no:aiohttp")

    if complaint is None:
        result.assert_outcomes(passed=1)
    else:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([complaint])
