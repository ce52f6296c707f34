from __future__ import annotations

import pytest

from homeserver.errors import LimitExceeded
from homeserver.http.rate_limit import Limit, RateLimiter, address_key
from tests.http.conftest import Ask
from tests.http.tea_house import TeaHouse, open_tea_house

JOIN = "/_matrix/client/v3/join"


def allowed(limiter: RateLimiter, who: str, now: float, name: str = "join") -> bool:
    try:
        limiter.check(name, who, now)
    except LimitExceeded:
        return False
    return True


def test_a_burst_is_allowed_and_then_so_many_a_second() -> None:
    limiter = RateLimiter({"join": Limit(per_second=2, burst=3)})

    assert [allowed(limiter, "alice", 100) for _ in range(4)] == [True, True, True, False]
    assert [allowed(limiter, "alice", 100.5) for _ in range(2)] == [True, False]
    assert [allowed(limiter, "alice", 1000) for _ in range(4)] == [True, True, True, False]


def test_a_refusal_says_when_it_would_be_allowed_and_counts_nothing() -> None:
    limiter = RateLimiter({"join": Limit(per_second=0.5, burst=1)})
    limiter.check("join", "alice", 100)

    for now, wait in [(100, 2000), (100.5, 1500), (101.9995, 1)]:
        with pytest.raises(LimitExceeded) as refused:
            limiter.check("join", "alice", now)
        assert refused.value.retry_after_ms == wait
    limiter.check("join", "alice", 102)


def test_more_than_a_burst_at_once_are_waited_for_afterwards() -> None:
    limiter = RateLimiter({"invite": Limit(per_second=1, burst=3)})
    limiter.check("invite", "alice", 100, 10)

    with pytest.raises(LimitExceeded) as refused:
        limiter.check("invite", "alice", 100)
    assert refused.value.retry_after_ms == 8000
    limiter.check("invite", "alice", 108)
    with pytest.raises(LimitExceeded) as refused:
        limiter.check("invite", "alice", 108, 10)
    assert refused.value.retry_after_ms == 3000


def test_users_and_limits_are_counted_apart() -> None:
    limiter = RateLimiter({"join": Limit(1, 1), "login": Limit(1, 1)})

    assert allowed(limiter, "alice", 100)
    assert allowed(limiter, "bob", 100)
    assert allowed(limiter, "alice", 100, "login")
    assert not allowed(limiter, "alice", 100)


def test_no_more_than_so_many_are_remembered() -> None:
    limiter = RateLimiter({"join": Limit(0.001, 1)}, max_buckets=3)
    for name in ("alice", "bob", "carol"):
        limiter.check("join", name, 100)
    assert not allowed(limiter, "alice", 100)

    limiter.check("join", "dave", 100)

    assert len(limiter) == 3
    assert not allowed(limiter, "alice", 100)
    assert allowed(limiter, "bob", 100)


def test_no_limit_holds_when_they_are_lifted() -> None:
    limiter = RateLimiter({"join": Limit(0.001, 1)}, enabled=False)

    assert all(allowed(limiter, "alice", 100) for _ in range(10))
    with pytest.raises(KeyError):
        limiter.check("unknown", "alice", 100)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_of_ipv6_the_network_is_counted(address: str, key: str) -> None:
    assert address_key(address) == key


@pytest.mark.invariant("SEC-ABUSE-1")
async def test_sec_abuse_1_a_user_is_limited_by_name_not_by_address(ask: Ask) -> None:
    async with open_tea_house() as house:
        alice = [await join(ask, house, "alice") for _ in range(3)]
        bob = await join(ask, house, "bob")
        admin = [await join(ask, house, "admin") for _ in range(5)]

    assert alice == [200, 200, 429]
    assert bob == 200
    assert admin == [200] * 5


async def test_without_limits_all_is_allowed(ask: Ask) -> None:
    async with open_tea_house(limits=False) as house:
        assert [await join(ask, house, "alice") for _ in range(5)] == [200] * 5


async def join(ask: Ask, house: TeaHouse, user: str) -> int:
    return (await ask("POST", JOIN, headers={"Authorization": f"Bearer {user}"}, of=house)).status
