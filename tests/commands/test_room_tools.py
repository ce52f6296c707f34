"""What docs/room-tools.md shows is so."""

from __future__ import annotations

import re
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from homeserver.__main__ import main

TEXT = (Path(__file__).parents[2] / "docs" / "room-tools.md").read_text("utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```\n\n```\n\$ lair-chat (\w+ \w+) \S+\n(.*?)```", TEXT, re.DOTALL)


def test_there_are_examples() -> None:
    assert [command for _, command, _ in EXAMPLES] == ["room resolve", "event check"]


@pytest.mark.parametrize(("document", "command", "printed"), EXAMPLES)
def test_an_example_prints_what_it_shows(
    document: str,
    command: str,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(document.encode())))
    main([*command.split(), "-"])
    shown = capsys.readouterr()

    assert shown.err + shown.out == printed
