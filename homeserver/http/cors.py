"""The headers that let clients in browsers read our responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CORS_HEADERS: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-ID",
}
"""Source: Client-Server API, "Web Browser Clients"; which headers are exposed is ours."""
