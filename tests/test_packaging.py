"""What is installed: the locked dependencies, and the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = tuple(f"requirements{part}.lock" for part in ("", "-build", "-test", "-synapse"))


@cache
def pyproject() -> dict[str, Any]:
    """The content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted(lock: str) -> list[Requirement]:
    """What pyproject.toml asks of a lock file."""
    project = pyproject()["project"]
    texts: list[str] = {
        "requirements.lock": project["dependencies"],
        "requirements-build.lock": pyproject()["dependency-groups"]["build"],
        "requirements-test.lock": project["dependencies"] + project["optional-dependencies"]["test"],
        "requirements-synapse.lock": pyproject()["dependency-groups"]["synapse"],
    }[lock]
    return [Requirement(text) for text in texts]


def locked(lock: str) -> dict[str, tuple[Requirement, int]]:
    """Each requirement of a lock file by its name, with the number of its hashes."""
    entries: dict[str, tuple[Requirement, int]] = {}
    for entry in (ROOT / lock).read_text().replace("\\\n", " ").splitlines():
        hashes = re.findall(r" --hash=sha256:[0-9a-f]{64}", entry)
        requirement = Requirement(re.sub(r" --hash=\S+", "", entry))
        assert requirement.name not in entries
        entries[requirement.name] = (requirement, len(hashes))
    return entries


@pytest.mark.invariant("SEC-SUPPLY-1")
@pytest.mark.parametrize("lock", LOCKS)
def test_sec_supply_1_a_lock_file_names_one_version_and_its_hashes(lock: str) -> None:
    for requirement, hashes in locked(lock).values():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes, requirement


@pytest.mark.invariant("SEC-SUPPLY-1")
@pytest.mark.parametrize("lock", LOCKS)
def test_sec_supply_1_a_lock_file_names_no_address_and_no_path(lock: str) -> None:
    text = (ROOT / lock).read_text()

    assert re.search(r"://|^\s*-[^-]|--(?!hash=)|^#|[/@]", text, re.MULTILINE) is None


@pytest.mark.invariant("SEC-SUPPLY-1")
@pytest.mark.parametrize("lock", LOCKS)
def test_sec_supply_1_a_lock_file_holds_what_the_project_asks_for(lock: str) -> None:
    found = locked(lock)

    for requirement in wanted(lock):
        [(version, _)] = [entry for name, entry in found.items() if name == requirement.name.lower()]
        assert requirement.specifier.contains(str(version.specifier).removeprefix("==")), requirement


@pytest.mark.invariant("SEC-SUPPLY-1")
def test_sec_supply_1_every_dependency_has_a_least_version() -> None:
    for lock in LOCKS:
        for requirement in wanted(lock):
            assert any(specifier.operator == ">=" for specifier in requirement.specifier), requirement


def test_the_lock_files_agree() -> None:
    everything = locked("requirements-test.lock")

    assert {
        name: entry for name, entry in everything.items() if name in locked("requirements.lock")
    } == locked("requirements.lock")
    for name, entry in locked("requirements-build.lock").items():
        assert everything.get(name, entry) == entry


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_server_is_locked_for_every_platform(python: str, platform: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "implementation_name": "cpython",
    }

    def applies(marker: Marker | None) -> bool:
        return marker is None or marker.evaluate(environment)

    found = {name for name, (entry, _) in locked("requirements.lock").items() if applies(entry.marker)}
    assert {entry.name.lower() for entry in wanted("requirements.lock") if applies(entry.marker)} <= found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel, built twice."""
    built: list[Path] = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
        built += folder.iterdir()
    return built


@pytest.mark.invariant("SEC-SUPPLY-1")
def test_sec_supply_1_a_build_can_be_repeated(wheels: list[Path]) -> None:
    first, second = wheels

    assert first.name == second.name == f"lair_chat-{pyproject()['project']['version']}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()


def test_the_wheel_holds_the_packages_with_their_data(wheels: list[Path]) -> None:
    with ZipFile(wheels[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        example = wheel.read("homeserver/config.example.yaml")
    packages = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert names == sources | {"homeserver/config.example.yaml"}
    assert example == (ROOT / "config.example.yaml").read_bytes()
    assert any(re.fullmatch(r"storage/migrations/\d{4}_\w+\.sql", name) for name in names)
    assert any(name.startswith("storage/compression/") and name.endswith(".zdict") for name in names)
