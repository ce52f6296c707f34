"""Whether this server works, for load balancers; and its metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from homeserver.http.endpoints import Endpoints
from homeserver.http.models import RawReply
from homeserver.metrics import Metrics

logger = logging.getLogger(__name__)

Component: TypeAlias = Callable[[], Awaitable[str | None]]
"""Looks at one part of the server: None when it works, else what is wrong, in words for anybody."""

COMPONENT_SECONDS: Final = 2.0


class _Nothing:
    """The services of endpoints that need none."""


def health_endpoints(components: Mapping[str, Component]) -> Endpoints[Any]:
    """`/health/live`: the process answers. `/health/ready`: all its components work; else 503."""
    endpoints: Endpoints[Any] = Endpoints(_Nothing, api=None)

    @endpoints.get("/health/live", public=True)
    async def live() -> RawReply:
        return _report({"process": None})

    @endpoints.get("/health/ready", public=True)
    async def ready() -> RawReply:
        problems = await asyncio.gather(*(_look(component) for component in components.values()))
        return _report(dict(zip(components, problems, strict=True)))

    return endpoints


def metrics_endpoints(metrics: Metrics) -> Endpoints[Any]:
    """`/metrics`, on listeners that serve them."""
    endpoints: Endpoints[Any] = Endpoints(_Nothing, api="metrics", cors=False)

    @endpoints.get("/metrics", public=True)
    async def show_metrics() -> RawReply:
        return RawReply(metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    return endpoints


async def _look(component: Component) -> str | None:
    try:
        async with asyncio.timeout(COMPONENT_SECONDS):
            return await component()
    except TimeoutError:
        return f"no answer within {COMPONENT_SECONDS:g} seconds"
    except Exception:  # what is broken may break in any way; the report must not
        logger.warning("a component is not ready", exc_info=True)
        return "failed"


def _report(problems: Mapping[str, str | None]) -> RawReply:
    works = not any(problems.values())
    report = {
        "status": "ok" if works else "unavailable",
        "components": {name: problem or "ok" for name, problem in problems.items()},
    }
    return RawReply.json(report, 200 if works else 503)
