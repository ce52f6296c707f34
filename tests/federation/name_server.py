"""A name server on a loopback address, which answers SRV queries as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset


@dataclass
class NameServer:
    """`records`: name -> texts as "priority weight port target"; names that are no key do not exist."""

    port: int = 0
    records: dict[str, list[str]] = field(default_factory=dict)
    ttl: int = 3600
    fails: bool = False
    asked: list[str] = field(default_factory=list)

    def resolver(self) -> dns.asyncresolver.Resolver:
        """A resolver that asks this server only."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return resolver

    def answer(self, query: bytes) -> bytes:
        """The answer to one query."""
        message = dns.message.from_wire(query)
        response = dns.message.make_response(message)
        response.flags |= dns.flags.RA
        name = message.question[0].name
        text = name.to_text(omit_final_dot=True)
        self.asked.append(text)
        if self.fails:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif text not in self.records:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif self.records[text]:
            response.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "SRV", *self.records[text]))
        return response.to_wire()


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        self._transport.sendto(self._server.answer(data), addr)


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Answer queries while the block lasts."""
    server = NameServer()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Protocol(server), local_addr=("127.0.0.1", 0)
    )
    server.port = transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        transport.close()
