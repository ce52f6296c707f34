"""A process of Synapse's Python that answers questions: `synapse_core.py` at the other end of two pipes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from synapse_compat_tests.core_cases import Answer, Case

_PROGRAM: Final = Path(__file__).with_name("synapse_core.py")
_END_LIMIT_S: Final = 10.0


class SynapseCore:
    """Synapse's core. One question at a time is under way, while which we can think about it as well."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-I", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def ask(self, case: Case) -> None:
        """Put a question."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case.to_json()) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Answer:
        """The answer to the question that was put last."""
        assert self._process.stdout is not None
        answer: Answer = json.loads(self._process.stdout.readline())
        return answer
