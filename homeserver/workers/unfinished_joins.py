"""Finishes joins to rooms of other servers that broke off: at the start, and again and again."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from homeserver.errors import Unavailable
from homeserver.services.remote_joins import RemoteJoins

log = logging.getLogger(__name__)

INTERVAL_S: Final = 15.0


async def finish_joins(remote_joins: RemoteJoins) -> None:
    """Finish what is to be finished, for ever. What broke off lately is still leased for up to a minute."""
    while True:
        try:
            await remote_joins.finish_broken_off()
        except Unavailable as error:
            log.info("joins have to wait: %s", error.error)
        except Exception:
            log.exception("joins that broke off cannot be finished")
        await asyncio.sleep(INTERVAL_S)
