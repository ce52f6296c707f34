"""How a client says whose password it has: an identifier object, or the keys from before there was one.

Source: Client-Server API, "Identifier types".
"""

from __future__ import annotations

from homeserver.errors import BadJson, BadRequest, MissingParam
from homeserver.protocol.strict_json import JsonObject


def user_of(credentials: JsonObject) -> str | None:
    """The localpart or user ID in credentials; None for an address or phone number, which names no user here.

    Raises MissingParam where nothing is named, BadJson for a wrong JSON type, BadRequest for an unknown
    identifier type.
    """
    identifier = credentials.get("identifier")
    if identifier is None:
        if "user" not in credentials and {"medium", "address"} <= credentials.keys():
            return None
        return _text(credentials, "user")
    if not isinstance(identifier, dict):
        raise BadJson("identifier is not an object")
    kind = _text(identifier, "type")
    if kind == "m.id.user":
        return _text(identifier, "user")
    if kind == "m.id.thirdparty":
        _text(identifier, "medium")
        _text(identifier, "address")
        return None
    if kind == "m.id.phone":
        _text(identifier, "country")
        _text(identifier, "number" if "number" in identifier else "phone")
        return None
    raise BadRequest("this type of identifier is not known")


def _text(values: JsonObject, key: str) -> str:
    value = values.get(key)
    if value is None:
        raise MissingParam(f"{key} is missing")
    if not isinstance(value, str):
        raise BadJson(f"{key} is not a string")
    return value
