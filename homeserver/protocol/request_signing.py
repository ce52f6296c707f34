"""Signed requests between servers: what is signed, and the Authorization header that carries the signature.

Source: Server-Server API, "Request Authentication"; RFC 9110, "Credentials".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from homeserver.protocol.errors import BadSignature, InvalidIdentifier
from homeserver.protocol.identifiers import ServerName, parse_server_name
from homeserver.protocol.strict_json import JsonObject

MAX_HEADERS: Final = 10
"""A request carries one header for each key of its sender; nobody has so many."""

_SCHEME: Final = re.compile(r"x-matrix +(?:,[ \t]*)*", re.IGNORECASE)
_SEPARATOR: Final = re.compile(r"[ \t]*(?:,[ \t]*)+")
_PARAMETER: Final = re.compile(
    r"""(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*=[ \t]*
    (?: "(?P<quoted>[\t !\x23-\x5b\x5d-\x7e\x80-\U0010ffff]*
           (?:\\[\t -\x7e\x80-\U0010ffff][\t !\x23-\x5b\x5d-\x7e\x80-\U0010ffff]*)*)"
      | (?P<token>[!#$%&'*+\-.^_`|~0-9A-Za-z:]+) )""",
    re.VERBOSE,
)
_ESCAPED: Final = re.compile(r"\\(.)")
_EXACT_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class XMatrix:
    """The credentials of a request: who signed it for whom, by which key. `signature` is base64."""

    origin: ServerName
    destination: ServerName | None
    key_id: str
    signature: str

    def to_header(self) -> str:
        """The value of the Authorization header."""
        destination = "" if self.destination is None else f'destination="{self.destination}",'
        return f'X-Matrix origin="{self.origin}",{destination}key="{self.key_id}",sig="{self.signature}"'


def parse_x_matrix(header: str) -> XMatrix:
    """The credentials in the value of an Authorization header.

    Names are read without case, values quoted or as tokens, in which colons may stand too; parameters of
    other names are passed over. Raises BadSignature for any other text, for a parameter that stands there
    twice or is missing, and for an origin or destination that is no server name.
    """
    scheme = _SCHEME.match(header)
    if scheme is None:
        raise BadSignature("the Authorization header is not of the scheme X-Matrix")
    parameters: dict[str, str] = {}
    position, end = scheme.end(), len(header.rstrip(" \t"))
    while position < end:
        parameter = _PARAMETER.match(header, position, end)
        if parameter is None:
            raise BadSignature("the Authorization header is malformed")
        name, quoted = parameter["name"].lower(), parameter["quoted"]
        if name in parameters:
            raise BadSignature("a parameter stands twice in the Authorization header")
        parameters[name] = parameter["token"] if quoted is None else _unescaped(quoted)
        position = parameter.end()
        if position < end:
            separator = _SEPARATOR.match(header, position, end)
            if separator is None:
                raise BadSignature("the Authorization header is malformed")
            position = separator.end()
    try:
        destination = parameters.get("destination")
        return XMatrix(
            parse_server_name(parameters["origin"]),
            None if destination is None else parse_server_name(destination),
            parameters["key"],
            parameters["sig"],
        )
    except KeyError as missing:
        raise BadSignature(f"the Authorization header has no {missing.args[0]}") from None
    except InvalidIdentifier as error:
        raise BadSignature(str(error)) from None


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def credentials_of(headers: Sequence[str]) -> list[XMatrix]:
    """The credentials of a request in all its Authorization headers, which differ only in keys.

    Raises BadSignature where there are none, too many, or some of different servers.
    """
    if not headers:
        raise BadSignature("the request is not signed")
    if len(headers) > MAX_HEADERS:
        raise BadSignature("the request has too many signatures")
    credentials = [parse_x_matrix(header) for header in headers]
    if len({(one.origin, one.destination) for one in credentials}) > 1:
        raise BadSignature("the Authorization headers name different servers")
    if len({one.key_id for one in credentials}) < len(credentials):
        raise BadSignature("the request is signed twice by one key")
    return credentials


def signed_request(
    credentials: Sequence[XMatrix], destination: ServerName, method: str, uri: str
) -> JsonObject:
    """The object that a request's signatures are over, with them, but without the content of a body.

    `uri`: path and query, exactly as sent.
    """
    origin = credentials[0].origin
    return {
        "method": method,
        "uri": uri,
        "origin": origin,
        "destination": destination,
        "signatures": {origin: {one.key_id: one.signature for one in credentials}},
    }


def exact_content(body: bytes) -> Any:
    """The value of a body that is valid JSON, its numbers in the very form in which they came.

    Events of old rooms hold numbers that come out of a parser otherwise than they went in (1e+16, -0), and
    their sender has signed them as it writes them. The value is for canonical_json alone.
    """
    return _EXACT_DECODER.decode(body.decode())


def _integer(literal: str) -> int | orjson.Fragment:
    return int(literal) if len(literal) <= _EXACT_DIGITS and literal != "-0" else orjson.Fragment(literal)


_EXACT_DECODER: Final = json.JSONDecoder(parse_float=orjson.Fragment, parse_int=_integer)
