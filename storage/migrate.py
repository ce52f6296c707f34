"""Applies the numbered SQL files of migrations/ to a database, each once and in order, under a lock."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib import resources

from homeserver.errors import LairError
from storage.database import Database, Transaction

log = logging.getLogger(__name__)

_LOCK = 0x6C616972_6D696772  # "lairmigr"
_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class MigrationFailed(LairError):
    """A database that these migrations cannot bring up to date."""


@dataclass(frozen=True)
class Migration:
    """One file of migrations/."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text: a released migration is never edited."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations of this program, in order."""
    found = []
    for file in resources.files("storage.migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text()))
    return sorted(found, key=lambda migration: migration.number)


async def migrate(database: Database) -> list[Migration]:
    """Bring the database to the newest form; returns what was applied.

    Several servers may call this at once: one works, the others wait for it. Raises MigrationFailed for a
    database that a newer program has migrated, or whose applied migrations differ from this program's.
    """
    async with database.connection() as tx:
        await tx.execute("SET lock_timeout = 0")
        await tx.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=3600)
        try:
            return await _apply_missing(tx)
        finally:
            await tx.execute("SELECT pg_advisory_unlock($1)", _LOCK)
            await tx.execute("SET lock_timeout = '20s'")


async def _apply_missing(tx: Transaction) -> list[Migration]:
    await tx.execute(
        """
        CREATE TABLE IF NOT EXISTS migrations (
            number     int PRIMARY KEY,
            name       text NOT NULL,
            digest     text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    applied = {
        row["number"]: row["digest"] for row in await tx.fetch("SELECT number, digest FROM migrations")
    }
    known = migrations()
    if set(applied) - {migration.number for migration in known}:
        raise MigrationFailed(
            f"the database was migrated to {max(applied)} by a newer version of Lair Chat; start that version"
        )
    missing = []
    for migration in known:
        if migration.number not in applied:
            missing.append(migration)
        elif applied[migration.number] != migration.digest:
            raise MigrationFailed(
                f"migration {migration.number:04}_{migration.name} was applied in another form; "
                "this database belongs to another build of Lair Chat"
            )
    for count, migration in enumerate(missing, 1):
        log.info("migration %d of %d: %04d_%s", count, len(missing), migration.number, migration.name)
        async with tx.transaction():
            await tx.execute(migration.sql, timeout=24 * 3600)
            await tx.execute(
                "INSERT INTO migrations (number, name, digest) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.digest,
            )
    return missing
