"""All listeners of this process: which endpoints each serves, how it starts and how it stops."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from homeserver.config import Listener, Tls
from homeserver.errors import LairError
from homeserver.http.connection import ConnectionServer
from homeserver.http.endpoints import Endpoint, Endpoints
from homeserver.http.health import Component, health_endpoints, metrics_endpoints
from homeserver.http.middleware import Middleware
from homeserver.http.rate_limit import RateLimiter
from homeserver.http.request import PATIENCE, ListenerState, Patience
from homeserver.http.routing import Router
from homeserver.metrics import Metrics

S = TypeVar("S")

BACKLOG: Final = 1024
_SHORTEST_GRACE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table of routes."""

    method: str
    path: str
    handler: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener answers; `port` is the real one where 0 was asked for."""

    url: str
    host: str
    port: int


class HttpApplication(Generic[S]):
    """The HTTP side of one process.

    `endpoints`: of all files; each listener serves those of its `apis`. `readiness`: what has to work for
    /health/ready, by name; the listeners themselves are looked at too. `share_ports`: other processes of this
    host listen at the same addresses. `clock`: seconds, never going back.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        endpoints: Sequence[Endpoints[S]],
        services: S,
        *,
        metrics: Metrics,
        rate_limiter: RateLimiter,
        readiness: Mapping[str, Component] | None = None,
        share_ports: bool = False,
        patience: Patience = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listeners = listeners
        self._services = services
        self._metrics = metrics
        self._rate_limiter = rate_limiter
        self._share_ports = share_ports
        self._patience = patience
        self._clock = clock
        self._running: list[tuple[ConnectionServer, web.ServerRunner, web.TCPSite]] = []
        self._stopping = False
        components = {**(readiness or {}), "listeners": self._listeners_problem}
        self._endpoints: list[Endpoints[S]] = [
            *endpoints,
            health_endpoints(components),
            metrics_endpoints(metrics),
        ]
        for endpoint in _all(self._endpoints):
            if endpoint.rate_limit is not None and not rate_limiter.knows(endpoint.rate_limit):
                raise ValueError(f"{endpoint.method} {endpoint.path}: no limit {endpoint.rate_limit!r}")

    @property
    def addresses(self) -> list[Address]:
        """Where the listeners answer, in the order of the configuration; empty before `start`."""
        return [
            Address(site.name, listener.bind, site.port)
            for listener, (_, _, site) in zip(self._listeners, self._running, strict=False)
        ]

    def routes(self) -> list[Route]:
        """Every method and path that is served by any listener, sorted by path."""
        return routes(self._endpoints)

    async def start(self) -> None:
        """Listen. Raises LairError for an address or certificate that cannot be used; then none listens."""
        tls = [None if listener.tls is None else tls_context(listener.tls) for listener in self._listeners]
        try:
            for listener, context in zip(self._listeners, tls, strict=True):
                await self._start_listener(listener, context)
        except BaseException:
            await self.stop(grace_seconds=0)
            raise

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing new, end the requests that only wait, and give the others so long to finish."""
        self._stopping = True
        running, self._running = self._running, []
        for server, _, site in running:
            server.listener.stopping = True
            await site.stop()
            server.cancel_waiting()
        async with asyncio.TaskGroup() as group:
            for server, runner, _ in running:
                group.create_task(_stop_connections(server, runner, grace_seconds))

    async def _start_listener(self, listener: Listener, context: ssl.SSLContext | None) -> None:
        router: Router[Endpoint[S]] = Router()
        for group in self._endpoints:
            if group.api is None or group.api in listener.apis:
                for endpoint in group.all:
                    for path in (endpoint.path, *endpoint.aliases):
                        router.add(endpoint.method, path, endpoint)
        state = ListenerState(self._rate_limiter, listener.trusted_proxies, self._patience)
        middleware = Middleware(router, self._services, self._metrics, self._clock)
        server = ConnectionServer(middleware, state, asyncio.get_running_loop())
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(
            runner,
            listener.bind,
            listener.port,
            ssl_context=context,
            backlog=BACKLOG,
            reuse_port=self._share_ports or None,
        )
        try:
            await site.start()
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            raise LairError(f"cannot listen on {listener.bind} port {listener.port}: {problem}") from None
        self._running.append((server, runner, site))

    async def _listeners_problem(self) -> str | None:
        if self._stopping:
            return "stopping"
        return None if len(self._running) == len(self._listeners) else "not all listen yet"


def routes(endpoints: Sequence[Endpoints[Any]]) -> list[Route]:
    """Every method and path of these endpoints, aliases included, sorted by path."""
    table = [
        Route(endpoint.method, path, endpoint.name)
        for endpoint in _all(endpoints)
        for path in (endpoint.path, *endpoint.aliases)
    ]
    return sorted(table, key=lambda route: (route.path, route.method))


async def _stop_connections(server: web.Server, runner: web.ServerRunner, grace_seconds: float) -> None:
    server.pre_shutdown()
    # aiohttp waits this long for the handlers, and again before it cancels them; 0 would be for ever
    await server.shutdown(max(grace_seconds / 2, _SHORTEST_GRACE_SECONDS))
    await runner.cleanup()


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The settings of a TLS server. Raises LairError that names the file which is missing or wrong."""
    for path in (tls.certificate, tls.private_key):
        try:
            path.read_bytes()
        except OSError as error:
            raise LairError(f"cannot read {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.private_key, password=_no_password(tls))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise LairError(f"{tls.private_key} is not the key of {tls.certificate}") from None
        raise LairError(
            f"{tls.certificate} and {tls.private_key} must be a certificate chain and its key in PEM"
        ) from None
    return context


def _no_password(tls: Tls) -> Callable[[], str]:
    def refuse() -> str:
        raise LairError(f"{tls.private_key} is encrypted; store it without a passphrase")

    return refuse


def _all(groups: Sequence[Endpoints[Any]]) -> Iterator[Endpoint[Any]]:
    for group in groups:
        yield from group.all
