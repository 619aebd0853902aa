"""How a server is told of its fleet, and who it is there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from branchline import cli
from branchline.server import serve as serve_module
from branchline.server.config import ServeConfig
from branchline.server.fleet.options import FleetOptions, identify, parse_fleet_options


def parse(secret: str | None = "s", **given: Any) -> FleetOptions:
    none = {"fleet": None, "fleet_name": "default", "replica_id": None, "advertise_url": None}
    return parse_fleet_options({**none, **given}, secret)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


def test_a_secret_alone_makes_a_replica_that_gateways_poll() -> None:
    options = parse()
    assert (options.redis_url, options.secret, options.name) == (None, "s", "default")
    assert parse(None).secret is None


def test_secrets_are_not_shown() -> None:
    shown = repr(parse("hunter2", fleet="redis://:hunter2@cache"))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("given", "secret", "problem"),
    [
        ({"fleet": "redis://cache"}, None, "--fleet: needs --fleet-secret"),
        ({"fleet": "http://:hunter2@cache"}, "s", "--fleet: it must begin with"),
        ({"fleet_name": "a b"}, "s", "--fleet-name: must be 1 to 64"),
        ({"fleet_name": ""}, "s", "--fleet-name"),
        ({"replica_id": "a/b"}, "s", "--replica-id: must be 1 to 64"),
        ({"replica_id": "x" * 65}, "s", "--replica-id"),
        *(
            ({"advertise_url": url}, "s", "--advertise-url: must be http")
            for url in ("10.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://u:p@a", "")
        ),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, str], secret: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        parse(secret, **given)
    assert "hunter2" not in str(raised.value)


def test_a_replica_is_where_it_listens(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    identity = identify(parse(), listener)
    assert identity.url == f"http://127.0.0.1:{port}"
    assert identity.replica_id == f"127.0.0.1:{port}"


def test_a_replica_is_what_it_is_called(listener: socket.socket) -> None:
    options = parse(advertise_url="https://gpu-1.example:443/")
    identity = identify(options, listener)
    assert (identity.url, identity.replica_id) == ("https://gpu-1.example:443", "gpu-1.example:443")
    named = identify(parse(replica_id="one"), listener)
    assert named.replica_id == "one"


def test_one_that_listens_everywhere_has_the_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-7")
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        port = listener.getsockname()[1]
        assert identify(parse(), listener).url == f"http://gpu-7:{port}"


def test_an_address_with_colons_makes_an_id_too() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8000, 0, 0

    identity = identify(parse(), Listener())  # type: ignore[arg-type]
    assert (identity.url, identity.replica_id) == ("http://[::1]:8000", "::1:8000")


def test_a_replica_lets_nobody_in_without_a_key_or_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRANCHLINE_FLEET_SECRET", "hunter2")
    config = configured(monkeypatch, "--fleet", "redis://cache", "--fleet-name", "f.1")
    assert config.access.is_closed
    assert (config.fleet.redis_url, config.fleet.name) == ("redis://cache", "f.1")
    assert config.fleet.secret == "hunter2"
    assert "hunter2" not in repr(config)
    assert not configured(monkeypatch).access.is_closed


def configured(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServeConfig:
    """The config that ``branchline serve`` would run with."""
    seen: list[ServeConfig] = []
    monkeypatch.setattr(serve_module, "run", lambda config: seen.append(config) or 0)
    CliRunner().invoke(cli.cli, ["serve", "m", *arguments], standalone_mode=False)
    return seen[0]
