"""The virtual environment that Synapse is installed in, made when the tests first need it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKED: Final = ROOT / "requirements-synapse.lock"
FOLDER: Final = ROOT / ".venv" / "synapse"
INSTALL_LIMIT_S: Final = 900.0


def synapse_python() -> Path:
    """The Python that has Synapse. It is made anew where another one made it, or for other versions."""
    python, stamp = FOLDER / "bin" / "python", FOLDER / "stamp"
    wanted = sha256(LOCKED.read_bytes() + sys.version.encode()).hexdigest()
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".mutex").open("w") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
            subprocess.run(
                [
                    *(str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"),
                    *("install", "--require-hashes", "--only-binary=:all:", "-r", str(LOCKED)),
                ],
                check=True,
                timeout=INSTALL_LIMIT_S,
            )
            stamp.write_text(wanted)
    return python
