"""The postmaster, PostgreSQL's first process, as our direct child: started, waited for, stopped, reaped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from storage.embedded.binaries import Binaries
from storage.embedded.privileges import CHILD_ENVIRONMENT, CHILD_FOLDER, Privileges
from storage.embedded.server_log import ServerLog
from storage.embedded.settings import fixed_settings

log = logging.getLogger(__name__)

_STOP_STEPS: Final = (
    (signal.SIGINT, 60.0),  # fast: roll back, write a checkpoint
    (signal.SIGQUIT, 10.0),  # at once: the next start recovers
    (signal.SIGKILL, 10.0),
)
_LAST_WORDS_LIMIT_S: Final = 2.0


class Postmaster:
    """One run of PostgreSQL, from `start` to its end."""

    def __init__(
        self, process: asyncio.subprocess.Process, output: asyncio.ReadTransport, server_log: ServerLog
    ) -> None:
        self._process = process
        self._output = output
        self.server_log = server_log

    @classmethod
    async def start(
        cls, cluster: Path, binaries: Binaries, privileges: Privileges, socket_folder: Path
    ) -> Postmaster:
        """Start PostgreSQL; it is not ready yet.

        It is in a session of its own, so that Ctrl-C does not reach it before we stop it. It gets SIGINT when
        we die: more exactly, when the thread that calls this does, which therefore is the main thread.
        """
        read_end, write_end = os.pipe()
        reader = os.fdopen(read_end, "rb", buffering=0)
        try:
            output, server_log = await asyncio.get_running_loop().connect_read_pipe(ServerLog, reader)
        except BaseException:
            reader.close()
            os.close(write_end)
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                *privileges.command(
                    binaries.postgres, "-D", cluster, *fixed_settings(socket_folder), death_signal="INT"
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                cwd=CHILD_FOLDER,
                env=CHILD_ENVIRONMENT,
                start_new_session=True,
            )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(write_end)
        return cls(process, output, server_log)

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    async def wait(self) -> str:
        """Wait for its end, however far that is; returns how it ended, in words."""
        status = await self._process.wait()
        with suppress(TimeoutError):  # another process of PostgreSQL may still hold the pipe
            await asyncio.wait_for(self.server_log.closed.wait(), _LAST_WORDS_LIMIT_S)
        self._output.close()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    async def ends_within(self, limit_s: float) -> bool:
        """Wait for its end, but not longer than `limit_s`."""
        try:
            await asyncio.wait_for(self._process.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Stop it and wait until it is gone; nothing happens when it is."""
        for number, limit_s in _STOP_STEPS:
            if self._process.returncode is None:
                with suppress(ProcessLookupError):  # ended, and reaped in a moment
                    self._process.send_signal(number)
            if await self.ends_within(limit_s):
                break
            log.warning("PostgreSQL does not stop on %s within %d s", number.name, limit_s)
        await self.wait()
