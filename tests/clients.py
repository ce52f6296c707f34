"""Clients that speak HTTP to a running server: alice and bob."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
from multidict import CIMultiDictProxy

REGISTER = "/_matrix/client/v3/register"
LOGIN = "/_matrix/client/v3/login"


@dataclass(frozen=True)
class Response:
    """An answer with its JSON; None where the body is empty or no JSON."""

    status: int
    body: Any
    headers: CIMultiDictProxy[str]

    @property
    def error(self) -> tuple[int, str]:
        """The status and the errcode of a standard error response."""
        return self.status, self.body["errcode"]


class Client:
    """One user's client, or nobody's when it has no access token."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        base_url: str,
        *,
        user_id: str = "",
        device_id: str = "",
        access_token: str | None = None,
        password: str = "",
    ) -> None:
        self._http = http
        self.base_url = base_url
        self.user_id = user_id
        self.device_id = device_id
        self.access_token = access_token
        self.password = password

    def with_token(self, access_token: str | None) -> Client:
        """The same user's client with another access token, or without."""
        return Client(
            self._http,
            self.base_url,
            user_id=self.user_id,
            device_id=self.device_id,
            access_token=access_token,
            password=self.password,
        )

    def as_user(self, user: Client) -> Client:
        """The client of a user, who may have logged in elsewhere, that asks the same server as this one."""
        return Client(
            self._http,
            self.base_url,
            user_id=user.user_id,
            device_id=user.device_id,
            access_token=user.access_token,
            password=user.password,
        )

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Response:
        return await self.send("GET", path, query=query)

    async def put(self, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Response:
        return await self.send("PUT", path, body, query=query)

    async def post(self, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Response:
        return await self.send("POST", path, body, query=query)

    async def delete(self, path: str, body: Any = None) -> Response:
        return await self.send("DELETE", path, body)

    async def send(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request; `body` is made JSON unless it is bytes, None sends none."""
        headers = {} if self.access_token is None else {"Authorization": f"Bearer {self.access_token}"}
        content = {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        async with self._http.request(
            method, self.base_url + path, params=query, headers=headers, **content
        ) as answer:
            is_json = answer.content_type == "application/json"
            return Response(answer.status, await answer.json() if is_json else None, answer.headers)

    async def register(self, username: str, password: str = "tea for two", **wanted: Any) -> Client:
        """Make an account where registration is open, and return its client."""
        auth = {"type": "m.login.dummy"}
        answer = await self.post(
            REGISTER, {"username": username, "password": password, "auth": auth, **wanted}
        )
        assert answer.status == 200, answer.body
        return self._of(answer, password)

    async def create_room(self, **wanted: Any) -> str:
        """Make a room, public unless another preset is wanted, and return its ID."""
        answer = await self.post("/_matrix/client/v3/createRoom", {"preset": "public_chat", **wanted})
        assert answer.status == 200, answer.body
        room_id: str = answer.body["room_id"]
        return room_id

    async def in_room(self, method: str, room_id: str, rest: str, body: Any = None) -> Any:
        """A request about a room that has to succeed; returns its JSON."""
        answer = await self.send(method, f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/{rest}", body)
        assert answer.status == 200, answer.body
        return answer.body

    async def join(self, room_id: str) -> None:
        await self.in_room("POST", room_id, "join", {})

    async def say(self, room_id: str, text: str, txn_id: str | None = None) -> str:
        """Send a text message and return its event ID."""
        content = {"msgtype": "m.text", "body": text}
        path = f"send/m.room.message/{txn_id or uuid4().hex}"
        event_id: str = (await self.in_room("PUT", room_id, path, content))["event_id"]
        return event_id

    async def set_state(self, room_id: str, event_type: str, content: Any, state_key: str = "") -> str:
        """Set a piece of a room's state and return its event ID."""
        path = f"state/{event_type}/{quote(state_key, safe='')}"
        event_id: str = (await self.in_room("PUT", room_id, path, content))["event_id"]
        return event_id

    async def sync(self, since: str | None = None, **query: Any) -> Any:
        """The JSON of a sync that has to succeed; a `filter` is given as JSON, `timeout` in ms."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
        if since is not None:
            texts["since"] = since
        answer = await self.get("/_matrix/client/v3/sync", texts)
        assert answer.status == 200, answer.body
        return answer.body

    async def log_in(self, user: Client, **wanted: Any) -> Client:
        """Log a user in once more, by password."""
        answer = await self.post(LOGIN, password_login(user.user_id, user.password, **wanted))
        assert answer.status == 200, answer.body
        return self._of(answer, user.password)

    def _of(self, answer: Response, password: str) -> Client:
        return Client(
            self._http,
            self.base_url,
            user_id=answer.body["user_id"],
            device_id=answer.body["device_id"],
            access_token=answer.body["access_token"],
            password=password,
        )


def password_login(user: str, password: str, **wanted: Any) -> dict[str, Any]:
    """The body of a login by password."""
    identifier = {"type": "m.id.user", "user": user}
    return {"type": "m.login.password", "identifier": identifier, "password": password, **wanted}


def password_auth(user: Client, session: str | None = None) -> dict[str, Any]:
    """The `auth` of a request that a user confirms by password."""
    auth: dict[str, Any] = password_login(user.user_id, user.password)
    return auth if session is None else {**auth, "session": session}
