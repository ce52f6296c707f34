"""The program lair-chat: its frame, and its commands about the configuration."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import homeserver.__main__ as program
from homeserver.__main__ import main
from homeserver.commands.command_parser import Subparsers, config_of, config_path
from homeserver.commands.config import example_text
from homeserver.errors import LairError

EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the variables of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith("LAIR_"):
            monkeypatch.delenv(name)


class Kitchen:
    """A group of commands, as a module of homeserver.commands is one."""

    def __init__(self, fails_with: BaseException | None = None) -> None:
        self.fails_with = fails_with
        self.config_paths: list[Path | None] = []

    def add_to(self, commands: Subparsers) -> None:
        """Add `tea make NAME`."""
        make = commands.add_parser("tea").add_group().add_parser("make")
        make.add_argument("name")
        make.set_defaults(run=self.run)

    def run(self, arguments: argparse.Namespace) -> int:
        """Make tea."""
        self.config_paths.append(config_path(arguments))
        if self.fails_with is not None:
            raise self.fails_with
        config_of(arguments)
        return 0


def use(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    """Make a group the only one of the program."""
    monkeypatch.setattr(program, "COMMAND_GROUPS", (kitchen,))
    return kitchen


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "FILE", "tea", "make", "green"],
        ["tea", "--config", "FILE", "make", "green"],
        ["tea", "make", "--config", "FILE", "green"],
        ["tea", "make", "green", "--config=FILE"],
        ["--config", "other", "tea", "make", "green", "--config", "FILE"],
    ],
)
def test_the_configuration_is_named_in_any_place(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = use(Kitchen(), monkeypatch)
    path = tmp_path / "lair.yaml"
    path.write_text("")

    assert main([argument.replace("FILE", str(path)) for argument in arguments]) == 0
    assert kitchen.config_paths == [path]


def test_a_command_needs_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen = use(Kitchen(), monkeypatch)

    assert main(["tea", "make", "green"]) == 0
    assert kitchen.config_paths == [None]


def test_a_failure_is_one_text_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Kitchen(LairError("the kettle is empty; fill it")), monkeypatch)

    assert main(["tea", "make", "green"]) == 1
    assert capsys.readouterr() == ("", "lair-chat: the kettle is empty; fill it\n")


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Kitchen(KeyboardInterrupt()), monkeypatch)

    assert main(["tea", "make", "green"]) == 130


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tea"],
        ["coffee"],
        ["tea", "make"],
        ["tea", "make", "green", "--conf", "x"],
        ["tea", "make", "green", "--config"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Kitchen(), monkeypatch)

    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lair-chat")


def test_generate_prints_the_example_with_the_server_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "generate", "--server-name", "example.org"]) == 0
    printed = capsys.readouterr().out.splitlines()
    example = EXAMPLE.read_text().splitlines()
    different = [index for index, line in enumerate(example) if printed[index] != line]

    assert [printed[index].split("#")[0].strip() for index in different] == ["server_name: example.org"]
    assert len(printed) == len(example)
    assert example_text() == EXAMPLE.read_text()


@pytest.mark.parametrize(
    "name", ["1.5", "1:20", "[::1]:8448", "localhost:8448", "0x1", "null", "no", "a" * 60 + ".org"]
)
def test_a_generated_configuration_is_valid(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["config", "generate", "--server-name", name])
    path = tmp_path / "lair.yaml"
    path.write_text(capsys.readouterr().out)

    assert yaml.safe_load(path.read_text())["server_name"] == name
    assert main(["config", "check", "--config", str(path)]) == 0
    assert capsys.readouterr() == (f"{path} is valid (server name {name})\n", "")


def test_generate_refuses_what_is_not_a_server_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["config", "generate", "--server-name", "https://example.org"])

    assert raised.value.code == 2
    assert "'https://example.org' is not a server name" in capsys.readouterr().err


def test_check_names_every_error_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lair.yaml"
    path.write_text("databse: {}\nprocesses: none\n")

    assert main(["config", "check", "--config", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "2 errors in the configuration:",
        f'  processes ({path}, line 2): "none" is not a whole number; write a whole number, without quotes',
        f"  databse ({path}, line 1): is not a setting; did you mean database?",
    ]


def test_check_names_settings_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeserver.config.NOT_BUILT", ("presence",))
    path = tmp_path / "lair.yaml"
    path.write_text("presence: {enabled: false}\n")

    assert main(["config", "check", "--config", str(path)]) == 0
    assert capsys.readouterr().err == "warning: presence.enabled is set, but nothing reads it yet\n"


def test_check_takes_the_environment_into_account(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAIR_PROCESSES", "0")

    assert main(["config", "check"]) == 2
    assert "LAIR_PROCESSES" in capsys.readouterr().err


def test_the_module_is_the_program_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "homeserver", "config", "generate", "--server-name", "lair.localhost"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, EXAMPLE.read_bytes(), b"")
    assert list(tmp_path.iterdir()) == []
