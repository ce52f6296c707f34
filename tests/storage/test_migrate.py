"""Migrations on a real database."""

from __future__ import annotations

import asyncio

from storage.database import Database
from storage.migrate import migrate, migrations


async def test_an_empty_database_is_taken_to_the_newest_form_once(database: Database) -> None:
    async with database.connection() as tx:
        applied = await tx.fetch("SELECT number, name FROM migrations ORDER BY number")

    assert [(row["number"], row["name"]) for row in applied] == [(m.number, m.name) for m in migrations()]
    assert not any(await asyncio.gather(migrate(database), migrate(database)))


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))
