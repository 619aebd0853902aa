"""Flags become a config, or an error that names the flag and shows no secret."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from branchline.gateway import command
from branchline.gateway.config import GatewayConfig, parse_gateway_options


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> GatewayConfig:
    """The config of a command line."""
    for name in ("BRANCHLINE_FLEET_SECRET", "BRANCHLINE_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    options: dict[str, Any] = {}
    context = command.gateway_command.make_context("gateway", list(words))
    options.update(context.params)
    return parse_gateway_options(options)


BASE = ("--redis", "redis://h", "--fleet-secret", "s3cret")


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(monkeypatch, *BASE)
    assert (config.host, config.port, config.policy) == ("127.0.0.1", 8080, "cost")
    assert not config.keyless_admin
    assert "s3cret" not in repr(config)


def test_static_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--replica", "http://a:1/", "--replica", "http://b:2", "--fleet-secret", "s")
    assert parsed(monkeypatch, *words).replicas == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fleet-secret", "s"), "--redis"),
        ((*BASE, "--replica", "http://a:1"), "--redis"),
        (("--redis", "redis://h"), "--fleet-secret"),
        (("--redis", "redis://h", "--fleet-secret", " "), "--fleet-secret"),
        (("--redis", "redis://h", "--fleet-secret", "ä"), "--fleet-secret"),
        ((*BASE, "--fleet-name", "a b"), "--fleet-name"),
        ((*BASE, "--admin-key", "s3cret"), "--admin-key"),
        ((*BASE, "--admin-key", ""), "--admin-key"),
        (("--replica", "ftp://a", "--fleet-secret", "s"), "--replica"),
        (("--replica", "http://u:pw@a:1", "--fleet-secret", "s"), "--replica"),
        (("--replica", "http://a:1/v1", "--fleet-secret", "s"), "--replica"),
        (("--replica", "http://a:99999", "--fleet-secret", "s"), "--replica"),
        ((*BASE, "--body-timeout", "inf"), "--body-timeout"),
    ],
)
def test_mistakes_name_the_flag(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parsed(monkeypatch, *words)
    assert "s3cret" not in str(error.value)
    assert "pw" not in str(error.value)


def test_secrets_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHLINE_FLEET_SECRET", "from-there")
    monkeypatch.setenv("BRANCHLINE_ADMIN_KEY", "a, b")
    context = command.gateway_command.make_context("gateway", ["--redis", "redis://h"])
    config = parse_gateway_options(context.params)
    assert config.fleet_secret == "from-there"
    assert len(config.admin_keys) == 2


def test_the_command_says_what_is_wrong() -> None:
    done = CliRunner().invoke(command.gateway_command, ["--fleet-secret", "s"])
    assert done.exit_code == 2
    assert "--redis" in done.output
