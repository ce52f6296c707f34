"""How often one user or address may do something: token buckets, by named limit."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from homeserver.errors import LimitExceeded

MAX_BUCKETS: Final = 100_000
_IPV6_SITE_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` at once, and from then on `per_second`."""

    per_second: float
    burst: int


class _Bucket:
    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at


class RateLimiter:
    """The buckets of all limits. At most `max_buckets` are kept; the longest unused is forgotten first."""

    def __init__(
        self, limits: Mapping[str, Limit], *, enabled: bool = True, max_buckets: int = MAX_BUCKETS
    ) -> None:
        self._limits = dict(limits)
        self._enabled = enabled
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    def knows(self, name: str) -> bool:
        """Whether there is a limit of this name."""
        return name in self._limits

    def check(self, name: str, who: str, now: float, count: int = 1) -> None:
        """Count one `name`, or `count` of them, of `who`: a user ID, an address (see `address_key`), or such.

        More than the burst are allowed together when nothing was counted lately, and are waited for
        afterwards. `now`: seconds of a clock that never goes back. Raises LimitExceeded with the time until
        it would be allowed; such a call counts nothing. KeyError for a limit that does not exist.
        """
        limit = self._limits[name]
        if not self._enabled:
            return
        key = (name, who)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(limit.burst, now)
            if len(self._buckets) > self._max_buckets:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            bucket.tokens = min(limit.burst, bucket.tokens + (now - bucket.at) * limit.per_second)
            bucket.at = now
        needed = min(count, limit.burst)
        if bucket.tokens < needed:
            raise LimitExceeded(math.ceil((needed - bucket.tokens) / limit.per_second * 1000))
        bucket.tokens -= count

    def __len__(self) -> int:
        return len(self._buckets)


def address_key(address: str) -> str:
    """What limits count an address by: of IPv6 the first 64 bits, for the rest is its owner's choice."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(ip) >> _IPV6_SITE_BITS << _IPV6_SITE_BITS))
