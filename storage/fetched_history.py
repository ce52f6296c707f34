"""History that was fetched later: where it is missing, and giving it its place.

It stands at (room_seq, -1), (room_seq, -2), ... before the live event of a gap, the oldest last. Of all that
is missing there table missing_prev has a row with that live event as the child, whichever event names it. The
rows of an event go when it gets its place. One that was written just then, by somebody else, means nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from homeserver.protocol.event_hashes import decode_event_id, encode_event_id
from homeserver.protocol.identifiers import EventId
from storage import room_timeline
from storage.database import Database, Transaction
from storage.event_flags import EventFlag
from storage.links import Links
from storage.room_timeline import TimelineRow

MAX_MISSING: Final = 1000
"""So many missing events are looked at."""
MAX_GAPS: Final = 200
"""So many live events with gaps before them are looked at; a gap that is filled is none any more."""

_OPEN: Final = f"""
    SELECT missing.event_id, gap.room_seq AS seq
    FROM (
        SELECT nid, room_seq FROM events
        WHERE room_nid = $1 AND flags & {EventFlag.GAP} <> 0 AND room_seq >= $2 AND room_seq <= $3
          AND (SELECT min(child_nid) FROM missing_prev WHERE child_nid = nid) IS NOT NULL
        ORDER BY room_seq DESC LIMIT $4
    ) AS gap
    CROSS JOIN LATERAL (
        SELECT event_id FROM missing_prev WHERE child_nid = gap.nid LIMIT {MAX_MISSING}
    ) AS missing
    WHERE NOT coalesce((
        SELECT here.room_nid = $1 AND (here.room_seq IS NOT NULL OR here.state_ver IS NOT NULL)
        FROM events AS here WHERE here.event_id = missing.event_id
    ), false) AND gap.room_seq = (
        SELECT min(child.room_seq)
        FROM missing_prev AS same JOIN events AS child ON child.nid = same.child_nid
        WHERE same.room_nid = $1 AND same.event_id = missing.event_id
    )
"""  # noqa: S608
"""What is missing before the newest gaps between two room_seq, each with the first gap that it belongs to: it
is older than all that name it."""


class Gap(NamedTuple):
    """A place in a room's timeline before which events are missing: that of the oldest one that is known."""

    seq: int
    """The room_seq of the live event before which they are missing."""
    sub: int


async def gaps(tx: Transaction, room_nid: int, first: int, last: int) -> list[Gap]:
    """The newest gaps of a room before live events from one room_seq to another, the newest first."""
    query = f"""
        SELECT seq, (SELECT min(sub) FROM events WHERE room_nid = $1 AND room_seq = seq) AS sub
        FROM (SELECT DISTINCT seq FROM ({_OPEN}) AS missing) AS gap ORDER BY seq DESC
    """  # noqa: S608
    return [Gap(row["seq"], row["sub"]) for row in await tx.fetch(query, room_nid, first, last, MAX_GAPS)]


async def missing(tx: Transaction, room_nid: int, seq: int) -> dict[EventId, int]:
    """What is known to be missing before a gap, and before older ones: each with the room_seq of its gap."""
    query = f"""
        SELECT event_id, seq FROM ({_OPEN}) AS missing ORDER BY seq DESC, event_id LIMIT {MAX_MISSING}
    """  # noqa: S608
    rows = await tx.fetch(query, room_nid, 0, seq, MAX_GAPS)
    return {decode_event_id(row["event_id"]): row["seq"] for row in rows}


async def oldest_known(tx: Transaction, room_nid: int, seq: int) -> TimelineRow | None:
    """The oldest event that is known after a gap; None where there is no such live event."""
    query = "SELECT nid FROM events WHERE room_nid = $1 AND room_seq = $2 ORDER BY sub LIMIT 1"
    nid = await tx.fetchval(query, room_nid, seq)
    return None if nid is None else (await room_timeline.by_nids(tx, [nid]))[nid]


async def count_between(tx: Transaction, room_nid: int, gap: Gap, high: tuple[int, int], most: int) -> int:
    """How many events there are from a gap up to a place; `most` if there are more."""
    query = """
        SELECT count(*) FROM (
            SELECT FROM events
            WHERE room_nid = $1 AND (room_seq, sub) >= ($2, $3) AND (room_seq, sub) < ($4, $5) LIMIT $6
        ) AS counted
    """
    return int(await tx.fetchval(query, room_nid, *gap, *high, most))


@dataclass(frozen=True, slots=True)
class FetchedEvent:
    """An event that is stored as an outlier, with all that its place needs."""

    nid: int
    event_id: EventId
    state_ver: int
    """The state before it: a version of the trunk, ..."""
    state_delta: int | None
    """... and the number of the differences to that."""
    prev_nids: tuple[int, ...]
    """The numbers of its prev_events, as far as they are here."""
    is_rejected: bool
    """Whether the state before it refuses it, or its auth events do: it gets no place in the timeline."""
    redacts: EventId | None = None
    redacts_others: bool = False
    """Of a redaction: whether its sender's power level allows to redact the events of others."""


