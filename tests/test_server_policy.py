"""With which servers we talk."""

from __future__ import annotations

import pytest

from homeserver.config import Config
from homeserver.protocol.identifiers import ServerName
from homeserver.server_policy import ServerPolicy


def policy(**federation: object) -> ServerPolicy:
    return ServerPolicy.of(Config.model_validate({"server_name": "our.test", "federation": federation}))


@pytest.mark.parametrize(
    ("federation", "permitted", "refused"),
    [
        ({}, ["tea.test", "127.0.0.1:8448", "OUR.test", "our.test:1"], ["our.test"]),
        (
            {"deny_servers": ["Evil.test", "half.test:1"]},
            ["tea.test", "not.evil.test", "half.test", "half.test:2"],
            [
                "evil.test",
                "EVIL.TEST",
                "evil.test:8448",
                "evil.test.",
                "evil.test.:1",
                "half.test:1",
                "no name",
            ],
        ),
        ({"allow_servers": ["Tea.test"]}, ["tea.test", "TEA.test"], ["tea.test:1", "other.test"]),
        ({"allow_servers": []}, [], ["tea.test"]),
        ({"enabled": False, "allow_servers": ["tea.test"]}, [], ["tea.test"]),
        ({"allow_servers": ["evil.test"], "deny_servers": ["evil.test"]}, [], ["evil.test"]),
    ],
)
def test_lists_say_who_is_talked_to(
    federation: dict[str, object], permitted: list[str], refused: list[str]
) -> None:
    lists = policy(**federation)

    assert all(lists.permits(ServerName(name)) for name in permitted)
    assert not any(lists.permits(ServerName(name)) for name in refused)
