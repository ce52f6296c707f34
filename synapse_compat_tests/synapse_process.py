"""A Synapse as a process: on SQLite, on a loopback address of its own, quick to try again what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from homeserver.services.signing_key_file import create_signing_key
from tests.federation.homeservers import listener_of
from tests.federation.peers import Authority
from tests.server_process import HomeserverProcess, free_port

UNLIMITED: Final = {"per_second": 100_000, "burst_count": 100_000}


def synapse_process(python: Path, authority: Authority, folder: Path) -> HomeserverProcess:
    """A Synapse that has not been started yet, named by its address. `folder`: does not exist yet."""
    folder.mkdir()
    address, listener = listener_of(authority, folder)
    port = free_port()
    name = f"{address}:{listener['port']}"
    create_signing_key(folder / "signing.key")
    file = folder / "homeserver.yaml"
    file.write_text(yaml.safe_dump(_settings(name, port, listener, authority, folder)))
    command = [str(python), "-m", "synapse.app.homeserver", "-c", str(file)]
    return HomeserverProcess(folder, name, port, command, "/health")


def _settings(
    name: str, port: int, listener: dict[str, Any], authority: Authority, folder: Path
) -> dict[str, Any]:
    return {
        "server_name": name,
        "public_baseurl": f"http://127.0.0.1:{port}/",
        "pid_file": str(folder / "synapse.pid"),
        "listeners": [
            {
                "type": "http",
                "bind_addresses": ["127.0.0.1"],
                "port": port,
                "resources": [{"names": ["client"]}],
            },
            {
                "type": "http",
                "tls": True,
                "bind_addresses": [listener["bind"]],
                "port": listener["port"],
                "resources": [{"names": ["federation"]}],
            },
        ],
        "tls_certificate_path": listener["tls"]["certificate"],
        "tls_private_key_path": listener["tls"]["private_key"],
        "federation_custom_ca_list": [str(authority.file)],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "synapse.db")}},
        "caches": {"sync_response_cache_duration": "0s"},  # or a first sync is answered as it was minutes ago
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "trusted_key_servers": [],
        "report_stats": False,
        "macaroon_secret_key": "tea",
        "form_secret": "tea",
        "bcrypt_rounds": 4,
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "ip_range_blacklist": [],
        "federation": {
            "destination_min_retry_interval": "1s",
            "destination_retry_multiplier": 1,
            "destination_max_retry_interval": "2s",
            "client_timeout": "20s",
            "max_long_retries": 2,
            "max_long_retry_delay": 500,
            "max_short_retry_delay": 500,
        },
        **dict.fromkeys(("rc_message", "rc_registration", "rc_room_creation"), UNLIMITED),
        **dict.fromkeys(("rc_joins_per_room", "rc_admin_redaction"), UNLIMITED),
        "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), UNLIMITED),
        "rc_joins": dict.fromkeys(("local", "remote"), UNLIMITED),
        "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), UNLIMITED),
        "rc_federation": {"sleep_limit": 100_000, "reject_limit": 100_000, "concurrent": 100},
    }
