"""Typed endpoints: a handler's annotations say what it needs, and are read once, when it is registered.

    endpoints = Endpoints(Services, authentication)

    @endpoints.put("/_matrix/client/v3/directory/room/{roomAlias}")
    async def set_room_alias(
        services: Services, requester: Requester, path: RoomAliasPath, body: NewRoomAlias
    ) -> Reply:

Before the handler runs: authentication, rate limit, then its other arguments in their order.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, get_type_hints

from homeserver.config import Api
from homeserver.errors import MissingToken
from homeserver.http.models import (
    Body,
    JsonBody,
    OptionalJsonBody,
    Path,
    Query,
    RawBody,
    json_object,
)
from homeserver.http.rate_limit import address_key
from homeserver.http.request import Request, RequestInfo
from homeserver.http.responses import Answer
from homeserver.http.routing import path_parameter_names

S = TypeVar("S")
R = TypeVar("R")
H = TypeVar("H", bound=Callable[..., Awaitable[Answer]])
Provider = Callable[[S, Request], Awaitable[Any]]

DEFAULT_MAX_BODY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Authentication(Generic[S, R]):
    """How the one who asks is known.

    A handler that takes an argument of the type `requester` is called only when `authenticate` returned one;
    one that takes `requester | None` also when no token was given (`authenticate` raised MissingToken).
    `who`: the text that rate limits count a requester by; None for one without limits.
    """

    requester: type[R]
    authenticate: Callable[[S, Request], Awaitable[R]]
    who: Callable[[R], str | None]


@dataclass(slots=True, eq=False)
class Endpoint(Generic[S]):
    """One handler with its method and paths, and where each of its arguments comes from."""

    api: Api | None
    method: str
    path: str
    handler: Callable[..., Awaitable[Answer]]
    aliases: tuple[str, ...]
    cors: bool
    max_body_bytes: int
    rate_limit: str | None
    cancellable: bool
    authentication: Authentication[S, Any] | None
    requester: str | None = None
    requester_optional: bool = False
    services: str | None = None
    path_model: type[Path] | None = None
    plain: list[tuple[str, Callable[[Request], Any]]] = field(default_factory=list)
    awaited: list[tuple[str, Provider[S]]] = field(default_factory=list)
    body: tuple[str, Callable[[bytes], Any]] | None = None

    @property
    def name(self) -> str:
        """The handler's name: that of the operation in the specification."""
        return self.handler.__name__

    async def answer(self, services: S, request: Request, now: float) -> Answer:
        """Find the handler's arguments and call it. `now`: seconds of a clock that never goes back."""
        arguments: dict[str, Any] = {}
        if self.services is not None:
            arguments[self.services] = services
        requester = None
        if self.authentication is not None and self.requester is not None:
            try:
                requester = await self.authentication.authenticate(services, request)
            except MissingToken:
                if not self.requester_optional:
                    raise
            arguments[self.requester] = requester
        if self.rate_limit is not None:
            self._count(self.rate_limit, request, requester, now)
        for name, plain in self.plain:
            arguments[name] = plain(request)
        for name, provider in self.awaited:
            arguments[name] = await provider(services, request)
        if self.body is not None:
            name, parse = self.body
            arguments[name] = parse(await request.read_body())
        return await self.handler(**arguments)

    def _count(self, limit: str, request: Request, requester: Any, now: float) -> None:
        who: str | None
        if self.authentication is None or requester is None:
            who = address_key(request.client_address)
        else:
            who = self.authentication.who(requester)
        if who is not None:
            request.listener.rate_limiter.check(limit, who, now)


class Options(TypedDict, total=False):
    """What a registration may say beside method and path.

    public: whoever asks may; without it the handler must take a requester.
    rate_limit: the name of the limit that each call counts for, by requester or else by address.
    max_body_bytes: how large the body may be, as sent and as decompressed.
    cancellable: the handler only reads or waits; it ends when its client goes away or the server stops.
    aliases: further paths; they may lack parameters that have a default.
    """

    public: bool
    rate_limit: str | None
    max_body_bytes: int
    cancellable: bool
    aliases: Sequence[str]


