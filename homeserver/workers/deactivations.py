"""Finishes deactivations: at the start, when an account is deactivated here, and what others have noted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from homeserver.errors import Unavailable
from homeserver.services.deactivations import Deactivations

log = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0


async def finish_deactivations(deactivations: Deactivations, deactivated: asyncio.Event) -> None:
    """Finish what is to be finished, for ever; `deactivated` is set when that may be something new."""
    while True:
        deactivated.clear()
        try:
            await deactivations.finish_all()
        except Unavailable as error:
            log.info("deactivations have to wait: %s", error.error)
        except Exception:
            log.exception("deactivations cannot be finished")
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL_S):
                await deactivated.wait()
