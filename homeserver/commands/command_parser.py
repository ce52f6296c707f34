"""The frame of every command: --config in any place, and what a command finds in its arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from homeserver.config import Config, load_config

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction["CommandParser"]
else:
    Subparsers = Any

Run: TypeAlias = Callable[[argparse.Namespace], int]
"""What a command does: takes the arguments, returns the exit code; a LairError is told by its text alone."""


class CommandParser(argparse.ArgumentParser):
    """A parser that takes --config, as do all parsers of commands below it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
        self.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            default=argparse.SUPPRESS,  # so that a parser below does not undo what one above has read
            help="the configuration (without it: the defaults, data in ./data)",
        )

    def add_group(self) -> Subparsers:
        """Make this the parser of a group of commands, one of which has to be named."""
        return self.add_subparsers(metavar="COMMAND", required=True)


def config_path(arguments: argparse.Namespace) -> Path | None:
    """The FILE of --config, None where it was not given."""
    path: Path | None = getattr(arguments, "config", None)
    return path


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that a command runs with. Raises ConfigErrors."""
    return load_config(config_path(arguments), os.environ)
