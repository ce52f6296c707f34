"""Settings from a YAML file, environment variables and secret files, checked by a pydantic model.

The model says which keys there are, of which type, and which are secrets; nothing here knows one of them.
Whatever is wrong is told at once, with the place it came from. No value of a secret is ever told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from homeserver.errors import LairError
from homeserver.settings_model import (
    FILE_SUFFIX,
    Location,
    dotted,
    field_at,
    fields_of,
    is_optional,
    is_secret,
    is_text,
    locate,
    nearest_key,
    section_of,
)

Model = TypeVar("Model", bound=BaseModel)
_MAX_SHOWN: Final = 60
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class ConfigError:
    """One thing that is wrong: the key's dotted path, its value's problem, a mend, and where it stands."""

    key: str
    problem: str
    mend: str
    source: str

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"{self.key or 'configuration'}{place}: {self.problem}; {self.mend}"


class ConfigErrors(LairError):
    """A configuration that cannot be used, with everything that is wrong in it."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        super().__init__(
            "\n".join([f"{count} in the configuration:", *(f"  {error}" for error in self.errors)])
        )


def bad_value(problem: str, mend: str, *, key: str | None = None) -> PydanticCustomError:
    """What a validator of the model raises; a check of several fields names the `key` that it is about."""
    return PydanticCustomError("bad_value", "{problem}", {"problem": problem, "mend": mend, "key": key})


def read_settings(model: type[Model], path: Path | None, environ: Mapping[str, str], *, prefix: str) -> Model:
    """The settings of a YAML file, overridden by environment variables `<prefix>SECTION__KEY`.

    Validators find the folder from which relative paths count as `info.context["folder"]`: the file's, or the
    working folder where there is no file. Raises ConfigErrors.
    """
    folder = Path.cwd() if path is None else path.parent.absolute()
    sources = _Sources(model, folder, path)
    if path is not None:
        sources.read_file(path)
    sources.read_environment(environ, prefix)
    sources.read_secret_files(model, sources.data, ())
    return sources.validate(model)


