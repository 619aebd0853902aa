from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.fleet.redis_url import parse_redis_url


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "db", "is_tls"),
    [
        ("redis://cache", "single", (("cache", 6379),), 0, False),
        ("rediss://user:word@cache:7000/3", "single", (("cache", 7000),), 3, True),
        ("redis://[::1]:7000?db=2", "single", (("::1", 7000),), 2, False),
        ("unix:///run/redis.sock?db=1", "unix", (), 1, False),
        ("redis+sentinel://a,b:1/main/4", "sentinel", (("a", 26379), ("b", 1)), 4, False),
        ("redis+cluster://a:1,b:2", "cluster", (("a", 1), ("b", 2)), 0, False),
        ("rediss+cluster://:word@a", "cluster", (("a", 6379),), 0, True),
    ],
)
def test_each_kind_of_address(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], db: int, is_tls: bool
) -> None:
    parsed = parse_redis_url(url)
    assert (parsed.kind, parsed.hosts, parsed.db, parsed.is_tls) == (kind, hosts, db, is_tls)


def test_users_passwords_services_and_options() -> None:
    url = "rediss+sentinel://me:p%40ss%2F@a/main?sentinel_password=other&ssl_ca_certs=/ca.pem"
    parsed = parse_redis_url(url)
    assert (parsed.username, parsed.password, parsed.service) == ("me", "p@ss/", "main")
    assert parsed.options == {"sentinel_password": "other", "ssl_ca_certs": "/ca.pem"}


def test_no_password_is_shown() -> None:
    parsed = parse_redis_url("redis+sentinel://me:hunter2@a/main?sentinel_password=hunter2")
    assert "hunter2" not in f"{parsed} {parsed!r}"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://a", "must begin with one of redis://"),
        ("redis://", "each host"),
        ("redis://a:x", "each host"),
        ("redis://:hunter/2@a", "database must be a number"),
        ("redis://[hunter2@a", "not an address"),
        ("redis+sentinel://a", "name the Sentinels' service"),
        ("redis+cluster://a/1", "one database only"),
        ("redis://a/main", "database must be a number"),
        ("redis://a/1/2", "too many parts"),
        ("unix://", "socket's path"),
        ("redis://a?ssl_ca_certs=x", "not one of: db"),
        ("rediss://a?ssl_cert_reqs=hunter2", "required, optional or none"),
        ("redis+cluster://a?hunter2=1", "not one of: none"),
    ],
)
def test_what_is_wrong_is_named(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        parse_redis_url(url)
    assert "hunter" not in str(raised.value)


@given(st.text(max_size=40), st.sampled_from(["redis://", "redis+sentinel://", "unix://", ""]))
def test_anything_is_an_address_or_a_value_error(text: str, scheme: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(parse_redis_url(scheme + text))
