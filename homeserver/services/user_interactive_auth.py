"""User-interactive authentication: some requests need a fresh proof of who sends them.

The client proves it in stages, over several requests that name one session. A session belongs to a user,
method and path, is good for one call, and ends by itself.
Source: Client-Server API, "User-Interactive Authentication API".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import orjson

from homeserver.errors import (
    BadJson,
    BadRequest,
    Forbidden,
    MissingParam,
    TooLarge,
    UiAuthRequired,
    Unauthorized,
)
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.access_tokens import Requester
from homeserver.services.clock import Clock
from homeserver.services.secrets import new_secret, secret_hash
from storage import ui_auth_sessions
from storage.database import Database, Transaction
from storage.ui_auth_sessions import NOBODY, UiAuthSession

SESSION_LIFETIME_MS: Final = 60 * 60 * 1000
MAX_SESSIONS_PER_USER: Final = 20
MAX_SESSIONS_OF_NOBODY: Final = 10_000
MAX_PARAMS_BYTES: Final = 16_384


Flows: TypeAlias = Sequence[Sequence[str]]
"""Ways to complete the authentication: each the stages to pass, in order."""


class StageFailed(Exception):
    """A stage was attempted and not passed; the client may try again."""

    def __init__(self, errcode: str, error: str) -> None:
        super().__init__(error)
        self.errcode = errcode
        self.error = error


@dataclass(frozen=True)
class Operation:
    """The request that needs the proof; nobody may be logged in yet."""

    method: str
    path: str
    requester: Requester | None = None

    @property
    def user_nid(self) -> int:
        """The number of the user who asks."""
        return NOBODY if self.requester is None else self.requester.user_nid

    @property
    def key(self) -> bytes:
        """What a session is bound to, beside its user."""
        return f"{self.method} {self.path}".encode(errors="surrogatepass")


class Stage(Protocol):
    """One way to prove something."""

    async def attempt(self, auth: JsonObject, operation: Operation) -> str:
        """What the stage proves, for the operation to use.

        Raises StageFailed for what may be tried again, a MatrixError for what may not.
        """
        ...


Remember: TypeAlias = Callable[[], Awaitable[JsonObject]]
"""The parameters of a request in the form in which a session may keep them: no password in clear."""


@dataclass(frozen=True)
class Proof:
    """A flow is complete.

    `proved` is what each stage proved. `params` are the parameters of an earlier request of the session, for
    a request that itself has none but `auth`. The operation takes place after `UserInteractiveAuth.finish`.
    """

    proved: Mapping[str, str]
    params: JsonObject | None = None
    session_hash: bytes | None = None


@dataclass(frozen=True)
class UserInteractiveAuth:
    """Runs sessions of user-interactive authentication; `stages` are by their authentication type."""

    database: Database
    clock: Clock
    stages: Mapping[str, Stage]
    stage_params: Mapping[str, JsonObject] = field(default_factory=dict)

    async def authenticate(
        self,
        operation: Operation,
        flows: Flows,
        auth: JsonObject | None,
        *,
        has_params: bool,
        remember: Remember,
    ) -> Proof:
        """Take the request's `auth` one step further; returns when a flow is complete.

        `has_params`: whether the request has any parameter beside `auth`.
        Raises UiAuthRequired with the challenge, BadRequest for an unknown session, Forbidden for a session
        of another operation or user.
        """
        auth = auth or None  # some clients begin with an empty object
        session_id = None if auth is None else _text(auth, "session")
        session = None if session_id is None else await self._load(operation, session_id)
        completed: dict[str, str] = {} if session is None else orjson.loads(session.completed)
        known = len(completed)
        failure = None
        if auth is not None:
            stage = _text(auth, "type")
            if stage is None and session is None:
                raise MissingParam("auth needs a type")
            if stage is not None and stage not in completed:
                try:
                    completed[stage] = await self._attempt(stage, auth, operation, flows, completed)
                except StageFailed as stage_failed:
                    failure = stage_failed
        is_complete = any(list(flow) == list(completed) for flow in flows)
        if session is not None and len(completed) > known:
            params = _encoded(await remember()) if has_params and not is_complete else session.params
            async with self.database.connection() as tx:
                await ui_auth_sessions.update(tx, session.session_hash, params, orjson.dumps(completed))
        if is_complete and session is None:
            return Proof(completed)
        if is_complete and session is not None:
            earlier = None if has_params else orjson.loads(session.params)
            return Proof(completed, earlier, session.session_hash)
        if session_id is None:
            session_id = await self._begin(operation, _encoded(await remember()), orjson.dumps(completed))
        raise self._challenge(flows, session_id, completed, failure)

    async def finish(self, tx: Transaction, proof: Proof) -> None:
        """Use a proof up, in the transaction of the operation where it has one.

        Raises Unauthorized when another request did so first.
        """
        if proof.session_hash is not None and not await ui_auth_sessions.delete(tx, proof.session_hash):
            raise Unauthorized("this authentication session has already been used")

    async def _attempt(
        self,
        stage: str,
        auth: JsonObject,
        operation: Operation,
        flows: Flows,
        completed: Mapping[str, str],
    ) -> str:
        so_far = [*completed, stage]
        if not any(list(flow[: len(so_far)]) == so_far for flow in flows):
            raise StageFailed("M_FORBIDDEN", "this is not a next stage of any flow")
        return await self.stages[stage].attempt(auth, operation)

    async def _load(self, operation: Operation, session_id: str) -> UiAuthSession:
        async with self.database.connection() as tx:
            session = await ui_auth_sessions.load(tx, secret_hash(session_id), self.clock())
        if session is None:
            raise BadRequest("this authentication session is not known; begin again without auth")
        if session.operation != operation.key or session.user_nid != operation.user_nid:
            raise Forbidden("this authentication session was begun for another request")
        return session

    async def _begin(self, operation: Operation, params: bytes, completed: bytes) -> str:
        session_id = new_secret()
        now = self.clock()
        session = UiAuthSession(
            secret_hash(session_id),
            operation.user_nid,
            operation.key,
            params,
            completed,
            now,
            now + SESSION_LIFETIME_MS,
        )
        count = MAX_SESSIONS_OF_NOBODY if operation.requester is None else MAX_SESSIONS_PER_USER
        async with self.database.transaction() as tx:
            await ui_auth_sessions.delete_expired(tx, now)
            await ui_auth_sessions.insert(tx, session)
            await ui_auth_sessions.keep_newest(tx, operation.user_nid, count)
        return session_id

    def _challenge(
        self, flows: Flows, session_id: str, completed: Mapping[str, str], failure: StageFailed | None
    ) -> UiAuthRequired:
        challenge: dict[str, Any] = {
            "flows": [{"stages": list(flow)} for flow in flows],
            "params": {
                stage: self.stage_params[stage]
                for flow in flows
                for stage in flow
                if stage in self.stage_params
            },
            "session": session_id,
        }
        if completed:
            challenge["completed"] = list(completed)
        if failure is None:
            return UiAuthRequired(**challenge)
        return UiAuthRequired(failure.error, failure.errcode, **challenge)


def _text(auth: JsonObject, key: str) -> str | None:
    value = auth.get(key)
    if value is not None and not isinstance(value, str):
        raise BadJson(f"auth.{key} is not a string")
    return value


def _encoded(params: JsonObject) -> bytes:
    encoded = orjson.dumps(params)
    if len(encoded) > MAX_PARAMS_BYTES:
        raise TooLarge(f"the parameters of such a request have at most {MAX_PARAMS_BYTES} bytes")
    return encoded
