"""The shapes of requests and responses: what a handler declares, checked before it is called.

All four kinds are pydantic models and strict: a JSON `true` is no integer, "1" is no number. Their field
names are those of the specification; a name that Python has taken gets an underscore at its end (`from_`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, NewType, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from homeserver import errors
from homeserver.protocol.canonical_json import write_json
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.identifiers import (
    EventId,
    RoomAlias,
    RoomId,
    ServerName,
    UserId,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
)
from homeserver.protocol.strict_json import JsonObject, parse_json

JsonBody = NewType("JsonBody", JsonObject)
"""A request body that may be any JSON object, as for event contents."""

OptionalJsonBody = NewType("OptionalJsonBody", JsonObject)
"""As JsonBody; an empty request body counts as {}."""

RawBody = NewType("RawBody", bytes)
"""The bytes of a request body, whatever they are."""

MAX_TRANSACTION_ID_CHARS: Final = 255

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}\Z")
_CACHED_IDENTIFIERS: Final = 4096
_LONGEST_LOCATION: Final = 100


class Parsed:
    """Marks a type whose values a parser of the core checks.

    As in `Annotated[RoomId, Parsed("room ID", parse_room_id)]`; the parser raises InvalidIdentifier.
    """

    def __init__(self, what: str, parse: Callable[[str], Any]) -> None:
        self._what = what
        self._parse = lru_cache(_CACHED_IDENTIFIERS)(parse)

    def _check(self, text: str) -> Any:
        try:
            return self._parse(text)
        except InvalidIdentifier:
            raise PydanticCustomError("identifier", "not a valid {what}", {"what": self._what}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, core_schema.str_schema(strict=True))


def _parse_room_id_or_alias(text: str) -> RoomId | RoomAlias:
    return parse_room_alias(text) if text.startswith("#") else parse_room_id(text)


RoomIdField = Annotated[RoomId, Parsed("room ID", parse_room_id)]
UserIdField = Annotated[UserId, Parsed("user ID", parse_user_id)]
RoomAliasField = Annotated[RoomAlias, Parsed("room alias", parse_room_alias)]
EventIdField = Annotated[EventId, Parsed("event ID", parse_event_id)]
ServerNameField = Annotated[ServerName, Parsed("server name", parse_server_name)]
RoomIdOrAliasField = Annotated[RoomId | RoomAlias, Parsed("room ID or alias", _parse_room_id_or_alias)]
TransactionIdField = Annotated[str, Field(max_length=MAX_TRANSACTION_ID_CHARS)]
NotNegative = Annotated[int, Field(ge=0)]
"""A number such as a `limit` or a `timeout`: bounded above by the handler, never refused for being large."""


def _specification_name(name: str) -> str:
    return name.removesuffix("_")


class _TextModel(BaseModel):
    """A model whose values arrive as text: path and query parameters.

    Texts become what the fields are: int (only digits and a minus), bool (true or false), list; or stay str.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    _converters: ClassVar[Mapping[str, Callable[[str], Any]]] = {}
    _lists: ClassVar[frozenset[str]] = frozenset()
    names: ClassVar[frozenset[str]] = frozenset()
    required_names: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        converters: dict[str, Callable[[str], Any]] = {}
        lists: set[str] = set()
        for field_name, field in cls.model_fields.items():
            name = field.alias or field_name
            annotation = _without_none(field.annotation)
            if get_origin(annotation) is list:
                lists.add(name)
                annotation = get_args(annotation)[0]
            if (converter := _CONVERTERS.get(_plain_type(annotation))) is not None:
                converters[name] = converter
        cls._converters, cls._lists = converters, frozenset(lists)
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        cls.names = frozenset(fields)
        cls.required_names = frozenset(name for name, field in fields.items() if field.is_required())

    @classmethod
    def of_texts(cls, values: dict[str, Any]) -> Self:
        """The model of a mapping from names to texts or lists of texts. Raises InvalidParam, MissingParam."""
        for name, converter in cls._converters.items():
            if (value := values.get(name)) is not None:
                values[name] = [converter(v) for v in value] if isinstance(value, list) else converter(value)
        try:
            return cls.__pydantic_validator__.validate_python(values)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise _refusal(error, wrong_type=errors.InvalidParam) from None


class Path(_TextModel):
    """The parameters in a path: `{roomAlias}` of the path template is the field `room_alias`."""

    model_config = ConfigDict(alias_generator=to_camel)


class Query(_TextModel):
    """The query parameters of a request; those that are no field are ignored.

    Of a parameter given several times the first value counts, unless the field is a list.
    """

    model_config = ConfigDict(alias_generator=_specification_name)

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """The model of (name, value) pairs. Raises InvalidParam, MissingParam."""
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in cls._lists:
                values.setdefault(name, []).append(value)
            elif name in cls.names:
                values.setdefault(name, value)
        return cls.of_texts(values)


class Body(BaseModel):
    """A request body: a JSON object with these keys; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=_specification_name)

    @classmethod
    def of_json(cls, data: bytes) -> Self:
        """The model of a JSON text.

        Raises BadJson of the core, and BadJson, MissingParam or InvalidParam for a wrong type, key or value.
        """
        value = json_object(data)
        if b"\\u0000" in data and _has_nul(value):
            raise errors.InvalidParam("The character U+0000 is not allowed here")
        try:
            return cls.__pydantic_validator__.validate_python(value)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise _refusal(error, wrong_type=errors.BadJson) from None


class OptionalBody(Body):
    """As Body; an empty request body counts as {}."""

    @classmethod
    def of_json(cls, data: bytes) -> Self:
        """As in Body. Source: none; clients send no body where all keys are optional."""
        return super().of_json(data or b"{}")


class Reply(BaseModel):
    """A response with status 200. A field that is None is left out; without fields it is {}."""

    model_config = ConfigDict(frozen=True, alias_generator=_specification_name, validate_by_name=True)

    def to_json(self) -> bytes:
        """The response body."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_none=True)


class RawReply:
    """A response whose body is bytes already: JSON, unless `headers` name another Content-Type."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.body = body
        self.status = status
        self.headers = headers

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> RawReply:
        """A response of any JSON value, with any status."""
        return cls(write_json(value), status, headers)


def json_object(data: bytes) -> JsonObject:
    """The JSON object of a request body. Raises BadJson of the core, or BadJson for another JSON value."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise errors.BadJson("The request body must be a JSON object")
    return value


def _refusal(error: ValidationError, *, wrong_type: type[errors.MatrixError]) -> errors.MatrixError:
    """What the one who asked is told: the first thing that is wrong, never the value that was given."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])[:_LONGEST_LOCATION]
    kind = detail["type"]
    if kind == "missing":
        return errors.MissingParam(f"{where} is missing")
    refused = wrong_type if kind.endswith("_type") else errors.InvalidParam
    return refused(f"{where}: {detail['msg']}")


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any("\0" in key or _has_nul(item) for key, item in value.items())
        case list():
            return any(map(_has_nul, value))
        case _:
            return False


def _without_none(annotation: Any) -> Any:
    options = [option for option in get_args(annotation) if option is not NoneType]
    return options[0] if NoneType in get_args(annotation) and len(options) == 1 else annotation


def _plain_type(annotation: Any) -> Any:
    annotation = _without_none(annotation)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _integer(text: str) -> int | str:
    return int(text) if _INTEGER.match(text) else text


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


_CONVERTERS: Final[Mapping[Any, Callable[[str], Any]]] = {int: _integer, bool: _boolean}
