"""The keys of a pydantic model of settings: which there are, and what kind of value each takes.

A section is a field that is itself a model; a list of sections is a tuple of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Location = tuple[str | int, ...]
"""The keys and list indexes that lead to a value."""

FILE_SUFFIX: Final = "_file"
"""`<key>_file` names a file that holds the secret `<key>`."""


class Secret:
    """Marks a field (`Annotated[str, Secret()]`) whose value is told nowhere and may be given as a file."""


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a model and of its sections, by its dotted path; a list is followed by `[]`."""
    for key, info in fields_of(model):
        yield f"{prefix}{key}", info
        section = section_of(info.annotation)
        if section is not None:
            yield from keys(section, f"{prefix}{key}{'[]' if is_list(info.annotation) else ''}.")


def dotted(location: Location) -> str:
    """A location as errors name it: listeners[0].port."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def fields_of(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The keys of one section, as they are written, with their fields."""
    return [(info.alias or name, info) for name, info in model.model_fields.items()]


def _unwrapped(annotation: Any) -> Any:
    """The type without None and Annotated; of a union of several types the first."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin is Union or origin is UnionType:
            annotation = next(choice for choice in get_args(annotation) if choice is not NoneType)
        else:
            return annotation


def is_optional(annotation: Any) -> bool:
    """Whether null is a value."""
    return NoneType in get_args(annotation)


def is_list(annotation: Any) -> bool:
    """Whether the value is a list, of values or of sections."""
    return get_origin(_unwrapped(annotation)) is tuple


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a section or of the entries of a list of them; None for a plain value."""
    kind = _unwrapped(annotation)
    if get_origin(kind) is tuple:
        kind = _unwrapped(get_args(kind)[0])
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def is_text(annotation: Any) -> bool:
    """Whether a variable's text is the value itself; otherwise it is YAML."""
    kind = _unwrapped(annotation)
    return section_of(annotation) is None and get_origin(kind) is not tuple and kind not in (bool, int, float)


def is_secret(info: FieldInfo) -> bool:
    """Whether the value may be told to nobody."""
    return any(isinstance(mark, Secret) for mark in info.metadata)


def locate(model: type[BaseModel], parts: Sequence[str]) -> Location | None:
    """The place that `section__0__key` in a variable's name means, None where there is no such key."""
    key, rest = parts[0], parts[1:]
    known = dict(fields_of(model))
    if not rest and key.endswith(FILE_SUFFIX) and key not in known:
        info = known.get(key.removesuffix(FILE_SUFFIX))
        return (key,) if info is not None and is_secret(info) else None
    if key not in known:
        return None
    if not rest:
        return (key,)
    section = section_of(known[key].annotation)
    if section is None:
        return None
    if not is_list(known[key].annotation):
        inner = locate(section, rest)
        return None if inner is None else (key, *inner)
    if len(rest) < 2 or not (rest[0].isascii() and rest[0].isdigit()):
        return None
    inner = locate(section, rest[1:])
    return None if inner is None else (key, int(rest[0]), *inner)


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        info = None if current is None else dict(fields_of(current)).get(part)
        current = None if info is None else section_of(info.annotation)
    return current


def field_at(model: type[BaseModel], location: Location) -> FieldInfo | None:
    """The field of a place, for an entry of a list the list's; None where there is none."""
    names = [part for part in location if isinstance(part, str)]
    if not names:
        return None
    section = _model_at(model, tuple(names[:-1]))
    known = {} if section is None else dict(fields_of(section))
    return known.get(names[-1])


def nearest_key(model: type[BaseModel], location: Location) -> str | None:
    """The dotted path of the setting that an unknown key may have meant: one beside it, or one elsewhere."""
    key = str(location[-1]).lower()
    section = _model_at(model, location[:-1])
    beside: list[str] = []
    for name, info in fields_of(section) if section is not None else []:
        beside += [name, name + FILE_SUFFIX] if is_secret(info) else [name]
    for close in difflib.get_close_matches(key, beside, 1):
        return dotted((*location[:-1], close))
    elsewhere: dict[str, str] = {}
    for path, _ in keys(model):
        elsewhere.setdefault(path.rpartition(".")[2], path)
    for close in difflib.get_close_matches(key, elsewhere, 1, 0.7):
        return elsewhere[close]
    return None
