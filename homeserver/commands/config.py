"""lair-chat config: print a commented configuration, and check one."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Final

import yaml

from homeserver.commands.command_parser import Subparsers, config_of, config_path
from homeserver.config import settings_without_effect
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, parse_server_name

EXAMPLE: Final = "config.example.yaml"
_SERVER_NAME_LINE: Final = re.compile(r"^server_name: \S+ +#", re.MULTILINE)
_COMMENT_COLUMN: Final = 39


def add_to(commands: Subparsers) -> None:
    """Add `config generate` and `config check`."""
    group = commands.add_parser("config", help="print or check a configuration").add_group()

    generate_parser = group.add_parser("generate", help="print a commented configuration")
    generate_parser.add_argument(
        "--server-name",
        type=_server_name,
        required=True,
        metavar="NAME",
        help="as in @user:NAME; never changes",
    )
    generate_parser.set_defaults(run=generate)

    check_parser = group.add_parser("check", help="validate a configuration; exit code 2 where it has errors")
    check_parser.set_defaults(run=check)


def generate(arguments: argparse.Namespace) -> int:
    """Print config.example.yaml with the server name put in."""
    server_name: ServerName = arguments.server_name
    as_yaml = server_name if _is_plain(server_name) else f'"{server_name}"'
    print(
        _SERVER_NAME_LINE.sub(f"server_name: {as_yaml} ".ljust(_COMMENT_COLUMN) + "#", example_text()), end=""
    )
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Validate the configuration, environment included; ConfigErrors says what is wrong."""
    config = config_of(arguments)
    for key in settings_without_effect(config):
        print(f"warning: {key} is set, but nothing reads it yet", file=sys.stderr)
    print(
        f"{config_path(arguments) or 'the default configuration'} is valid (server name {config.server_name})"
    )
    return 0


def example_text() -> str:
    """The text of config.example.yaml: in the package once it is installed, in a checkout beside it."""
    packaged = resources.files("homeserver") / EXAMPLE
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[2] / EXAMPLE).read_text("utf-8")


def _is_plain(text: str) -> bool:
    """Whether YAML takes a text without quotes for just that text."""
    try:
        return bool(yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False


def _server_name(text: str) -> ServerName:
    try:
        return parse_server_name(text)
    except InvalidIdentifier as error:
        raise argparse.ArgumentTypeError(f"{error}; write a name as example.org, without https://") from None
