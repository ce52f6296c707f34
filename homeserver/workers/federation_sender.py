"""Sends to other servers what they are owed: the loops of FederationSending."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from homeserver.errors import Unavailable
from homeserver.services.federation_sending import FederationSending

log = logging.getLogger(__name__)

RETRY_INTERVAL_S: Final = 0.2
SAVE_INTERVAL_S: Final = 5.0
PAUSE_S: Final = 1.0
"""After something went wrong."""
LAST_SAVE_S: Final = 5.0


async def send_to_servers(sending: FederationSending) -> None:
    """Send for ever; when this is cancelled, note how far each server has got."""
    await _until_done(sending.start)
    try:
        async with asyncio.TaskGroup() as tasks:
            sending.open(tasks)
            tasks.create_task(_for_ever(sending.distribute))
            tasks.create_task(_retry(sending))
            tasks.create_task(_save(sending))
            tasks.create_task(_until_done(sending.greet))
    finally:
        sending.close()
        await _save_at_last(sending)


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await _until_done(work)


async def _until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Do some work, again if it fails."""
    while True:
        try:
            await work()
        except Unavailable as error:
            log.info("sending to other servers has to wait: %s", error.error)
        except Exception:
            log.exception("sending to other servers failed")
        else:
            return
        await asyncio.sleep(PAUSE_S)


async def _retry(sending: FederationSending) -> None:
    """Look again and again whose time has come: clocks are moved, and server names are heard of meanwhile."""
    while True:
        await asyncio.sleep(RETRY_INTERVAL_S)
        sending.retry()


async def _save(sending: FederationSending) -> None:
    while True:
        await asyncio.sleep(SAVE_INTERVAL_S)
        await _until_done(sending.save)


async def _save_at_last(sending: FederationSending) -> None:
    try:
        async with asyncio.timeout(LAST_SAVE_S):
            await sending.save()
    except (Unavailable, TimeoutError):
        log.warning("how far other servers have got is not noted: they get some events once more")