class Redacted(NamedTuple):
    """An event whose content a redaction has taken just now."""

    event_id: EventId
    by_nid: int


async def place(
    database: Database,
    room_nid: int,
    seq: int,
    events: Sequence[FetchedEvent],
    *,
    found: Collection[EventId],
    missing: Collection[EventId],
) -> list[Redacted]:
    """Put events before all that is known after a gap, the oldest first.

    `found`: what is not missing any more, and `missing`: what is now. One who does the same at the same time
    is waited for; events that have a place meanwhile are passed over, and so are those that just become live.
    """
    async with database.transaction() as tx:
        await tx.execute("SELECT FROM rooms WHERE nid = $1 FOR NO KEY UPDATE", room_nid)
        live_nid = await tx.fetchval(
            "SELECT nid FROM events WHERE room_nid = $1 AND room_seq = $2 AND sub = 0", room_nid, seq
        )
        if live_nid is None:
            return []
        free = await tx.fetch(
            """
            SELECT nid FROM events WHERE nid = ANY($1::bigint[]) AND room_seq IS NULL AND state_ver IS NULL
            FOR UPDATE SKIP LOCKED
            """,
            [event.nid for event in events],
        )
        free_nids = {row["nid"] for row in free}
        placed = [event for event in events if event.nid in free_nids]
        await _give_places(tx, room_nid, seq, placed)
        await tx.execute(
            """
            DELETE FROM missing_prev
            WHERE room_nid = $1 AND event_id = ANY($3::bytea[] || $4::bytea[])
              AND (child_nid = $2 OR event_id = ANY($4::bytea[]))
            """,
            room_nid,
            live_nid,
            [encode_event_id(event_id) for event_id in found],
            [encode_event_id(event.event_id) for event in placed],
        )
        await tx.execute(
            """
            INSERT INTO missing_prev (room_nid, event_id, child_nid) SELECT $1, unnest($3::bytea[]), $2
            ON CONFLICT DO NOTHING
            """,
            room_nid,
            live_nid,
            [encode_event_id(event_id) for event_id in missing],
        )
        return await _redact(tx, room_nid, placed)


async def _give_places(tx: Transaction, room_nid: int, seq: int, events: Sequence[FetchedEvent]) -> None:
    lowest = await tx.fetchval(
        "SELECT min(sub) FROM events WHERE room_nid = $1 AND room_seq = $2", room_nid, seq
    )
    subs: list[int | None] = []
    for event in reversed(events):
        if event.is_rejected:
            subs.append(None)
        else:
            lowest -= 1
            subs.append(lowest)
    links = Links()
    slices = [links.add(event.prev_nids) for event in events]
    await tx.execute(
        """
        UPDATE events
        SET room_seq = CASE WHEN e.sub IS NOT NULL AND events.flags & $2 = 0 THEN $1::bigint END,
            sub = coalesce(e.sub, 0), state_ver = e.ver, state_delta = e.delta,
            prev = ($3::bigint[])[e.prev_from:e.prev_to],
            flags = events.flags | CASE WHEN e.sub IS NULL THEN $2 ELSE 0 END
        FROM unnest($4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::int[], $9::int[])
             AS e(nid, sub, ver, delta, prev_from, prev_to)
        WHERE events.nid = e.nid
        """,
        seq,
        EventFlag.REJECTED,
        links.nids,
        [event.nid for event in events],
        subs[::-1],
        [event.state_ver for event in events],
        [event.state_delta for event in events],
        [first for first, _ in slices],
        [last for _, last in slices],
    )


async def _redact(tx: Transaction, room_nid: int, events: Sequence[FetchedEvent]) -> list[Redacted]:
    """Let redactions among some events hold, and those that came before the events that they name."""
    redactions = [event for event in events if event.redacts is not None and not event.is_rejected]
    await tx.execute(
        """
        INSERT INTO redactions (room_nid, target, by_nid, by_power)
        SELECT $1, d.target, d.nid, d.by_power
        FROM unnest($2::bytea[], $3::bigint[], $4::boolean[]) AS d(target, nid, by_power)
        ON CONFLICT DO NOTHING
        """,
        room_nid,
        [encode_event_id(event.redacts) for event in redactions if event.redacts is not None],
        [event.nid for event in redactions],
        [event.redacts_others for event in redactions],
    )
    rows = await tx.fetch(
        """
        SELECT events.event_id, applied.by_nid
        FROM apply_redactions($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[]) AS applied
        JOIN events ON events.nid = applied.target
        """,
        [event.nid for event in events],
        [room_nid] * len(redactions),
        [encode_event_id(event.redacts) for event in redactions if event.redacts is not None],
        [event.nid for event in redactions],
    )
    return [Redacted(decode_event_id(row["event_id"]), row["by_nid"]) for row in rows]
