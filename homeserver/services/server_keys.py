"""The keys of other servers: fetched from them, or from servers trusted to know them, and kept for ever.

What is fetched is remembered in memory, and in the database for all processes. A server is asked again only
when no key that is known will do; while that brings nothing new, it is asked ever more rarely.
Source: Server-Server API, "Retrieving server keys"; Room Versions, "Signing key validity period".
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from federation.outbound import requests
from federation.outbound.signed_client import FederationError, SignedClient
from homeserver.errors import Unauthorized, Unavailable
from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadJson, BadSignature, InvalidKey
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.server_key_responses import KeyResponse, make_key_response, parse_key_response
from homeserver.protocol.signing import (
    ServerKeys,
    sign_json,
    signature_key_ids,
    verify_signed_json,
)
from homeserver.protocol.strict_json import JsonObject, parse_json_object
from homeserver.services.clock import Clock
from homeserver.services.own_keys import OwnKeys
from storage import server_keys
from storage.database import Database
from storage.server_keys import StoredResponse

log = logging.getLogger(__name__)

OWN_LIST_VALIDITY_MS: Final = 24 * 3600 * 1000
"""How long other servers may keep the list of our keys."""
CACHED_SERVERS: Final = 10_000
FIRST_WAIT_MS: Final = 1000
LONGEST_WAIT_MS: Final = 5 * 60 * 1000
LONGEST_WAIT_FOR_NEW_KEYS_MS: Final = 30 * 1000
"""For a server that answers, but has none of the keys that are looked for: who names keys that nobody has
could otherwise keep a new one from being seen."""
MAX_FETCHES_AT_ONCE: Final = 200
FETCH_TIMEOUT_S: Final = 45.0
"""For the server itself and all notaries together, waiting for a turn included."""
ATTESTED_AGAIN_MS: Final = 60 * 1000
"""A list is not fetched again for others before that, whatever they ask for."""
NOTARY_TIMEOUT_S: Final = 20.0
"""How long one who asks us for the keys of others waits."""


@dataclass(slots=True)
class _Wait:
    """A server that was asked in vain: how often in a row, and when it may be asked again (ms)."""

    failures: int
    retry_ts: int


@dataclass(slots=True)
class _Memory:
    """What this process knows of other servers, the longest unused forgotten first."""

    keys: OrderedDict[ServerName, ServerKeys] = field(default_factory=OrderedDict)
    waits: OrderedDict[ServerName, _Wait] = field(default_factory=OrderedDict)
    fetching: dict[ServerName, asyncio.Future[None]] = field(default_factory=dict)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_FETCHES_AT_ONCE))

    def remember(self, server_name: ServerName, keys: ServerKeys) -> None:
        self.keys[server_name] = keys
        self.keys.move_to_end(server_name)
        if len(self.keys) > CACHED_SERVERS:
            self.keys.popitem(last=False)

    def must_wait(self, server_name: ServerName, now: int) -> bool:
        wait = self.waits.get(server_name)
        return wait is not None and now < wait.retry_ts

    def asked_in_vain(self, server_name: ServerName, now: int, *, answered: bool) -> None:
        wait = self.waits.get(server_name)
        failures = 1 if wait is None else wait.failures + 1
        longest_ms = LONGEST_WAIT_FOR_NEW_KEYS_MS if answered else LONGEST_WAIT_MS
        delay = min(FIRST_WAIT_MS << min(failures - 1, 20), longest_ms)
        self.waits[server_name] = _Wait(failures, now + delay)
        self.waits.move_to_end(server_name)
        if len(self.waits) > CACHED_SERVERS:
            self.waits.popitem(last=False)


@dataclass(frozen=True)
class KeyRing:
    """The keys of all servers. `notaries`: servers that are trusted to know the keys of others."""

    database: Database
    own: OwnKeys
    client: SignedClient
    notaries: Sequence[ServerName]
    clock: Clock
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False)

    async def keys_for(
        self, server_name: ServerName, key_ids: Collection[str], valid_at_ts: int
    ) -> ServerKeys:
        """All keys that are known of a server, after fetching where none of `key_ids` will do.

        `key_ids`: those with which something is signed; one of them is enough, and without any there is
        nothing to look for. `valid_at_ts`: the time in ms at which it was signed; 0 where any key will do.
        """
        if server_name == self.own.server_name:
            return self.own.verify_keys
        keys = self._memory.keys.get(server_name)
        if keys is None or not _suffices(keys, key_ids, valid_at_ts):
            keys = await self._load(server_name)
        while not _suffices(keys, key_ids, valid_at_ts):
            if (fetching := self._memory.fetching.get(server_name)) is not None:
                await asyncio.shield(fetching)
            elif self._memory.must_wait(server_name, self.clock()):
                break
            else:
                await self._fetch(server_name, key_ids, valid_at_ts)
            keys = await self._load(server_name)
        self._memory.remember(server_name, keys)
        return keys

    async def verify_request(self, origin: ServerName, request: JsonObject) -> None:
        """Check that a server signed a request, with a key that is valid now.

        `request`: as signed_request makes it, with the content if there is any. Raises Unauthorized.
        Source: Server-Server API, "Request Authentication".
        """
        now = self.clock()
        keys = await self.keys_for(origin, signature_key_ids(request, origin), now)
        try:
            verify_signed_json(request, origin, keys, valid_at=now)
        except (BadSignature, BadJson) as error:
            raise Unauthorized(str(error)) from None

    def own_response(self) -> JsonObject:
        """The list of our keys, as we publish it."""
        own = self.own
        return make_key_response(own.server_name, [own.current], own.old, self.clock() + OWN_LIST_VALIDITY_MS)

    async def attested(self, wanted: Mapping[ServerName, Mapping[str, int]]) -> list[JsonObject]:
        """The newest lists of keys of some servers, as they signed them, signed by us too.

        `wanted`: for each server the times in ms until which keys should be valid, by key ID; none for now.
        All keys of a server are in its list, asked for or not. What cannot be had anew is given as it was
        last seen; a server of which nothing is known is left out.
        Source: Server-Server API, POST /_matrix/key/v2/query.
        """
        async with self.database.connection() as tx:
            stored = await server_keys.load_responses(tx, wanted)
        stale = [
            server_name
            for server_name, keys in wanted.items()
            if server_name != self.own.server_name and not self._is_fresh(stored.get(server_name), keys)
        ]
        if stale:
            await self._fetch_all(stale)
            async with self.database.connection() as tx:
                stored = await server_keys.load_responses(tx, wanted)
        found = []
        for server_name in wanted:
            if server_name == self.own.server_name:
                found.append(self.own_response())
            elif server_name in stored:
                response = parse_json_object(stored[server_name].response)
                found.append(sign_json(response, self.own.server_name, self.own.current))
        return found

    async def _load(self, server_name: ServerName) -> ServerKeys:
        async with self.database.connection() as tx:
            return await server_keys.load(tx, server_name)

    async def _fetch_all(self, server_names: Iterable[ServerName]) -> None:
        """Ask servers for their keys, as far as time allows; what could be had is in the database."""
        try:
            async with asyncio.timeout(NOTARY_TIMEOUT_S), asyncio.TaskGroup() as tasks:
                for server_name in server_names:
                    tasks.create_task(self._fetch_for_others(server_name))
        except TimeoutError:
            log.debug("not all keys that were asked for came in time")

    async def _fetch_for_others(self, server_name: ServerName) -> None:
        if (fetching := self._memory.fetching.get(server_name)) is not None:
            await asyncio.shield(fetching)
        elif not self._memory.must_wait(server_name, self.clock()):
            try:
                await self._fetch(server_name, (), None)
            except Unavailable:
                log.warning("the keys of %s are not stored: the database cannot be reached", server_name)

    async def _fetch(
        self, server_name: ServerName, key_ids: Collection[str], valid_at_ts: int | None
    ) -> None:
        """Ask a server for its keys, then the notaries unless one of `key_ids` will do by now.

        `valid_at_ts`: None to ask only the server itself. Others who want its keys wait for this.
        """
        fetching = self._memory.fetching[server_name] = asyncio.get_running_loop().create_future()
        answered = False
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S), self._memory.turns:
                found = await self._ask_server(server_name)
                answered = found is not None
                if valid_at_ts is not None and (found is None or not _suffices(found, key_ids, valid_at_ts)):
                    found = await self._ask_notaries(server_name, key_ids, valid_at_ts)
        except TimeoutError:
            found = None
        finally:
            del self._memory.fetching[server_name]
            fetching.set_result(None)
        if found is None:
            self._memory.asked_in_vain(server_name, self.clock(), answered=answered)
        else:
            self._memory.waits.pop(server_name, None)

    async def _ask_server(self, server_name: ServerName) -> ServerKeys | None:
        """The keys that a server says it has; None where it says nothing that can be used."""
        try:
            answer = await requests.get_server_key(self.client, server_name)
            response = parse_key_response(answer, server_name, self.clock())
        except (FederationError, InvalidKey, BadSignature, BadJson) as error:
            log.info("the keys of %r cannot be fetched: %s", server_name, error)
            return None
        return await self._store(response, by_itself=True)

    async def _ask_notaries(
        self, server_name: ServerName, key_ids: Collection[str], valid_at_ts: int
    ) -> ServerKeys | None:
        """What the first notary knows that knows a key that will do; None where none does."""
        wanted = {server_name: dict.fromkeys(key_ids, valid_at_ts)}
        for notary in self.notaries:
            if notary in (server_name, self.own.server_name):
                continue
            try:
                answers = await requests.bulk_perspectives_key_query(self.client, notary, wanted)
                for answer in answers:
                    if not isinstance(answer, dict) or answer.get("server_name") != server_name:
                        continue
                    await self._check_notary(notary, answer)
                    response = parse_key_response(answer, server_name, self.clock())
                    found = await self._store(response, by_itself=False)
                    if _suffices(found, key_ids, valid_at_ts):
                        return found
            except (FederationError, InvalidKey, BadSignature, BadJson) as error:
                log.info("the notary %s does not give the keys of %r: %s", notary, server_name, error)
        return None

    async def _check_notary(self, notary: ServerName, answer: JsonObject) -> None:
        """Check that a notary signed its answer. Raises BadSignature, BadJson."""
        now = self.clock()
        key_ids = signature_key_ids(answer, notary)
        keys = self._memory.keys.get(notary) or await self._load(notary)
        if not _suffices(keys, key_ids, now) and not self._memory.must_wait(notary, now):
            found = await self._ask_server(notary)
            keys = found or keys
            if not _suffices(keys, key_ids, now):
                self._memory.asked_in_vain(notary, now, answered=found is not None)
        verify_signed_json(answer, notary, keys, valid_at=now)

    async def _store(self, response: KeyResponse, *, by_itself: bool) -> ServerKeys:
        """Keep what a list says, and return all keys of its server.

        `by_itself`: the server gave it just now, so it is the newest. A list that a notary gives may be older
        than what is known: it shortens and replaces nothing.
        """
        server_name, keys = response.server_name, {**response.current, **response.old}
        stored = StoredResponse(canonical_json(response.json), self.clock(), response.valid_until_ts)
        async with self.database.transaction() as tx:
            if by_itself:
                await server_keys.replace(tx, server_name, keys)
            else:
                await server_keys.extend(tx, server_name, keys)
            await server_keys.save_response(tx, server_name, stored, overwrite=by_itself)
            known = await server_keys.load(tx, server_name)
        self._memory.remember(server_name, known)
        return known

    def _is_fresh(self, stored: StoredResponse | None, keys: Mapping[str, int]) -> bool:
        """Whether a list can be given without asking its server.

        It can before half of its life is over if it is valid for long enough, and right after it was fetched.
        """
        if stored is None:
            return False
        now = self.clock()
        if now < stored.fetched_ts + ATTESTED_AGAIN_MS:
            return True
        half_life = stored.fetched_ts + (stored.valid_until_ts - stored.fetched_ts) // 2
        return now < half_life and stored.valid_until_ts >= max(keys.values(), default=now)


def _suffices(keys: ServerKeys, key_ids: Collection[str], valid_at_ts: int) -> bool:
    """Whether one of the keys that are asked for was valid then; none is asked for where there are no IDs."""
    if not key_ids:
        return True
    found = (keys.get(key_id) for key_id in key_ids)
    return any(key is not None and key.valid_until_ts >= valid_at_ts for key in found)
