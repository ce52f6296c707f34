"""Random JSON values, allowed in events and not."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from homeserver.protocol.canonical_json import MAX_INTEGER
from homeserver.protocol.strict_json import JsonObject

_TEXTS: Final = st.text(max_size=8) | st.sampled_from(
    [
        "",
        "\0",
        "\x1f\x7f\x80",
        '"\\/',
        "\u2028",
        "\ufeff",
        "\uffff",
        "\U00010000",
        "\U0010ffff",
        "é",
        "e\u0301",
    ]
)


def _values(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


def canonical_values() -> st.SearchStrategy[Any]:
    """Values that may stand in an event."""
    integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
    return _values(st.none() | st.booleans() | integers | _TEXTS, _TEXTS)


def canonical_objects() -> st.SearchStrategy[JsonObject]:
    """Objects that may be an event's content."""
    return st.dictionaries(_TEXTS, canonical_values(), max_size=5)


def any_values() -> st.SearchStrategy[Any]:
    """Values as any JSON parser may make them: also floats, huge integers and halves of surrogate pairs."""
    texts = _TEXTS | st.sampled_from(["\ud83d", "\udc00", "$x", "@a:b", "!a:b", "$" + "A" * 43, "x" * 256])
    numbers = st.integers() | st.sampled_from([2**53, -(2**53), 2**64, 10**400]) | st.floats()
    return _values(st.none() | st.booleans() | numbers | texts, texts)
