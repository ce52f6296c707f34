"""Table devices: where users are logged in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeserver.protocol.identifiers import DeviceId
from storage.database import Transaction


@dataclass(frozen=True)
class DeviceKey:
    """A device by its number and by its ID, which is unique for its user."""

    device_nid: int
    device_id: DeviceId


async def save(
    tx: Transaction,
    user_nid: int,
    device_id: DeviceId,
    *,
    display_name: str | None,
    seen_ts: int,
    seen_ip: str | None,
) -> int:
    """Store a device that logs in and return its number; a known one keeps its number and name."""
    query = """
        INSERT INTO devices (user_nid, device_id, display_name, created_ts, last_seen_ts, last_seen_ip)
        VALUES ($1, $2, $3, $4, $4, $5)
        ON CONFLICT (user_nid, device_id)
        DO UPDATE SET last_seen_ts = excluded.last_seen_ts, last_seen_ip = excluded.last_seen_ip
        RETURNING device_nid
    """
    return int(await tx.fetchval(query, user_nid, device_id, display_name, seen_ts, seen_ip))


async def lock(tx: Transaction, user_nid: int) -> list[DeviceKey]:
    """The devices of a user; until the transaction ends nobody logs in on them."""
    query = "SELECT device_nid, device_id FROM devices WHERE user_nid = $1 ORDER BY device_nid FOR UPDATE"
    return [DeviceKey(**row) for row in await tx.fetch(query, user_nid)]


async def delete(tx: Transaction, device_nids: Sequence[int]) -> None:
    """Remove devices and everything that names them."""
    await tx.execute("DELETE FROM devices WHERE device_nid = ANY($1::bigint[])", device_nids)
