"""Reading which sessions have ended: none is missed, in whatever order transactions commit."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from homeserver.services.secrets import random_number
from storage import ended_sessions
from storage.database import Database, Transaction
from storage.ended_sessions import Position


async def end(tx: Transaction) -> int:
    session_id = random_number()
    await tx.execute("INSERT INTO ended_sessions (session_id) VALUES ($1)", session_id)
    return session_id


async def read(database: Database, since: Position | None) -> tuple[set[int] | None, Position]:
    async with database.connection() as tx:
        session_ids, position = await ended_sessions.read(tx, since)
    return None if session_ids is None else set(session_ids), position


async def test_at_first_any_session_may_have_ended(database: Database) -> None:
    first, position = await read(database, None)
    second, _ = await read(database, position)

    assert first is None
    assert second is not None


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_a_transaction_that_commits_late_is_read_once_all_the_same(
    database: Database,
) -> None:
    _, start = await read(database, None)
    async with database.transaction() as slow:
        late = await end(slow)
        async with database.transaction() as quick:
            early = await end(quick)
        before, between = await read(database, start)
    after, position = await read(database, between)
    at_last, _ = await read(database, position)

    assert before is not None
    assert after is not None
    assert at_last is not None
    assert (early in before, late in before) == (True, False)
    assert (early in after, late in after) == (False, True)
    assert (early in at_last, late in at_last) == (False, False)


async def test_what_is_rolled_back_did_not_end(database: Database) -> None:
    _, start = await read(database, None)
    async with database.connection() as tx:
        transaction = tx.transaction()
        await transaction.start()
        session_id = await end(tx)
        await transaction.rollback()
    session_ids, _ = await read(database, start)

    assert session_ids is not None
    assert session_id not in session_ids


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_who_comes_back_too_late_is_told_that_any_session_may_have_ended(
    database: Database,
) -> None:
    _, position = await read(database, None)
    asleep = replace(position, at=position.at - ended_sessions.KEPT)

    assert (await read(database, asleep))[0] is None


@pytest.mark.invariant("SEC-SESS-1")
async def test_sec_sess_1_after_another_start_of_postgresql_any_session_may_have_ended(
    database: Database,
) -> None:
    _, position = await read(database, None)
    of_another = replace(position, server_start=position.server_start - timedelta(seconds=1))

    assert (await read(database, of_another))[0] is None


async def test_more_than_can_be_named_are_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_sessions, "MOST_READ", 2)
    _, start = await read(database, None)
    async with database.transaction() as tx:
        for _ in range(3):
            await end(tx)

    assert (await read(database, start))[0] is None


async def test_rows_are_kept_for_an_hour(database: Database) -> None:
    rest = "SELECT session_id FROM ended_sessions WHERE session_id = ANY($1::bigint[])"
    age = "UPDATE ended_sessions SET ts = ts - $2::interval WHERE session_id = $1"
    async with database.connection() as tx:
        old, new = await end(tx), await end(tx)
        await tx.execute(age, old, ended_sessions.KEPT)
        await ended_sessions.sweep(tx)
        kept = [row["session_id"] for row in await tx.fetch(rest, [old, new])]

    assert kept == [new]
