"""SRV records: which hosts and ports offer a service of a name.

Source: RFC 2782; Server-Server API, "Resolving server names".
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from homeserver.http_client import Place

log = logging.getLogger(__name__)

CACHE_SIZE: Final = 10_000
MAX_RECORDS: Final = 50
LOOKUP_TIMEOUT_S: Final = 5.0
SHORTEST_TTL_S: Final = 60
LONGEST_TTL_S: Final = 24 * 3600
NONE_TTL_S: Final = 300
FAILURE_TTL_S: Final = 60
STALE_S: Final = 48 * 3600
"""So long after it was found an answer still serves while name servers fail."""


class SrvUnknown(Exception):
    """Whether there are records cannot be found out at the moment."""


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One record; `target` is "" where the name says that it has no such service."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class _Cached:
    records: Sequence[SrvRecord]
    found_ms: int
    fresh_until_ms: int


class SrvRecords:
    """Asks name servers for SRV records and remembers the answers. `clock`: ms."""

    def __init__(self, clock: Callable[[], int], resolver: dns.asyncresolver.Resolver | None) -> None:
        self._clock = clock
        self._resolver = resolver
        self._random = SystemRandom()
        self._cache: OrderedDict[str, _Cached] = OrderedDict()

    @classmethod
    def of_system(cls, clock: Callable[[], int]) -> SrvRecords:
        """Ask the name servers that the system names; without any there are no records."""
        try:
            return cls(clock, dns.asyncresolver.Resolver())
        except (dns.exception.DNSException, OSError) as error:
            log.warning("no name server is configured, so no SRV record is looked up: %s", error)
            return cls(clock, None)

    async def find(self, name: str) -> list[Place] | None:
        """Where the service of a name is offered, in the order in which to try; None without records.

        An empty list is a name that says it has no such service. Raises SrvUnknown.
        """
        cached = self._cache.get(name)
        if cached is None or cached.fresh_until_ms <= self._clock():
            cached = await self._refresh(name, cached)
        if not cached.records:
            return None
        return [
            (record.target, record.port)
            for record in in_order(cached.records, self._random.random)
            if record.target
        ]

    async def _refresh(self, name: str, old: _Cached | None) -> _Cached:
        now = self._clock()
        try:
            records, ttl_s = await self._look_up(name)
        except SrvUnknown:
            if old is None or now > old.found_ms + STALE_S * 1000:
                raise
            cached = _Cached(old.records, old.found_ms, now + FAILURE_TTL_S * 1000)
        else:
            cached = _Cached(records, now, now + ttl_s * 1000)
        self._cache[name] = cached
        self._cache.move_to_end(name)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return cached

    async def _look_up(self, name: str) -> tuple[Sequence[SrvRecord], int]:
        if self._resolver is None:
            return (), NONE_TTL_S
        try:
            answer = await self._resolver.resolve(f"{name}.", "SRV", lifetime=LOOKUP_TIMEOUT_S)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return (), NONE_TTL_S
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise SrvUnknown(f"{type(error).__name__} for {name}") from error
        records = [
            SrvRecord(
                data.priority, data.weight, data.port, data.target.to_text(omit_final_dot=True).strip(".")
            )
            for data in answer
            if isinstance(data, SRV)
        ][:MAX_RECORDS]
        assert answer.rrset is not None
        return records, min(max(answer.rrset.ttl, SHORTEST_TTL_S), LONGEST_TTL_S)


def in_order(records: Sequence[SrvRecord], random: Callable[[], float]) -> list[SrvRecord]:
    """The records in an order to try: by priority, and in one priority by chance after their weights.

    `random`: gives numbers from 0 to below 1. Source: RFC 2782.
    """
    ordered: list[SrvRecord] = []
    for priority in sorted({record.priority for record in records}):
        left = sorted((r for r in records if r.priority == priority), key=lambda record: record.weight)
        while left:
            weights = [record.weight for record in left]
            if not any(weights):
                weights = [1] * len(left)
            chosen, index = random() * sum(weights), 0
            while index < len(left) - 1 and chosen >= weights[index]:
                chosen -= weights[index]
                index += 1
            ordered.append(left.pop(index))
    return ordered
