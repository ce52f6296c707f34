"""Rooms of other projects whose resolved state is known: documents as `lair-chat room resolve` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homeserver.protocol.room_versions import ROOM_VERSIONS

FOLDER = Path(__file__).parent / "vectors"


def _cases() -> Iterator[Any]:
    for file in sorted(FOLDER.glob("*.json")):
        for case in json.loads(file.read_text("utf-8"))["cases"]:
            for version in case["versions"]:
                if version in ROOM_VERSIONS:
                    document = {"room_version": version, "events": case["events"]}
                    if "state_sets" in case:
                        document["state_sets"] = case["state_sets"]
                    name = f"{file.stem}: {case['name']}, version {version}"
                    yield pytest.param(document, case["expected"], id=name)


for_each_vector = pytest.mark.parametrize(("document", "expected"), list(_cases()))
"""Run a test that takes a `document` and the event IDs that are `expected`, in each version that we speak."""
