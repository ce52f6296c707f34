"""A small application: endpoints of every shape, for tests of what surrounds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from homeserver.config import Listener
from homeserver.errors import Forbidden, LimitExceeded, MissingToken, UnknownToken
from homeserver.http.application import HttpApplication
from homeserver.http.endpoints import Authentication, Endpoints
from homeserver.http.health import Component
from homeserver.http.models import (
    Body,
    EventIdField,
    JsonBody,
    NotNegative,
    OptionalBody,
    OptionalJsonBody,
    Path,
    Query,
    RawBody,
    RawReply,
    Reply,
    RoomAliasField,
    RoomIdField,
    UserIdField,
)
from homeserver.http.rate_limit import Limit, RateLimiter
from homeserver.http.request import PATIENCE, Patience, Request, RequestInfo
from homeserver.metrics import Metrics
from homeserver.protocol import errors as protocol_errors


@dataclass
class TeaServices:
    """What the handlers of the tea house call."""

    calls: list[str] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Guest:
    user_id: str


async def authenticate(services: TeaServices, request: Request) -> Guest:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not token:
        raise MissingToken("no token")
    if token == "stale":
        raise UnknownToken("stale token")
    return Guest(f"@{token}:test")


by_token = Authentication[TeaServices, Guest](
    Guest, authenticate, lambda guest: None if guest.user_id == "@admin:test" else guest.user_id
)


@dataclass(frozen=True)
class Weather:
    text: str


async def weather(services: TeaServices, request: Request) -> Weather:
    return Weather("rain")


endpoints = Endpoints(
    TeaServices, by_token, {Weather: weather}, old_prefixes={"/_matrix/client/v3/": ("/_matrix/client/r0/",)}
)
pages: Endpoints[TeaServices] = Endpoints(TeaServices, api="web", cors=False)
federation: Endpoints[TeaServices] = Endpoints(TeaServices, api="federation")


class SendPath(Path):
    room_id: RoomIdField
    event_type: str
    txn_id: str


class StatePath(Path):
    room_id: RoomIdField
    event_type: str
    state_key: str = ""


class EventPath(Path):
    room_id: RoomIdField
    event_id: EventIdField


class AliasPath(Path):
    room_alias: RoomAliasField


class ErrorPath(Path):
    kind: str


class PagePath(Path):
    file: str


class Sent(Reply):
    event_id: str
    soft_failed: bool | None = None
    from_: str | None = None


class Paging(Query):
    from_: str | None = None
    limit: NotNegative = 10
    dir: Literal["b", "f"] = "b"
    full_state: bool = False
    via: list[str] = []


class Cup(Body):
    colour: str
    size: int = 1


class Order(Body):
    user_id: UserIdField
    amount: int
    hot: bool = True
    cups: list[Cup] = []
    kind: Literal["green", "black"] = "green"
    from_: str | None = None


class Reason(OptionalBody):
    reason: str | None = None


@endpoints.put("/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", max_body_bytes=4096)
async def send(services: TeaServices, requester: Guest, path: SendPath, body: JsonBody) -> Sent:
    services.calls.append(path.txn_id)
    return Sent(event_id=f"{requester.user_id} {path.room_id} {path.event_type} {path.txn_id} {body}")


@endpoints.get("/_matrix/client/v3/rooms/{roomId}/event/{eventId}", public=True)
async def get_event(path: EventPath) -> dict[str, Any]:
    return {"event_id": path.event_id}


@endpoints.get(
    "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
    public=True,
    aliases=(
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}",
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/",
    ),
)
async def get_state(path: StatePath) -> dict[str, Any]:
    return {"type": path.event_type, "state_key": path.state_key}


@endpoints.get("/_matrix/client/v3/directory/room/{roomAlias}", public=True)
async def get_alias(path: AliasPath) -> dict[str, Any]:
    return {"alias": path.room_alias}


@endpoints.get("/_matrix/client/v3/messages", public=True)
async def get_messages(query: Paging) -> dict[str, Any]:
    return query.model_dump()


@endpoints.post("/_matrix/client/v3/order", public=True)
async def order(body: Order) -> dict[str, Any]:
    return body.model_dump()


@endpoints.post("/_matrix/client/v3/leave", public=True)
async def leave(body: Reason) -> dict[str, Any]:
    return {"reason": body.reason}


@endpoints.post("/_matrix/client/v3/forget", public=True)
async def forget(body: OptionalJsonBody) -> dict[str, Any]:
    return {"body": body}


@endpoints.post("/_matrix/client/v3/logout")
async def logout(requester: Guest) -> Reply:
    return Reply()


@endpoints.post("/_matrix/client/v3/bytes", public=True, max_body_bytes=1000)
async def count_bytes(body: RawBody) -> dict[str, Any]:
    return {"bytes": len(body)}


@endpoints.post("/_matrix/media/v3/upload", public=True, max_body_bytes=200_000)
async def upload(request: Request) -> dict[str, Any]:
    sizes = [len(piece) async for piece in request.stream_body()]
    return {"bytes": sum(sizes)}


@endpoints.get("/_matrix/client/versions", public=True)
async def get_versions(requester: Guest | None, sky: Weather) -> dict[str, Any]:
    return {"user_id": None if requester is None else requester.user_id, "weather": sky.text}


@endpoints.get("/_matrix/client/v3/whoami", public=True)
async def where_from(info: RequestInfo) -> dict[str, Any]:
    return {"address": info.client_address, "user_agent": info.user_agent, "request_id": info.request_id}


@endpoints.get("/_matrix/client/v3/raw", public=True)
async def get_raw() -> RawReply:
    return RawReply(b"[1]", status=201, headers={"ETag": '"1"'})


@endpoints.get("/_matrix/client/v3/download", public=True)
async def download(request: Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    await response.write(b"png")
    return response


@endpoints.get("/_matrix/client/v3/large", public=True)
async def get_large() -> RawReply:
    return RawReply(bytes(50_000_000))


@endpoints.get("/_matrix/client/v3/error/{kind}", public=True)
async def fail(path: ErrorPath) -> Reply:
    raise FAILURES[path.kind]


FAILURES: dict[str, Exception] = {
    "forbidden": Forbidden("not in this house", detail=7),
    "limited": LimitExceeded(1001),
    "bug": RuntimeError("the secret recipe"),
    "no-json": protocol_errors.BadJson("not JSON", syntax=True),
    "bad-json": protocol_errors.BadJson("twice"),
    "identifier": protocol_errors.InvalidIdentifier("not a user ID"),
    "version": protocol_errors.UnknownRoomVersion("99"),
    "large": protocol_errors.EventTooLarge("large"),
    "event": protocol_errors.InvalidEvent("no type"),
    "signature": protocol_errors.BadSignature("wrong"),
    "content": protocol_errors.InvalidContent("10.1", "no integer"),
    "not-allowed": protocol_errors.NotAllowed("4.1", "not joined"),
    "missing": protocol_errors.MissingEvents(["$a"]),
}


@endpoints.post("/_matrix/client/v3/join", rate_limit="join")
async def join(requester: Guest) -> Reply:
    return Reply()


@endpoints.post("/_matrix/client/v3/register", public=True, rate_limit="register")
async def register() -> Reply:
    return Reply()


@endpoints.get("/_matrix/client/v3/sync", public=True, cancellable=True)
async def sync(services: TeaServices) -> Reply:
    await _wait(services)
    return Reply()


@endpoints.post("/_matrix/client/v3/createRoom", public=True)
async def create_room(services: TeaServices) -> Reply:
    await _wait(services)
    return Reply()


async def _wait(services: TeaServices) -> None:
    services.waiting.set()
    try:
        await asyncio.wait_for(services.go_on.wait(), 20)
    except asyncio.CancelledError:
        services.cancelled.set()
        raise
    services.calls.append("finished")


@pages.get("/", public=True)
async def show_home() -> RawReply:
    return RawReply(b"<p>tea</p>", headers={"Content-Type": "text/html; charset=utf-8"})


@pages.get("/static/{file*}", public=True)
async def show_file(path: PagePath) -> dict[str, Any]:
    return {"file": path.file}


@federation.get("/_matrix/federation/v1/version", public=True)
async def get_version() -> dict[str, Any]:
    return {"server": {"name": "tea"}}


@dataclass(frozen=True)
class TeaHouse:
    """A tea house that is open: `urls` has one for each listener."""

    application: HttpApplication[TeaServices]
    services: TeaServices
    metrics: Metrics
    urls: Sequence[str]
    port: int

    @property
    def url(self) -> str:
        return self.urls[0]


@asynccontextmanager
async def open_tea_house(
    *listeners: Listener,
    limits: bool = True,
    readiness: dict[str, Component] | None = None,
    patience: Patience = PATIENCE,
) -> AsyncIterator[TeaHouse]:
    """Serve the endpoints on the listeners, on one of all kinds by default."""
    services, metrics = TeaServices(), Metrics()
    application = HttpApplication(
        listeners or [Listener(port=0, apis=("client", "federation", "admin", "web", "metrics"))],
        [endpoints, pages, federation],
        services,
        metrics=metrics,
        rate_limiter=RateLimiter({"join": Limit(0.001, 2), "register": Limit(0.001, 3)}, enabled=limits),
        readiness=readiness,
        patience=patience,
    )
    await application.start()
    addresses = application.addresses
    try:
        yield TeaHouse(application, services, metrics, [a.url for a in addresses], addresses[0].port)
    finally:
        await application.stop(grace_seconds=1)
