"""What every request passes: its ID, its route, its size limit, its errors, its metrics, its log line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from homeserver import errors
from homeserver.http.endpoints import Endpoint
from homeserver.http.request import Request
from homeserver.http.responses import error_response, preflight_response, response_of
from homeserver.http.routing import Router
from homeserver.logs import request_id
from homeserver.metrics import Metrics
from homeserver.protocol import errors as protocol_errors

S = TypeVar("S")

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("homeserver.http.access")

CLIENT_WENT_AWAY: Final = 499
_NO_ROUTE: Final = "(none)"
_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})


class Middleware(Generic[S]):
    """Answers the requests of one listener. `clock`: seconds, never going back."""

    def __init__(
        self, router: Router[Endpoint[S]], services: S, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._router = router
        self._services = services
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever happens becomes a response."""
        assert isinstance(request, Request)
        started = self._clock()
        request_id.set(request.request_id)
        status = CLIENT_WENT_AWAY
        try:
            response = await self._answer(request, started)
            status = response.status
        except web.HTTPException as response_as_error:
            status = response_as_error.status
            raise
        finally:
            self._record(request, status, started)
        return response

    async def _answer(self, request: Request, now: float) -> web.StreamResponse:
        try:
            if hdrs.HOST not in request.headers and request.version >= HttpVersion11:
                raise errors.BadRequest("The Host header is missing")
            if request.method == "OPTIONS":
                return preflight_response()
            endpoint, request.path_parameters = self._router.find(request.method, request.raw_segments)
            request.endpoint, request.cors = endpoint, endpoint.cors
            request.check_announced_size()
            if endpoint.cancellable:
                return await self._answer_cancellable(endpoint, request, now)
            return response_of(await endpoint.answer(self._services, request, now))
        except errors.MatrixError as error:
            return error_response(error)
        except protocol_errors.ProtocolError as error:
            told = told_as(error)
            return _unexpected(request) if told is None else error_response(told)
        except ConnectionError:
            return web.Response(status=CLIENT_WENT_AWAY)
        except web.HTTPException:
            raise
        except Exception:
            return _unexpected(request)

    async def _answer_cancellable(
        self, endpoint: Endpoint[S], request: Request, now: float
    ) -> web.StreamResponse:
        """As `_answer`; the connection cancels it when the client goes away or the server stops."""
        task = asyncio.current_task()
        assert task is not None
        request.listener.cancellable[request.protocol] = task
        try:
            return response_of(await endpoint.answer(self._services, request, now))
        except asyncio.CancelledError:
            if not request.listener.stopping or request.transport is None:
                raise
            task.uncancel()
            raise errors.Unavailable("The server is stopping; ask again") from None
        finally:
            request.listener.cancellable.pop(request.protocol, None)

    def _record(self, request: Request, status: int, started: float) -> None:
        seconds = self._clock() - started
        route = _NO_ROUTE if request.endpoint is None else request.endpoint.path
        method = request.method if request.method in _METHODS else "other"
        self._metrics.count_request(method, route, status, seconds)
        if access_logger.isEnabledFor(logging.INFO):
            access_logger.info(
                "%s %s %s %d %.1f ms",
                request.client_address,
                request.method,
                request.raw_segments,
                status,
                seconds * 1000,
            )


def told_as(error: protocol_errors.ProtocolError) -> errors.MatrixError | None:
    """What an error of the core means to the one who asks, where no service said it.

    None for an error that only a mistake of ours lets out of a service.
    """
    match error:
        case protocol_errors.BadJson(syntax=True):
            return errors.NotJson(str(error))
        case protocol_errors.BadJson():
            return errors.BadJson(str(error))
        case protocol_errors.InvalidIdentifier():
            return errors.InvalidParam(str(error))
        case protocol_errors.UnknownRoomVersion():
            return errors.UnsupportedRoomVersion(str(error))
        case protocol_errors.FieldTooLong():
            return errors.InvalidParam(str(error))
        case protocol_errors.EventTooLarge():
            return errors.TooLarge(str(error))
        case protocol_errors.InvalidEvent() | protocol_errors.InvalidContent():
            return errors.BadJson(str(error))
        case protocol_errors.BadSignature():
            return errors.Unauthorized(str(error))
        case protocol_errors.NotAllowed():
            return errors.Forbidden(str(error))
        case _:
            return None


def _unexpected(request: Request) -> web.StreamResponse:
    """Log the current exception, and answer without its text."""
    route = _NO_ROUTE if request.endpoint is None else request.endpoint.path
    logger.exception("%s %s failed", request.method, route)
    return error_response(errors.MatrixError(f"Internal server error (request {request.request_id})"))
