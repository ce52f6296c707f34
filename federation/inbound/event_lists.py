"""Answers that are lists of events, which are JSON already."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from homeserver.http.models import RawReply
from homeserver.services import Services


def listed(name: str, events: Sequence[bytes]) -> RawReply:
    """An answer with a list of events under a name."""
    return RawReply(b'{"%b":[%b]}' % (name.encode(), b",".join(events)))


def in_transaction(services: Services, events: Sequence[bytes]) -> RawReply:
    """An answer in the form of a transaction of ours."""
    sender = {
        "origin": services.config.server_name,
        "origin_server_ts": services.history_for_servers.clock(),
    }
    return RawReply(b'%b,"pdus":[%b]}' % (orjson.dumps(sender)[:-1], b",".join(events)))
