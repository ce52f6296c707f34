"""The types of values that settings have: each checks a value as it is written, and says how to mend it.

All of them raise `bad_value`, and none shows the value of a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from homeserver.protocol import identifiers
from homeserver.protocol.errors import InvalidIdentifier
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.settings_model import Secret
from homeserver.settings_source import bad_value

MAX_PORT: Final = 65535
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.\-]{0,251}[A-Za-z0-9_])?\Z")
_USER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,31}\Z")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise bad_value("is not text", "put it in quotes")
    if not value or not value.isprintable():
        raise bad_value(
            "is empty or has characters that cannot be printed", "write it on one line, or use null"
        )
    return value


def _path(value: object, info: ValidationInfo) -> Path:
    """A path; a relative one counts from the configuration file's folder, or from the working folder."""
    if not isinstance(value, Path):
        value = Path(_text(value))
    folder = Path.cwd() if info.context is None else info.context["folder"]
    return Path(folder) / value


def _server_name(value: object) -> identifiers.ServerName:
    text = _text(value)
    try:
        name = identifiers.parse_server_name(text)
        port = identifiers.split_host_port(text)[1]
    except InvalidIdentifier:
        mend = "write a name as example.org or localhost:8448, without https:// and without a path"
        raise bad_value(f"{text!r} is not a server name", mend) from None
    if port is not None and not 0 < port <= MAX_PORT:
        raise bad_value(f"{text!r} has an impossible port", f"give a port from 1 to {MAX_PORT}, or none")
    return name


def _host(value: object) -> str:
    text = _text(value)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _HOST_NAME.match(text) or text.rpartition(".")[2].isdigit():
            mend = "write an address as 127.0.0.1 or ::1 (no brackets), or a host name"
            raise bad_value(f"{text!r} is neither an address nor a host name", mend) from None
    return text


def _ip_range(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    text = _text(value)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        mend = f"write {ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        mend = "write an address as 10.0.0.1, or a range as 10.0.0.0/8 or fd00::/8"
    raise bad_value(f"{text!r} is not an address or a range of addresses", mend)


def _port(value: object) -> object:
    if type(value) is int and not 0 <= value <= MAX_PORT:
        raise bad_value(f"{value} is not a port", f"give a port from 0 to {MAX_PORT}; 0 is any free one")
    return value


def _postgresql_url(value: object) -> str:
    text = _text(value)
    mend = "write postgresql://user:password@host:port/name"
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise bad_value("is not a URL", mend) from None
    if url.scheme not in ("postgresql", "postgres"):
        raise bad_value("is not the URL of a PostgreSQL database", mend)
    if not url.path.strip("/"):
        raise bad_value("names no database", mend)
    return text


def _redis_url(value: object) -> str:
    text = _text(value)
    if urlsplit(text).scheme not in ("redis", "rediss", "unix"):
        raise bad_value("is not the URL of a Redis server", "write redis://:password@host:port/0")
    return text


def _web_url(value: object) -> str:
    text = _text(value)
    mend = "write it as https://example.org"
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise bad_value(f"{text!r} is not a URL", mend) from None
    if url.scheme not in ("https", "http") or not url.hostname or url.query or url.fragment or url.username:
        raise bad_value(f"{text!r} is not the URL of a web server", mend)
    return text


def _room_version(value: object) -> str:
    if not isinstance(value, str):
        raise bad_value(f"{value!r} is not text", 'put the version in quotes, as "12"')
    if value not in ROOM_VERSIONS:
        raise bad_value(
            f"there is no room version {value!r} here", f"choose one of {', '.join(ROOM_VERSIONS)}"
        )
    return value


def _room_alias(value: object) -> identifiers.RoomAlias:
    text = _text(value)
    try:
        return identifiers.parse_room_alias(text)
    except InvalidIdentifier:
        mend = "write it as '#name:example.org', in quotes"
        raise bad_value(f"{text!r} is not a room alias", mend) from None


def _user_name(value: object) -> str:
    text = _text(value)
    if not _USER_NAME.match(text):
        raise bad_value(
            f"{text!r} is not the name of a user of this system", "write it as nobody or postgres"
        )
    return text


def _or_none(check: Callable[[object], str]) -> Callable[[object], str | None]:
    return lambda value: None if value is None else check(value)


Entry = TypeVar("Entry")
Entries = Annotated[tuple[Entry, ...], Field(strict=False)]
"""A list as YAML has it, kept as a tuple."""
LocalPath = Annotated[Path, PlainValidator(_path)]
ServerNameText = Annotated[identifiers.ServerName, PlainValidator(_server_name)]
RoomAliasText = Annotated[identifiers.RoomAlias, PlainValidator(_room_alias)]
IpRange = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, PlainValidator(_ip_range)]
Host = Annotated[str, PlainValidator(_host)]
Text = Annotated[str, PlainValidator(_text)]
WebUrl = Annotated[str, PlainValidator(_web_url)]
Port = Annotated[int, BeforeValidator(_port)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecretText = Annotated[str, Secret(), PlainValidator(_text), Field(repr=False)]
OptionalSecret = Annotated[str | None, Secret(), PlainValidator(_or_none(_text)), Field(repr=False)]
PostgresqlUrl = Annotated[str | None, Secret(), PlainValidator(_or_none(_postgresql_url)), Field(repr=False)]
RedisUrl = Annotated[str | None, Secret(), PlainValidator(_or_none(_redis_url)), Field(repr=False)]
UserName = Annotated[str, PlainValidator(_user_name)]
RoomVersionName = Annotated[str, PlainValidator(_room_version)]
