"""What commands share that judge a document: FILE or standard input, and exit code 2 for one that is bad."""

from __future__ import annotations

import argparse
import os
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
    """The exit code of a function that prints what it makes of the document.

    It is 2 where the document cannot be read, or says nothing, and 3 where the answer cannot be written.
    """
    name: str = "standard input" if arguments.file == "-" else arguments.file
    try:
        data = sys.stdin.buffer.read() if arguments.file == "-" else Path(name).read_bytes()
    except OSError as error:
        print(f"lair-chat: {name} cannot be read ({error.strerror})", file=sys.stderr)
        return 2
    try:
        code = judge(parse_document(data))
        print(end="", flush=True)
    except BadDocument as error:
        print(f"lair-chat: {name}: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"lair-chat: the answer cannot be written ({error.strerror})", file=sys.stderr)
        # At the end Python flushes what is left, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    return code


def printable(text: str) -> str:
    """A text without control characters and others that a terminal may not be able to show.

    What stands in events was written by strangers.
    """
    return text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
