"""lair-chat migrate: bring the database up to date and stop."""

from __future__ import annotations

import argparse
import asyncio

from homeserver.app import open_database
from homeserver.commands.command_parser import Subparsers, config_of
from homeserver.logs import set_up_logging


def add_to(commands: Subparsers) -> None:
    """Add `migrate`."""
    parser = commands.add_parser("migrate", help="apply database migrations and stop")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Apply what is missing; serve does this too."""
    config = config_of(arguments)
    set_up_logging(config.logging.level, config.logging.format)

    async def work() -> None:
        async with open_database(config):
            pass

    asyncio.run(work())
    print("the database is up to date")
    return 0
