"""A room, and questions about it that two cores answer: what is generated, compared, made small and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from homeserver.protocol.strict_json import JsonObject

Answer: TypeAlias = dict[str, Any]
"""What a core says: of each event its hashes and forms, verdicts, and resolved states."""

State: TypeAlias = Sequence[str]
"""A state of a room as the IDs of its events."""
Merge: TypeAlias = Sequence[State]
"""The states that one resolution brings together."""

KEPT: Final = Path(__file__).with_name("core_cases")


@dataclass(frozen=True)
class StateCheck:
    """Whether a state allows an event."""

    event: str
    state: State


@dataclass(frozen=True)
class Case:
    """A room of one version.

    Of each event the cores say what it is; the lists after them say what else is asked.
    """

    room_version: str
    events: Sequence[JsonObject]
    """PDUs, each after those that it refers to."""
    rejected: Sequence[str] = ()
    by_auth_events: Sequence[str] = ()
    """Events to be judged by what they name as their auth events."""
    by_state: Sequence[StateCheck] = ()
    resolutions: Sequence[Merge] = ()

    def to_json(self) -> JsonObject:
        """The question that `synapse_core.py` answers."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: JsonObject) -> Case:
        """The case of a file."""
        by_state = [StateCheck(**check) for check in document.get("by_state", ())]
        names = ("room_version", "events", "rejected", "by_auth_events", "resolutions")
        return cls(by_state=by_state, **{name: document[name] for name in names if name in document})


@dataclass(frozen=True)
class KeptCase:
    """A case that once differed, or that shows where Synapse deviates from the specification."""

    name: str
    about: str
    deviations: list[str]
    """The deviations of Synapse's that the case shows; none where both cores say the same."""
    case: Case


def kept_cases() -> list[KeptCase]:
    """The cases of the folder `core_cases`, by name."""
    return [_kept_case(path) for path in sorted(KEPT.glob("*.json"))]


def keep(kept: KeptCase) -> Path:
    """Write a case into the folder `core_cases`."""
    path = KEPT / f"{kept.name}.json"
    document = {"about": kept.about, "deviations": kept.deviations, "case": kept.case.to_json()}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    return path


def _kept_case(path: Path) -> KeptCase:
    document = json.loads(path.read_text(encoding="utf-8"))
    return KeptCase(path.stem, document["about"], document["deviations"], Case.from_json(document["case"]))
