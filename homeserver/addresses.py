"""Addresses: which may be connected to, and which a host name has."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeAlias

IpAddress: TypeAlias = IPv4Address | IPv6Address
IpRange: TypeAlias = IPv4Network | IPv6Network

_NAT64: Final = ip_network("64:ff9b::/96")
_GLOBAL_IPV6: Final = ip_network("2000::/3")
_NOT_PUBLIC: Final[Sequence[IpRange]] = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, and what is reserved above it
        "2001::/23",  # Teredo among them, which leads to any IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4, which does too
        "3fff::/20",
    )
]
"""What no server on the Internet has: the registries of special-purpose addresses, and multicast.

Source: RFC 6890 and the IANA registries of IPv4 and IPv6 special-purpose addresses.
"""


def may_connect(address: IpAddress, allowed_ranges: Sequence[IpRange]) -> bool:
    """Whether an address is public, or in one of the ranges that are allowed besides.

    An IPv6 address that only stands for an IPv4 address, as with NAT64, is judged as that one.
    """
    address = _meant(address)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    if any(address in network for network in allowed_ranges):
        return True
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def _meant(address: IpAddress) -> IpAddress:
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class SystemResolver:
    """The addresses of host names, as the system finds them, remembered for a moment.

    It has threads of its own, so that a slow name server holds up nothing else. Raises OSError.
    """

    CACHE_SIZE: Final = 10_000
    CACHE_S: Final = 30.0

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="resolver")
        self._cache: OrderedDict[str, tuple[float, Sequence[str]]] = OrderedDict()

    async def __call__(self, host: str) -> Sequence[str]:
        """The addresses of one host."""
        loop = asyncio.get_running_loop()
        cached = self._cache.get(host)
        if cached is not None and cached[0] > loop.time():
            return cached[1]
        addresses = await loop.run_in_executor(self._threads, _addresses_of, host)
        self._cache[host] = (loop.time() + self.CACHE_S, addresses)
        self._cache.move_to_end(host)
        if len(self._cache) > self.CACHE_SIZE:
            self._cache.popitem(last=False)
        return addresses

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses_of(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
