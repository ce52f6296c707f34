"""lair-chat token: registration tokens, without any HTTP."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from homeserver.app import open_database
from homeserver.commands.command_parser import Subparsers, config_of
from homeserver.commands.durations import duration_ms
from homeserver.errors import LairError, MatrixError
from homeserver.services.clock import system_clock
from homeserver.services.registration_tokens import MAX_USES, ListedToken, RegistrationTokens


def add_to(commands: Subparsers) -> None:
    """Add `token create`, `token list` and `token revoke`."""
    group = commands.add_parser("token", help="registration tokens").add_group()

    create_parser = group.add_parser("create", help="print a new registration token")
    create_parser.add_argument(
        "--uses", type=_uses, metavar="N", help="for N registrations (without it: any number)"
    )
    create_parser.add_argument(
        "--expires",
        type=duration_ms,
        metavar="SPAN",
        help="valid so long: 30m, 12h, 7d (without it: for ever)",
    )
    create_parser.set_defaults(run=create)

    list_parser = group.add_parser("list", help="print every registration token by its fingerprint")
    list_parser.set_defaults(run=list_all)

    revoke_parser = group.add_parser("revoke", help="end a registration token")
    revoke_parser.add_argument(
        "token", metavar="TOKEN", help="the token, or its fingerprint from `token list`"
    )
    revoke_parser.set_defaults(run=revoke)


def create(arguments: argparse.Namespace) -> int:
    """Print a new token, which is shown this once."""

    async def work(tokens: RegistrationTokens) -> None:
        print(await tokens.create(arguments.uses, arguments.expires))

    return _run(arguments, work)


def list_all(arguments: argparse.Namespace) -> int:
    """Print one line for each token: fingerprint, uses, end, and whether it can be used."""

    async def work(tokens: RegistrationTokens) -> None:
        for token in await tokens.list():
            print(_line(token))

    return _run(arguments, work)


def revoke(arguments: argparse.Namespace) -> int:
    """End a token. Raises LairError where there is none."""

    async def work(tokens: RegistrationTokens) -> None:
        if not await tokens.revoke(arguments.token):
            raise LairError(
                "there is no such registration token; `lair-chat token list` prints the fingerprints"
            )

    return _run(arguments, work)


def _run(arguments: argparse.Namespace, work: Callable[[RegistrationTokens], Awaitable[None]]) -> int:
    async def run() -> None:
        async with open_database(config_of(arguments)) as database:
            await work(RegistrationTokens(database, system_clock))

    try:
        asyncio.run(run())
    except MatrixError as error:
        raise LairError(error.error) from None
    return 0


def _line(token: ListedToken) -> str:
    uses = f"{token.completed} of {'any number' if token.uses_allowed is None else token.uses_allowed} used"
    end = "never expires" if token.expires_ts is None else f"expires {_minute(token.expires_ts)}"
    return f"{token.fingerprint}  {'usable' if token.is_usable else 'spent '}  {uses}, {end}"


def _minute(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _uses(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_USES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of registrations; write 1 or more")
    return int(text)
