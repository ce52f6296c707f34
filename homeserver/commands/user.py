"""lair-chat user: accounts, without any HTTP."""

from __future__ import annotations

import argparse
import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path

from homeserver.app import open_database
from homeserver.commands.command_parser import Subparsers, config_of
from homeserver.errors import LairError, MatrixError
from homeserver.protocol.identifiers import UserId
from homeserver.services.account_services import build_account_services
from homeserver.services.accounts import Accounts
from storage.dictionaries import Dictionaries


def add_to(commands: Subparsers) -> None:
    """Add `user create`, `user password` and `user deactivate`."""
    group = commands.add_parser("user", help="accounts of this server").add_group()

    create_parser = group.add_parser("create", help="make an account")
    create_parser.add_argument("name", metavar="NAME", help="the part of the user ID before the colon")
    create_parser.add_argument("--admin", action="store_true", help="an admin of this server")
    _add_password_file(create_parser)
    create_parser.set_defaults(run=create)

    password_parser = group.add_parser("password", help="give a user another password; logs the user out")
    password_parser.add_argument("name", metavar="NAME", help="the name, or the whole user ID")
    _add_password_file(password_parser)
    password_parser.set_defaults(run=password)

    deactivate_parser = group.add_parser("deactivate", help="end an account for ever")
    deactivate_parser.add_argument("name", metavar="NAME", help="the name, or the whole user ID")
    deactivate_parser.set_defaults(run=deactivate)


def create(arguments: argparse.Namespace) -> int:
    """Make an account and print its user ID. Raises LairError for a name or password that cannot be."""
    new_password = _new_password(arguments.password_file)

    async def work(accounts: Accounts) -> str:
        user_id = await accounts.create(arguments.name, new_password, is_admin=arguments.admin)
        return f"created {user_id}{' as an admin' if arguments.admin else ''}"

    return _run(arguments, work)


def password(arguments: argparse.Namespace) -> int:
    """Set a password; every device of the user is logged out. Raises LairError."""
    new_password = _new_password(arguments.password_file)

    async def work(accounts: Accounts) -> str:
        user_id = _user_id(accounts, arguments.name)
        await accounts.set_password(user_id, new_password)
        return f"changed the password of {user_id} and logged out all devices"

    return _run(arguments, work)


def deactivate(arguments: argparse.Namespace) -> int:
    """Deactivate an account. Raises LairError where there is none."""

    async def work(accounts: Accounts) -> str:
        user_id = _user_id(accounts, arguments.name)
        await accounts.deactivate(user_id)
        return f"deactivated {user_id}"

    return _run(arguments, work)


def _run(arguments: argparse.Namespace, work: Callable[[Accounts], Awaitable[str]]) -> int:
    config = config_of(arguments)

    async def run() -> str:
        async with open_database(config) as database:
            services = await build_account_services(config, database, Dictionaries(database).atoms)
            return await work(services.accounts)

    try:
        print(asyncio.run(run()))
    except MatrixError as error:
        raise LairError(error.error) from None
    return 0


def _add_password_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="the password is the first line of FILE (without it: asked for twice)",
    )


def _new_password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text("utf-8").partition("\n")[0].removesuffix("\r")
        except (OSError, UnicodeError) as error:
            raise LairError(f"--password-file: {file} cannot be read ({error})") from None
    try:
        first = getpass.getpass("New password: ")
        second = getpass.getpass("The same again: ")
    except EOFError:
        raise LairError("no password was given; use --password-file where there is no terminal") from None
    if first != second:
        raise LairError("the two passwords differ; nothing was changed")
    return first


def _user_id(accounts: Accounts, name: str) -> UserId:
    user_id = accounts.local_user_id(name)
    if user_id is None:
        raise LairError(f"{name} is no user of {accounts.server_name}")
    return user_id
