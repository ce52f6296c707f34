"""From method and path to an endpoint: a tree of path segments, as quick with many routes as with few."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes

from homeserver.errors import InvalidParam, MethodNotAllowed, Unrecognized

T = TypeVar("T")

_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CACHED_SEGMENTS: Final = 4096
_LONGEST_CACHED: Final = 512


class UnknownMethod(MethodNotAllowed):
    """A path that has endpoints, but none for this method; `allowed` are the methods it has."""

    def __init__(self, allowed: list[str]) -> None:
        super().__init__("Unrecognized request: this path has no such method")
        self.allowed = allowed


class _Node(Generic[T]):
    __slots__ = ("parameter", "static", "tail", "targets")

    def __init__(self) -> None:
        self.static: dict[str, _Node[T]] = {}
        self.parameter: _Node[T] | None = None
        self.tail: _Node[T] | None = None
        self.targets: dict[str, tuple[T, tuple[str, ...]]] = {}


class Router(Generic[T]):
    """Finds what was registered for a method and a path.

    A template's segment is fixed text, `{name}` for one segment that is not empty, or, as the last,
    `{name*}` for all that follows. Fixed text goes before a parameter.
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, method: str, template: str, target: T) -> None:
        """Register a target. Raises ValueError where a method and path already have one."""
        node = self._root
        for segment in template.split("/")[1:]:
            if not segment.startswith("{"):
                child = node.static.setdefault(segment, _Node())
            elif segment.endswith("*}"):
                child = node.tail = node.tail or _Node()
            else:
                child = node.parameter = node.parameter or _Node()
            node = child
        if method in node.targets:
            raise ValueError(f"{method} {template} is registered twice")
        node.targets[method] = (target, path_parameter_names(template))

    def find(self, method: str, raw_path: str) -> tuple[T, dict[str, str]]:
        """The target of a method and a percent-encoded path, and the path's decoded parameters by name.

        HEAD is answered as GET. Raises Unrecognized, UnknownMethod, and InvalidParam for a parameter that is
        not percent-encoded UTF-8.
        """
        if method == "HEAD":
            method = "GET"
        segments = raw_path.split("/")
        values: list[str] = []
        found = self._find_straight(segments, method, values)
        if found is None:
            values.clear()
            found = _search(self._root, segments, 1, method, values)
        if found is None:
            allowed = sorted(_methods(self._root, segments, 1))
            if allowed:
                raise UnknownMethod(allowed)
            raise Unrecognized("Unrecognized request: no such endpoint")
        target, names = found
        return target, {name: decode_segment(value) for name, value in zip(names, values, strict=True)}

    def _find_straight(
        self, segments: list[str], method: str, values: list[str]
    ) -> tuple[T, tuple[str, ...]] | None:
        """What `_search` tries first, without a way back: the answer for nearly every request."""
        node = self._root
        for segment in segments[1:]:
            child = node.static.get(segment)
            if child is None:
                child = node.parameter
                if child is None or not segment:
                    return None
                values.append(segment)
            node = child
        return node.targets.get(method)


def path_parameter_names(template: str) -> tuple[str, ...]:
    """The names of a path template's parameters, in their order."""
    return tuple(part[1:-1].removesuffix("*") for part in template.split("/") if part.startswith("{"))


def decode_segment(segment: str) -> str:
    """The text of one percent-encoded path segment.

    Raises InvalidParam for broken escapes, bad UTF-8 and U+0000.
    """
    if "%" not in segment and segment.isascii():
        return segment
    return _cached_decode(segment) if len(segment) <= _LONGEST_CACHED else _decode(segment)


def _decode(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError:
        raise InvalidParam("The path is not UTF-8") from None
    if "\0" in text or _BROKEN_ESCAPE.search(segment):
        raise InvalidParam("The path is not percent-encoded text")
    return text


_cached_decode = lru_cache(_CACHED_SEGMENTS)(_decode)


def _search(
    node: _Node[T], segments: list[str], index: int, method: str, values: list[str]
) -> tuple[T, tuple[str, ...]] | None:
    if index == len(segments):
        return node.targets.get(method)
    segment = segments[index]
    child = node.static.get(segment)
    if child is not None and (found := _search(child, segments, index + 1, method, values)) is not None:
        return found
    if segment and node.parameter is not None:
        values.append(segment)
        if (found := _search(node.parameter, segments, index + 1, method, values)) is not None:
            return found
        values.pop()
    if node.tail is not None and (found := node.tail.targets.get(method)) is not None:
        values.append("/".join(segments[index:]))
        return found
    return None


def _methods(node: _Node[T], segments: list[str], index: int) -> set[str]:
    if index == len(segments):
        return set(node.targets)
    segment, methods = segments[index], set[str]()
    if segment in node.static:
        methods |= _methods(node.static[segment], segments, index + 1)
    if segment and node.parameter is not None:
        methods |= _methods(node.parameter, segments, index + 1)
    if node.tail is not None:
        methods |= set(node.tail.targets)
    return methods
