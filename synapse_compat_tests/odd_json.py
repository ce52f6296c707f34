"""JSON that nobody expects where it stands."""

from __future__ import annotations

from random import Random
from typing import Any, Final

_ANYWHERE: Final = (
    *(None, True, False, 0, 1, -1, 50, 100, 2**53 - 1, -(2**53) + 1),
    *("", "0", "50", " 50\n", "+50", "-50", "050", "5_0", "٥٠", "1e2", "50.0", "0x32", "nan", "\0", "\x7f"),
    *(
        "é",
        "e\u0301",
        "\u2028",
        "\ufeff",
        "\U0010ffff",
        "@alice:one.test",
        "public",
        "join",
        "$event:one.test",
    ),
)
_BEFORE_VERSION_6: Final = (
    *(50.0, 49.9, -0.5, 0.0, -0.0, 1e15, 1e16, 1e22, 1e-7, 5e-324, 1.7976931348623157e308, 0.1),
    *(2**53, -(2**53), 2**63, 2**64, -(2**63) - 1, 10**30),
)
_KEYS: Final = ("membership", "users", "signed", "", "é", "\U00010000", "\uffff", "a.b", '"\\')


def odd_value(random: Random, version: int) -> Any:
    """A value of any type that an event of this room version may hold."""
    match random.randrange(10):
        case 0:
            return [odd_value(random, version) for _ in range(random.randrange(3))]
        case 1:
            return {random.choice(_KEYS): odd_value(random, version) for _ in range(random.randrange(3))}
        case 2 | 3 if version < 6:
            return random.choice(_BEFORE_VERSION_6)
        case _:
            return random.choice(_ANYWHERE)
