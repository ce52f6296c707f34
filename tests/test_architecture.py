"""What docs/architecture.md says of the code is so."""

from __future__ import annotations

import re
from pathlib import Path

from storage.database import Database

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows_of_tables() -> list[list[str]]:
    """The cells of the list of tables, without quotes."""
    section = TEXT.partition("## The tables")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


async def test_every_table_is_listed_with_its_owner_and_its_retention(database: Database) -> None:
    rows = rows_of_tables()
    async with database.connection() as tx:
        tables = await tx.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")

    assert sorted(row[0] for row in rows) == sorted(table["tablename"] for table in tables)
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:homeserver|client_api|federation|storage|tests)/[\w/.]+)`", TEXT))

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
