"""Every failure we answer: an error of the Matrix standard with its status.

An error is raised where it is known; one middleware makes it the standard error response.
Source: Client-Server API, "Standard error response".
"""

from __future__ import annotations

from typing import Any, ClassVar


class LairError(Exception):
    """A failure whose text is meant for an operator: what is wrong, where, and how to mend it."""


class MatrixError(Exception):
    """A failure that the one who asked is told: HTTP status, errcode, an English text and further keys."""

    status: ClassVar[int] = 500
    errcode: ClassVar[str] = "M_UNKNOWN"

    def __init__(self, error: str, **extra: Any) -> None:
        super().__init__(error)
        self.error = error
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The JSON that the one who asked gets."""
        return {"errcode": self.errcode, "error": self.error, **self.extra}


class NotJson(MatrixError):
    """The request did not contain valid JSON."""

    status, errcode = 400, "M_NOT_JSON"


class BadJson(MatrixError):
    """Valid JSON that is malformed in some way: a missing object, a wrong type."""

    status, errcode = 400, "M_BAD_JSON"


class MissingParam(MatrixError):
    """A required parameter is missing."""

    status, errcode = 400, "M_MISSING_PARAM"


class InvalidParam(MatrixError):
    """A parameter has the wrong value."""

    status, errcode = 400, "M_INVALID_PARAM"


class BadRequest(MatrixError):
    """A request that makes no sense here and has no errcode of its own."""

    status, errcode = 400, "M_UNKNOWN"


class TooLarge(MatrixError):
    """A request, or the event it asks for, is above a size limit."""

    status, errcode = 413, "M_TOO_LARGE"


class Unrecognized(MatrixError):
    """An endpoint that this server does not have."""

    status, errcode = 404, "M_UNRECOGNIZED"


class MethodNotAllowed(MatrixError):
    """An endpoint that this server has, but not with this method."""

    status, errcode = 405, "M_UNRECOGNIZED"


class MissingToken(MatrixError):
    """The request needs an access token and carries none."""

    status, errcode = 401, "M_MISSING_TOKEN"


class UnknownToken(MatrixError):
    """The access or refresh token is not, or no longer, valid."""

    status, errcode = 401, "M_UNKNOWN_TOKEN"


class UiAuthRequired(MatrixError):
    """User-interactive authentication goes on; an error without errcode is no failure, only the next step.

    Source: Client-Server API, "User-interactive API in the REST API".
    """

    status = 401

    def __init__(self, error: str = "", errcode: str | None = None, **challenge: Any) -> None:
        super().__init__(error, **challenge)
        self.failed_errcode = errcode

    def body(self) -> dict[str, Any]:
        """The challenge, with what went wrong if something did."""
        if self.failed_errcode is None:
            return self.extra
        return {"errcode": self.failed_errcode, "error": self.error, **self.extra}


class Unauthorized(MatrixError):
    """The request is not authenticated as it has to be."""

    status, errcode = 401, "M_UNAUTHORIZED"


class Forbidden(MatrixError):
    """The one who asks may not do this."""

    status, errcode = 403, "M_FORBIDDEN"


class UserDeactivated(MatrixError):
    """The account has been deactivated."""

    status, errcode = 403, "M_USER_DEACTIVATED"


class NotFound(MatrixError):
    """What was asked for does not exist, or the one who asks may not know that it does."""

    status, errcode = 404, "M_NOT_FOUND"


class UserInUse(MatrixError):
    """The user ID is taken."""

    status, errcode = 400, "M_USER_IN_USE"


class InvalidUsername(MatrixError):
    """The user name cannot be a user ID."""

    status, errcode = 400, "M_INVALID_USERNAME"


class RoomInUse(MatrixError):
    """The room alias asked for is taken."""

    status, errcode = 400, "M_ROOM_IN_USE"


class InvalidRoomState(MatrixError):
    """The initial state asked for is not valid."""

    status, errcode = 400, "M_INVALID_ROOM_STATE"


class UnsupportedRoomVersion(MatrixError):
    """This server does not speak the room version."""

    status, errcode = 400, "M_UNSUPPORTED_ROOM_VERSION"


class IncompatibleRoomVersion(MatrixError):
    """A server is to take part in a room of a version that it does not speak: `room_version`."""

    status, errcode = 400, "M_INCOMPATIBLE_ROOM_VERSION"

    def __init__(self, room_version: str) -> None:
        super().__init__(f"room version {room_version} is not supported", room_version=room_version)


class InviteBlocked(MatrixError):
    """Whoever is invited does not want invites, or not from the one who asks."""

    status, errcode = 403, "M_INVITE_BLOCKED"


class UnableToAuthoriseJoin(MatrixError):
    """Whether the conditions of a restricted room are met cannot be told here."""

    status, errcode = 400, "M_UNABLE_TO_AUTHORISE_JOIN"


class UnableToGrantJoin(MatrixError):
    """The conditions of a restricted room are met, but nobody here may let the user in."""

    status, errcode = 400, "M_UNABLE_TO_GRANT_JOIN"


class RoomAliasTaken(MatrixError):
    """The room alias points to a room already."""

    status, errcode = 409, "M_UNKNOWN"


class BadAlias(MatrixError):
    """A room names aliases that do not point to it."""

    status, errcode = 400, "M_BAD_ALIAS"


class KeyTooLarge(MatrixError):
    """The name of a profile field is above the size limit."""

    status, errcode = 400, "M_KEY_TOO_LARGE"


class ProfileTooLarge(MatrixError):
    """A profile would be above the size limit."""

    status, errcode = 400, "M_PROFILE_TOO_LARGE"


class GuestAccessForbidden(MatrixError):
    """Guests may not do this."""

    status, errcode = 403, "M_GUEST_ACCESS_FORBIDDEN"


class LimitExceeded(MatrixError):
    """Too many requests; `retry_after_ms` says when to come again."""

    status, errcode = 429, "M_LIMIT_EXCEEDED"

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("Too many requests", retry_after_ms=retry_after_ms)
        self.retry_after_ms = retry_after_ms


class BadGateway(MatrixError):
    """Another server, which had to be asked, did not answer as it should."""

    status, errcode = 502, "M_UNKNOWN"


class Unavailable(MatrixError):
    """The server cannot do this now and may be asked again."""

    status, errcode = 503, "M_UNKNOWN"
