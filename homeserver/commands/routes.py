"""lair-chat routes: every endpoint that is served."""

from __future__ import annotations

import argparse

from homeserver.app import ENDPOINTS
from homeserver.commands.command_parser import Subparsers
from homeserver.http.application import routes
from homeserver.http.health import health_endpoints, metrics_endpoints
from homeserver.metrics import Metrics


def add_to(commands: Subparsers) -> None:
    """Add `routes`."""
    parser = commands.add_parser("routes", help="list every endpoint: method, path, handler")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each method and path."""
    table = routes([*ENDPOINTS, health_endpoints({}), metrics_endpoints(Metrics())])
    width = max(len(route.path) for route in table)
    for route in table:
        print(f"{route.method:6}  {route.path:{width}}  {route.handler}")
    return 0