@dataclass
class _Sources:
    """What has been read so far: the data, where each value of it was written, and what was wrong."""

    model: type[BaseModel]
    folder: Path
    path: Path | None
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Location, str] = field(default_factory=dict)
    from_environment: set[Location] = field(default_factory=set)
    errors: list[ConfigError] = field(default_factory=list)

    def read_file(self, path: Path) -> None:
        """Read the YAML file; raises ConfigErrors at once where its text cannot be relied on."""
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise ConfigErrors(
                [_file_error(path, "does not exist", "check the path given to --config")]
            ) from None
        except OSError as error:
            mend = "check that it is a file and may be read by this user"
            raise ConfigErrors([_file_error(path, f"cannot be read: {error.strerror}", mend)]) from None
        except UnicodeDecodeError as error:
            mend = "save it in that encoding"
            raise ConfigErrors([_file_error(path, f"is not UTF-8 at byte {error.start}", mend)]) from None
        try:
            data = self._parse(text, path)
        except yaml.MarkedYAMLError as error:
            line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = f"is not YAML{line}: {error.problem}"
            raise ConfigErrors([_file_error(path, problem, "mend that line or the one before")]) from None
        except (yaml.YAMLError, ValueError):
            mend = "look for control characters and impossible dates"
            raise ConfigErrors([_file_error(path, "holds what YAML cannot read", mend)]) from None
        if self.errors:
            raise ConfigErrors(self.errors)
        if data is not None and not isinstance(data, dict):
            mend = "write lines of the form key: value"
            raise ConfigErrors([_file_error(path, "is not a list of settings", mend)])
        self.data = data or {}

    def _parse(self, text: str, path: Path) -> Any:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            self._check_node(node, (), path, set())
            return None if self.errors else loader.construct_document(node)
        finally:
            loader.dispose()

    def _check_node(self, node: yaml.Node, location: Location, path: Path, seen: set[int]) -> None:
        """Refuse keys that are given twice or are no text, and note the line of each value."""
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.places[(*location, index)] = _place(path, item)
                self._check_node(item, (*location, index), path, seen)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key_node, value_node in node.value:
                if key_node.tag == _MERGE_TAG:
                    continue
                key, line = str(key_node.value), key_node.start_mark.line + 1
                here = (*location, key)
                if key_node.tag != _TEXT_TAG:
                    mend = "put the key in quotes, or take it out"
                    self._add(location, f"line {line} has a key that is no text", mend)
                elif key in lines:
                    problem = f"is given twice, on line {lines[key]} and on line {line}"
                    self._add(here, problem, "keep one of the two")
                else:
                    lines[key] = line
                    self.places[here] = _place(path, key_node)
                    self._check_node(value_node, here, path, seen)

    def read_environment(self, environ: Mapping[str, str], prefix: str) -> None:
        """Override what the file says by the environment; variables that name no key are none of ours."""
        for name in sorted(environ, key=lambda name: (name.count("__"), name)):
            if not name.startswith(prefix):
                continue
            location = locate(self.model, name.removeprefix(prefix).lower().split("__"))
            if location is None:
                continue
            self.places[location] = name
            value: Any = environ[name]
            info = field_at(self.model, location)
            if info is None or is_text(info.annotation):  # None: <secret>_file
                value = None if value == "" and (info is None or is_optional(info.annotation)) else value
            else:
                try:
                    value = yaml.safe_load(value)
                except (yaml.YAMLError, ValueError):
                    self._add(location, "the value is not YAML", "write it as in the configuration file")
                    continue
            self.from_environment.add(location)
            self._put(self.model, self.data, location, (), value)

    def _put(
        self, model: type[BaseModel], target: dict[str, Any], rest: Location, passed: Location, value: Any
    ) -> None:
        key = str(rest[0])
        if len(rest) == 1:
            target[key] = value
            twin = key.removesuffix(FILE_SUFFIX) if key.endswith(FILE_SUFFIX) else key + FILE_SUFFIX
            if (*passed, twin) not in self.from_environment and (*passed, twin) in self.places:
                target.pop(twin, None)  # the environment overrides both forms in which the file can say it
            return
        info = dict(fields_of(model))[key]
        section = section_of(info.annotation)
        if section is None:
            raise AssertionError(f"{key} has no keys of its own")
        inner: Any
        if isinstance(rest[1], int):
            if target.get(key) is None:
                default = info.get_default(call_default_factory=True, validated_data={})
                target[key] = [item.model_dump(by_alias=True) for item in default]
            items, index = target[key], rest[1]
            if not isinstance(items, list) or index > len(items):
                self._add(
                    (*passed, *rest), f"there is no entry {index - 1} before it", "number the entries from 0"
                )
                return
            if index == len(items):
                items.append({})
            inner, passed, rest = items[index], (*passed, key, index), rest[2:]
        else:
            if target.get(key) is None:
                target[key] = {}
            inner, passed, rest = target[key], (*passed, key), rest[1:]
        if isinstance(inner, dict):  # otherwise validation says what is wrong
            self._put(section, inner, rest, passed, value)

    def read_secret_files(self, model: type[BaseModel], values: dict[str, Any], location: Location) -> None:
        """Replace each `<key>_file` by the secret `<key>`: the file's text without the space around it."""
        for key, info in fields_of(model):
            section = section_of(info.annotation)
            value = values.get(key)
            if section is not None and isinstance(value, dict):
                self.read_secret_files(section, value, (*location, key))
            elif section is not None and isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        self.read_secret_files(section, item, (*location, key, index))
            elif is_secret(info):
                self._read_secret_file(values, key, location)

    def _read_secret_file(self, values: dict[str, Any], key: str, location: Location) -> None:
        file_key = key + FILE_SUFFIX
        name = values.pop(file_key, None)
        here = (*location, file_key)
        if name is None:
            return
        if not isinstance(name, str) or not name or "\0" in name:
            self._add(here, "is not the path of a file", "write the path as text")
        elif values.get(key) is not None:
            self._add(here, f"is given beside {dotted((*location, key))}", "keep one of the two")
        else:
            path = self.folder / name
            try:
                text = path.read_bytes().decode().strip()
            except OSError as error:
                self._add(
                    here, f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
                )
            except UnicodeDecodeError:
                self._add(here, f"{path} is not UTF-8 text", "check that it is the right file")
            else:
                if text:
                    values[key] = text
                    self.places[(*location, key)] = str(path)
                    return
                self._add(here, f"{path} is empty", "write the secret into it")
        values.pop(key, None)

    def validate(self, model: type[Model]) -> Model:
        """Check everything that has been read. Raises ConfigErrors."""
        try:
            settings = model.model_validate(self.data, context={"folder": self.folder})
        except ValidationError as error:
            known = {known.key for known in self.errors}
            for details in error.errors(include_url=False):
                found = self._explain(details)
                if found.key not in known and found.key + FILE_SUFFIX not in known:
                    self.errors.append(found)
        if self.errors:
            raise ConfigErrors(self.errors)
        return settings

    def _explain(self, details: ErrorDetails) -> ConfigError:
        location, kind, context = details["loc"], details["type"], details.get("ctx", {})
        info = field_at(self.model, location)
        shown = "the value" if info is None or is_secret(info) else _shown(details["input"])
        key = dotted(location)
        match kind:
            case "bad_value":
                problem, mend = context["problem"], context["mend"]
                if context["key"] is not None:
                    key, location = context["key"], tuple(context["key"].split("."))
            case "extra_forbidden":
                nearest = nearest_key(self.model, location)
                problem = "is not a setting"
                mend = (
                    f"did you mean {nearest}?"
                    if nearest
                    else "take it out; config generate prints every setting"
                )
            case "missing":
                problem, mend = "is not given", "add it, or take out the section that needs it"
            case "model_type" | "model_attributes_type" | "dict_type":
                problem, mend = (
                    "is not a section",
                    "write its settings below it as lines of the form key: value",
                )
            case "tuple_type":
                problem, mend = "is not a list", "write [one, two], or one entry a line, each after a dash"
            case "string_type":
                problem, mend = f"{shown} is not text", "put it in quotes"
            case "bool_type":
                problem, mend = f"{shown} is neither true nor false", "write true or false, without quotes"
            case "int_type" | "float_type":
                problem, mend = f"{shown} is not a number", "write a number, without quotes"
                if kind == "int_type":
                    problem, mend = f"{shown} is not a whole number", "write a whole number, without quotes"
            case "finite_number":
                problem, mend = f"{shown} is not finite", "write a number with an end"
            case "greater_than_equal" | "greater_than":
                least = "at least" if kind == "greater_than_equal" else "more than"
                problem = f"{shown} is too small"
                mend = f"give {least} {context.get('ge', context.get('gt'))}"
            case "less_than_equal":
                problem, mend = f"{shown} is too large", f"give at most {context['le']}"
            case "literal_error":
                problem, mend = f"{shown} is not one of the choices", f"choose {context['expected']}"
            case _:
                problem, mend = details["msg"], "compare it with config.example.yaml"
        return ConfigError(key, problem, mend, self._place_of(location))

    def _add(self, location: Location, problem: str, mend: str) -> None:
        self.errors.append(ConfigError(dotted(location), problem, mend, self._place_of(location)))

    def _place_of(self, location: Location) -> str:
        """Where a value, or else the nearest section around it, is written."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return str(self.path) if self.path is not None else ""


def _file_error(path: Path, problem: str, mend: str) -> ConfigError:
    return ConfigError(str(path), problem, mend, "")


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _shown(value: object) -> str:
    """A value as its file has it, shortened; of lists and sections only that they are one."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | None) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
