"""User, room, event and device IDs, room aliases and server names.

Source: Appendices, "Identifier Grammar".
"""

from __future__ import annotations

import ipaddress
import re
from typing import NewType

from homeserver.protocol.errors import InvalidIdentifier

ServerName = NewType("ServerName", str)
UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
RoomAlias = NewType("RoomAlias", str)
EventId = NewType("EventId", str)
DeviceId = NewType("DeviceId", str)

MAX_ID_BYTES = 255

_NEW_LOCALPART = re.compile(r"[a-z0-9._=\-/+]+\Z")
_HISTORICAL_LOCALPART = re.compile(r"[^:\0]*\Z")  # old user IDs have any code point
_DNS_NAME = re.compile(r"[A-Za-z0-9.\-]{1,255}\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_OPAQUE_V12 = re.compile(r"[A-Za-z0-9_\-]{43}\Z")


def parse_server_name(text: str) -> ServerName:
    """Check a server name: a DNS name, an IPv4 address or an IPv6 address in brackets, and maybe a port.

    Raises InvalidIdentifier. Source: Appendices, "Server Name".
    """
    split_host_port(text)
    return ServerName(text)


def split_host_port(server_name: str) -> tuple[str, int | None]:
    """Split a server name into host (an IPv6 address keeps its brackets) and port, None where it has none.

    Raises InvalidIdentifier. Source: Appendices, "Server Name".
    """
    if server_name.startswith("["):
        literal, bracket, rest = server_name[1:].partition("]")
        host = f"[{literal}]"
        try:
            ipaddress.IPv6Address(literal)
        except ValueError:
            raise InvalidIdentifier(f"{server_name!r} is not a server name") from None
        valid = bool(bracket) and "%" not in literal and (not rest or rest.startswith(":"))
        port = rest[1:] if rest else None
    else:
        host, colon, after = server_name.partition(":")
        valid = _DNS_NAME.match(host) is not None
        port = after if colon else None
    if not valid or len(server_name) > MAX_ID_BYTES or (port is not None and not _PORT.match(port)):
        raise InvalidIdentifier(f"{server_name!r} is not a server name")
    return host, None if port is None else int(port)


def parse_user_id(text: str) -> UserId:
    """Check a user ID, historical ones included.

    Raises InvalidIdentifier. Source: Appendices, "User Identifiers", "Historical User IDs".
    """
    localpart, server_name = _split(text, "@", "user ID")
    if not _HISTORICAL_LOCALPART.match(localpart):
        raise InvalidIdentifier(f"{text!r} is not a user ID")
    parse_server_name(server_name)
    return UserId(text)


def is_user_id(text: object) -> bool:
    """Whether a value is a valid user ID."""
    if not isinstance(text, str):
        return False
    try:
        parse_user_id(text)
    except InvalidIdentifier:
        return False
    return True


def is_new_localpart(localpart: str) -> bool:
    """Whether a localpart may be registered. Source: Appendices, "User Identifiers"."""
    return _NEW_LOCALPART.match(localpart) is not None


def parse_room_id(text: str) -> RoomId:
    """Check a room ID of any room version: with a server name up to version 11, a hash from 12.

    Raises InvalidIdentifier. Source: Appendices, "Room IDs".
    """
    _check_size(text, "room ID")
    if not text.startswith("!") or len(text) < 2 or "\0" in text:
        raise InvalidIdentifier(f"{text!r} is not a room ID")
    if ":" in text:
        parse_server_name(text.partition(":")[2])
    elif not _OPAQUE_V12.match(text[1:]):
        raise InvalidIdentifier(f"{text!r} is not a room ID")
    return RoomId(text)


def parse_room_alias(text: str) -> RoomAlias:
    """Check a room alias. Raises InvalidIdentifier. Source: Appendices, "Room Aliases"."""
    localpart, server_name = _split(text, "#", "room alias")
    if not localpart or "\0" in localpart:
        raise InvalidIdentifier(f"{text!r} is not a room alias")
    parse_server_name(server_name)
    return RoomAlias(text)


def parse_event_id(text: str) -> EventId:
    """Check the sigil and size of an event ID: what follows depends on the room version.

    Raises InvalidIdentifier. Source: Appendices, "Event IDs".
    """
    _check_size(text, "event ID")
    if not text.startswith("$") or len(text) < 2 or "\0" in text:
        raise InvalidIdentifier(f"{text!r} is not an event ID")
    return EventId(text)


def server_name_of(identifier: str) -> ServerName:
    """The server name in a user ID or room alias: all behind the first colon.

    Raises InvalidIdentifier where there is none.
    """
    _, colon, server_name = identifier.partition(":")
    if not colon:
        raise InvalidIdentifier(f"{identifier!r} names no server")
    return ServerName(server_name)


def server_in(text: str) -> ServerName:
    """What server_name_of says of a text that may be no identifier, such as a state key; "" for none."""
    return ServerName(text.partition(":")[2])


def create_event_id(room_id: str) -> EventId:
    """The ID of a room's create event, in versions that make the room ID of it."""
    return EventId(f"${room_id[1:]}")


def localpart_of(identifier: str) -> str:
    """The part of a user ID or room alias between its sigil and the first colon."""
    return identifier[1:].partition(":")[0]


def _split(text: str, sigil: str, kind: str) -> tuple[str, str]:
    _check_size(text, kind)
    localpart, colon, server_name = text[1:].partition(":")
    if not text.startswith(sigil) or not colon:
        raise InvalidIdentifier(f"{text!r} is not a {kind}")
    return localpart, server_name


def _check_size(text: str, kind: str) -> None:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidIdentifier(f"{text!r} is not a {kind}") from None
    if size_bytes > MAX_ID_BYTES:
        raise InvalidIdentifier(f"a {kind} has at most {MAX_ID_BYTES} bytes")
