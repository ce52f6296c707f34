"""The program lair-chat, which is also `python -m homeserver`.

Exit codes: 0 done; 1 failed, with a text on standard error; 2 wrong usage, configuration or document;
3 the answer on a document cannot be written; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from homeserver.commands import config, event, migrate, room, routes, serve, token, user
from homeserver.commands.command_parser import CommandParser, Run
from homeserver.errors import LairError
from homeserver.settings_source import ConfigErrors

COMMAND_GROUPS = (serve, config, migrate, user, token, room, event, routes)
"""The modules of homeserver.commands, in the order of --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code."""
    arguments = build_parser().parse_args(argv)
    run: Run = arguments.run
    try:
        return run(arguments)
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return 2
    except LairError as error:
        print(f"lair-chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> CommandParser:
    """The parser of all commands; each sets `run`, what it does."""
    parser = CommandParser(prog="lair-chat", description="Lair Chat, a Matrix homeserver.")
    commands = parser.add_group()
    for group in COMMAND_GROUPS:
        group.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
