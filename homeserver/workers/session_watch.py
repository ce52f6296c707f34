"""Follows the sessions that other processes, and commands beside the server, end."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from homeserver.services.access_tokens import AccessTokens
from storage import ended_sessions
from storage.database import Database
from storage.ended_sessions import Position

log = logging.getLogger(__name__)

INTERVAL_S: Final = 0.5
READ_LIMIT_S: Final = 10.0


class SessionWatch:
    """Makes this process ask again about the tokens of sessions that have ended or changed anywhere."""

    def __init__(self, database: Database, access_tokens: AccessTokens) -> None:
        self._database = database
        self._access_tokens = access_tokens
        self._position: Position | None = None
        self._works = True

    async def run(self) -> None:
        """Look twice a second, for ever: a session that ended elsewhere is refused here within a second."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Read once; while that fails, what was remembered as valid is forgotten each time."""
        try:
            async with asyncio.timeout(READ_LIMIT_S), self._database.connection() as tx:
                session_ids, self._position = await ended_sessions.read(tx, self._position)
        except Exception as error:
            if self._works:
                log.warning("cannot read which sessions have ended: %s", error or type(error).__name__)
            self._works, self._position, session_ids = False, None, None
        else:
            self._works = True
        if session_ids is None:
            self._access_tokens.forget_all()
        elif session_ids:
            self._access_tokens.forget(session_ids)
