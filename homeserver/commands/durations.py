"""Spans of time as an operator writes them: 90s, 30m, 12h, 7d, 2w."""

from __future__ import annotations

import argparse
import re
from typing import Final

_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def duration_ms(text: str) -> int:
    """The milliseconds of such a text, as a type of an argument."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no span of time; write a number and one of s m h d w: 7d"
        )
    return int(match[1]) * _UNIT_MS[match[2]]
