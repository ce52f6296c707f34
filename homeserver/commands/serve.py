"""lair-chat serve: the server in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from typing import Final

from homeserver.app import Server, run_server
from homeserver.commands.command_parser import Subparsers, config_of
from homeserver.config import Config, settings_without_effect
from homeserver.errors import LairError, MatrixError
from homeserver.logs import set_up_logging
from homeserver.services.secrets import new_secret

log = logging.getLogger(__name__)

GARBAGE_THRESHOLDS: Final = (20_000, 20, 20)
"""How much comes into being between two looks for garbage; Python's own 700 make a sync a quarter dearer."""


def add_to(commands: Subparsers) -> None:
    """Add `serve`."""
    parser = commands.add_parser("serve", help="run the server until it is told to stop")
    parser.add_argument(
        "--first-admin",
        metavar="NAME",
        help="on a database without users: make this admin and print its password once",
    )
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT, then drain and stop. Raises LairError for what keeps it from starting."""
    config = config_of(arguments)
    set_up_logging(config.logging.level, config.logging.format)
    for key in settings_without_effect(config):
        log.warning("%s is set, but nothing reads it yet", key)
    with asyncio.Runner(loop_factory=_event_loop) as runner:
        runner.run(_serve(config, arguments.first_admin))
    return 0


async def _serve(config: Config, first_admin: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with run_server(config) as server:
        if first_admin is not None:
            await _make_first_admin(server, first_admin)
        for address, listener in zip(server.addresses, config.listeners, strict=True):
            print(f"{', '.join(listener.apis)}: {address.url}", flush=True)
        print(f"{config.server_name} is ready. Ctrl-C stops it.", flush=True)
        gc.collect()
        gc.freeze()  # what a server is made of stays: nobody need look through it again
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        await stop.wait()
        log.info("stopping")


async def _make_first_admin(server: Server, name: str) -> None:
    accounts = server.services.accounts
    if await accounts.has_users():
        return
    password = new_secret("")
    try:
        user_id = await accounts.create(name, password, is_admin=True)
    except MatrixError as error:
        raise LairError(f"--first-admin: {error.error}") from None
    print(
        f"The first admin is {user_id}, the password is {password} (it is shown only this once)", flush=True
    )


def _event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is to be had."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop  # noqa: PLC0415 -- not on Windows

    return uvloop.new_event_loop()
