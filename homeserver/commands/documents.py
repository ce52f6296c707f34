"""What commands share that judge a document: FILE or standard input, and exit code 2 for one that is bad."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from homeserver.commands.command_parser import CommandParser
from homeserver.protocol.document_json import parse_document
from homeserver.protocol.errors import BadDocument
from homeserver.protocol.strict_json import JsonObject


def add_document(parser: CommandParser) -> None:
    """Add the argument FILE."""
    parser.add_argument("file", metavar="FILE", help="a JSON document; - is standard input")


def judge_document(arguments: argparse.Namespace, judge: Callable[[JsonObject], int]) -> int:
    """The exit code of a function of the document; 2 where that cannot be read, or says nothing."""
    name: str = arguments.file
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return judge(parse_document(data))
    except OSError as error:
        print(f"lair-chat: {name} cannot be read ({error.strerror})", file=sys.stderr)
    except BadDocument as error:
        name = "standard input" if name == "-" else name
        print(f"lair-chat: {name}: {printable(str(error))}", file=sys.stderr)
    return 2


def printable(text: str) -> str:
    """A text without control characters and others that a terminal may not be able to show.

    What stands in events was written by strangers.
    """
    return text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
