"""The settings of the embedded PostgreSQL.

What our own connections rely on is given on the command line and holds always. The rest is written to
postgresql.conf at each start; `ALTER SYSTEM` has the last word over it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LINE_PREFIX: Final = "%e "
"""Each line of PostgreSQL's log begins with its SQLSTATE (00000: no error)."""

_OTHER_CONNECTIONS: Final = 40
"""Dedicated connections of the server, commands that run beside it, the operator's psql."""

_CONFIGURATION: Final = """\
# Written by Lair Chat at each start. For settings of your own use ALTER SYSTEM: they outlive this file.
max_connections = {max_connections}
shared_buffers = 128MB
work_mem = 8MB
maintenance_work_mem = 64MB
# WAL: durable, compressed, checkpoints by size.
wal_compression = on
max_wal_size = 1GB
# Many short queries: no compiling, no parallel workers (they need /dev/shm, which containers keep small).
jit = off
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
max_logical_replication_workers = 0
# A session that forgets its transaction holds back vacuum and the locks that others wait for.
idle_in_transaction_session_timeout = 5min
timezone = 'UTC'
log_timezone = 'UTC'
log_checkpoints = off
log_min_messages = warning
"""


def configuration(pool_size: int) -> str:
    """The text of postgresql.conf; `pool_size`: what all pools of the server may open together."""
    return _CONFIGURATION.format(max_connections=pool_size + _OTHER_CONNECTIONS)


def fixed_settings(socket_folder: Path) -> list[str]:
    """The arguments of `postgres` that no file can overrule."""
    quoted = str(socket_folder).replace('"', '""')
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_line_prefix": LINE_PREFIX,
    }
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
