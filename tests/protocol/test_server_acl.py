"""Server ACLs: Client-Server API, "m.room.server_acl"; Appendices, "Glob-style matching"."""

from __future__ import annotations

import time
from typing import Any

import pytest

from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.server_acl import ServerAcl

ALL = ["*"]


@pytest.mark.parametrize(
    ("content", "server_name", "allowed"),
    [
        ({"allow": ALL}, "a.example", True),
        ({}, "a.example", False),
        ({"allow": []}, "a.example", False),
        ({"allow": ["a.example"]}, "b.a.example", False),
        ({"allow": ["*.example"]}, "b.a.example", True),
        ({"allow": ["*.example"]}, "example", False),
        ({"allow": ALL, "deny": ["*.evil.example"]}, "a.evil.example", False),
        ({"allow": ALL, "deny": ["*.evil.example"]}, "evil.example", True),
        ({"allow": ALL, "deny": ["evil.example"]}, "evil.example:8448", False),
        ({"allow": ALL, "deny": ["EVIL.example"]}, "evil.EXAMPLE", False),
        ({"allow": ALL, "deny": ["ev?l.example"]}, "evil.example", False),
        ({"allow": ALL, "deny": ["ev?l.example"]}, "evl.example", True),
        ({"allow": ALL, "deny": ["e*l*e"]}, "evil.example", False),
        ({"allow": ALL, "deny": ["a.example"]}, "axexample", True),
        ({"allow": ALL, "deny": ["a+.[a-z]xample"]}, "aa.example", True),
        ({"allow": ALL, "allow_ip_literals": False}, "1.2.3.4", False),
        ({"allow": ALL, "allow_ip_literals": False}, "1.2.3.4:8448", False),
        ({"allow": ALL, "allow_ip_literals": False}, "[2001:db8::1]:8448", False),
        ({"allow": ALL, "allow_ip_literals": False}, "a.example", True),
        ({"allow": ALL, "allow_ip_literals": True}, "1.2.3.4", True),
        ({"allow": ALL, "deny": ["1.2.3.*"]}, "1.2.3.4:80", False),
        ({"allow": ALL, "deny": ["[2001:db8::1]"]}, "[2001:db8::1]:80", False),
    ],
)
def test_an_acl_says_which_servers_may_take_part(
    content: dict[str, Any], server_name: str, allowed: bool
) -> None:
    assert ServerAcl.of(content).allows(ServerName(server_name)) is allowed


@pytest.mark.invariant("SEC-JSON-2")
@pytest.mark.parametrize("odd", [None, "*", 5, {}, [5, None, ["*"]]])
def test_sec_json_2_what_is_malformed_in_an_acl_counts_as_absent(odd: Any) -> None:
    a_server = ServerName("a.example")

    assert ServerAcl.of({"allow": odd}).allows(a_server) is False
    assert ServerAcl.of({"allow": ALL, "deny": odd}).allows(a_server) is True
    assert ServerAcl.of({"allow": ALL, "allow_ip_literals": odd}).allows(ServerName("1.2.3.4")) is True


@pytest.mark.invariant("SEC-REGEX-1")
def test_sec_regex_1_an_acl_is_matched_in_linear_time() -> None:
    acl = ServerAcl.of({"allow": ALL, "deny": ["*a" * 120 + "b"] * 200})
    started = time.process_time()

    assert acl.allows(ServerName("a" * 250)) is True
    assert time.process_time() - started < 1