class Endpoints(Generic[S]):
    """The endpoints of one file.

    services_type: the type of the argument that gets the application's services.
    providers: how to get arguments of further types.
    api: which listeners serve the endpoints; None for all.
    cors: whether scripts of any web site may read the responses.
    old_prefixes: older path prefixes under which the endpoints are served too, by the prefix of today.
    """

    def __init__(
        self,
        services_type: type[S],
        authentication: Authentication[S, Any] | None = None,
        providers: Mapping[Any, Provider[S]] | None = None,
        *,
        api: Api | None = "client",
        cors: bool = True,
        old_prefixes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.api: Final = api
        self._services_type = services_type
        self._authentication = authentication
        self._providers = dict(providers or {})
        self._cors = cors
        self._old_prefixes = dict(old_prefixes or {})
        self._endpoints: list[Endpoint[S]] = []

    @property
    def all(self) -> Sequence[Endpoint[S]]:
        """The endpoints, in the order of their registration."""
        return self._endpoints

    def get(self, path: str, **options: Unpack[Options]) -> Callable[[H], H]:
        """Register a handler of GET, and so of HEAD; see `add`."""
        return lambda handler: self.add("GET", path, handler, **options)

    def put(self, path: str, **options: Unpack[Options]) -> Callable[[H], H]:
        """Register a handler of PUT; see `add`."""
        return lambda handler: self.add("PUT", path, handler, **options)

    def post(self, path: str, **options: Unpack[Options]) -> Callable[[H], H]:
        """Register a handler of POST; see `add`."""
        return lambda handler: self.add("POST", path, handler, **options)

    def delete(self, path: str, **options: Unpack[Options]) -> Callable[[H], H]:
        """Register a handler of DELETE; see `add`."""
        return lambda handler: self.add("DELETE", path, handler, **options)

    def add(self, method: str, path: str, handler: H, **options: Unpack[Options]) -> H:
        """Register a handler. Raises TypeError for one that cannot be called from a request."""
        endpoint = Endpoint[S](
            api=self.api,
            method=method,
            path=path,
            handler=handler,
            aliases=(*options.get("aliases", ()), *self._old_paths(path, *options.get("aliases", ()))),
            cors=self._cors,
            max_body_bytes=options.get("max_body_bytes", DEFAULT_MAX_BODY_BYTES),
            rate_limit=options.get("rate_limit"),
            cancellable=options.get("cancellable", False),
            authentication=self._authentication,
        )
        hints = get_type_hints(handler)
        for name in inspect.signature(handler).parameters:
            self._take_argument(endpoint, name, hints.get(name))
        if endpoint.requester is None:
            endpoint.authentication = None
            if not options.get("public", False):
                raise TypeError(f"{method} {path}: take a requester, or say public=True")
        elif options.get("public", False) and not endpoint.requester_optional:
            raise TypeError(f"{method} {path}: public, but takes a requester who has to be known")
        _check_path_parameters(endpoint)
        self._endpoints.append(endpoint)
        return handler

    def _old_paths(self, *paths: str) -> list[str]:
        return [
            old + path.removeprefix(new)
            for path in paths
            for new, olds in self._old_prefixes.items()
            if path.startswith(new)
            for old in olds
        ]

    def _take_argument(self, endpoint: Endpoint[S], name: str, annotation: Any) -> None:
        """Find out where an argument of a handler comes from."""
        if self._authentication is not None:
            requester = self._authentication.requester
            if annotation in (requester, requester | None):
                endpoint.requester, endpoint.requester_optional = name, annotation is not requester
                return
        if annotation is self._services_type:
            endpoint.services = name
        elif annotation is Request:
            endpoint.plain.append((name, lambda request: request))
        elif annotation is RequestInfo:
            endpoint.plain.append((name, lambda request: request.info))
        elif inspect.isclass(annotation) and issubclass(annotation, Path):
            endpoint.path_model = annotation
            endpoint.plain.append((name, lambda request: annotation.of_texts(request.path_parameters)))
        elif inspect.isclass(annotation) and issubclass(annotation, Query):
            endpoint.plain.append((name, lambda request: annotation.of_pairs(request.query_pairs)))
        elif inspect.isclass(annotation) and issubclass(annotation, Body):
            endpoint.body = (name, annotation.of_json)
        elif annotation in _BODIES:
            endpoint.body = (name, _BODIES[annotation])
        elif annotation in self._providers:
            endpoint.awaited.append((name, self._providers[annotation]))
        else:
            raise TypeError(f"{endpoint.method} {endpoint.path}: nothing provides {name}: {annotation}")


_BODIES: Final[Mapping[Any, Callable[[bytes], Any]]] = {
    JsonBody: json_object,
    OptionalJsonBody: lambda data: json_object(data or b"{}"),
    RawBody: bytes,
}


def _check_path_parameters(endpoint: Endpoint[Any]) -> None:
    model = endpoint.path_model
    known = set() if model is None else model.names
    needed = set() if model is None else model.required_names
    for path in (endpoint.path, *endpoint.aliases):
        names = set(path_parameter_names(path))
        if not needed <= names <= known:
            raise TypeError(f"{endpoint.method} {path}: has parameters {names}, the handler takes {known}")
