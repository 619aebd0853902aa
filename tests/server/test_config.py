"""The command line and its file: what is taken, and the one line for what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from branchline import __version__, cli
from branchline.engine.config import EngineConfig
from branchline.server import serve as serve_module
from branchline.server.access import TenantKey, digest_key
from branchline.server.config import AdapterSpec, ServeConfig


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServeConfig:
    """The config that ``branchline serve`` would run with."""
    seen: list[ServeConfig] = []
    monkeypatch.setattr(serve_module, "run", lambda config: seen.append(config) or 0)
    result = CliRunner().invoke(cli.cli, ["serve", *arguments], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return seen[0]


def refuse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    with pytest.raises(click.ClickException) as caught:
        parse(monkeypatch, *arguments)
    assert caught.value.exit_code == 2
    return caught.value.format_message()


def plain_keys(*keys: str) -> tuple[TenantKey, ...]:
    """Keys of ``--api-key``, each a tenant of its own."""
    return tuple(TenantKey(digest_key(key), f"key-{n}") for n, key in enumerate(keys, start=1))


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRANCHLINE_API_KEY", raising=False)
    config = parse(
        monkeypatch,
        *("m", "--port", "0", "--max-model-len", "100", "--kv-cache-gb", "0.5"),
        *("--dtype", "float32", "--served-model-name", "a", "--served-model-name", "b"),
        *("--api-key", "k1", "--api-key", "k2", "--max-body-mb", "0.5", "--restart-engine"),
        *("--body-timeout", "7.5"),
        *("--response-ttl", "60", "--response-store-mb", "0.5"),
    )
    assert config.engine.model == "m"
    assert (config.engine.max_model_len, config.engine.kv_cache_gb) == (100, 0.5)
    assert config.served_model_names == ("a", "b")
    assert config.access.keys == plain_keys("k1", "k2")
    assert config.limits.max_body_bytes == 1 << 19
    assert config.limits.body_timeout == 7.5
    assert (config.responses.ttl, config.responses.max_bytes) == (60.0, 1 << 19)
    assert config.restart_engine
    assert "k1" not in repr(config), "keys are only kept as digests"


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ((), "enable_prefix_caching", True),
        (("--no-enable-prefix-caching",), "enable_prefix_caching", False),
        (("--enable-prefix-caching",), "enable_prefix_caching", True),
        ((), "kv_offload_gb", 0),
        (("--kv-offload-gb", "1.5"), "kv_offload_gb", 1.5),
        ((), "isolate_tenants", True),
        (("--share-prefixes",), "isolate_tenants", False),
        ((), "max_loras", None),
        (("--max-loras", "3"), "max_loras", 3),
        ((), "max_step_rank", None),
        (("--max-step-rank", "64"), "max_step_rank", 64),
        ((), "scheduling_policy", "fair"),
        (("--scheduling-policy", "fcfs"), "scheduling_policy", "fcfs"),
        ((), "async_scheduling", None),
        (("--async-scheduling",), "async_scheduling", True),
        (("--no-async-scheduling",), "async_scheduling", False),
        ((), "enforce_eager", False),
        (("--enforce-eager",), "enforce_eager", True),
        ((), "kv_cache_dtype", "auto"),
        (("--kv-cache-dtype", "fp8"), "kv_cache_dtype", "fp8"),
        ((), "adapter_dtype", "auto"),
        (("--adapter-dtype", "fp8"), "adapter_dtype", "fp8"),
        ((), "quantization", None),
        (("--quantization", "fp8"), "quantization", "fp8"),
        ((), "max_queued_requests", 2048),
        (("--max-queued-requests", "5"), "max_queued_requests", 5),
        ((), "max_overtake_cost", 65536),
        (("--max-overtake-cost", "100"), "max_overtake_cost", 100),
        ((), "tenant_kv_share", 0.5),
        (("--tenant-kv-share", "1"), "tenant_kv_share", 1),
    ],
)
def test_flags_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], field: str, value: object
) -> None:
    config = parse(monkeypatch, "m", *arguments)
    assert getattr(config.engine, field) == value


def test_flags_and_the_engines_defaults_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the queue, which has no limit where nobody comes over HTTP."""
    config = parse(monkeypatch, "m")
    assert config.engine == EngineConfig(model="m", max_queued_requests=2048)
    assert EngineConfig(model="m").max_queued_requests is None


def test_flags_of_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(
        monkeypatch,
        *("m", "--state-dir", "state", "--adapter-root", "/a", "--adapter-root", "b"),
        *("--adapter-source", "https://host/x", "--adapter-source", "hf://org"),
        *("--max-adapter-mb", "1.5", "--adapter-fetch-timeout", "7"),
        *("--adapter-versions-kept", "2", "--adapter-host-gb", "0.5"),
    )
    assert config.state_dir == "state"
    assert config.sources.roots == ("/a", str(tmp_path / "b"))
    assert config.sources.prefixes == ("https://host/x", "hf://org")
    assert (config.sources.max_bytes, config.sources.timeout) == (3 << 19, 7)
    assert config.adapter_versions_kept == 2
    assert config.engine.adapter_host_gb == 0.5
    plain = parse(monkeypatch, "m")
    assert (plain.state_dir, plain.adapter_versions_kept) == (None, 4)
    assert (plain.sources.max_bytes, plain.sources.timeout) == (2 << 30, 300)
    assert plain.sources.roots == plain.sources.prefixes == ()


def test_a_files_switch_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: m\nenable-prefix-caching: false\nshare-prefixes: true\n")
    config = parse(monkeypatch, "--config", str(file))
    assert not config.engine.enable_prefix_caching
    assert not config.engine.isolate_tenants
    again = parse(monkeypatch, "--config", str(file), "--enable-prefix-caching")
    assert again.engine.enable_prefix_caching


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "--lora", "a=1", "--lora", "b=2"),
        ("m", "--lora", "a=1", "b=2"),
        ("--lora", "a=1", "b=2", "--port", "1", "m"),
        ("m", "--lora-modules", "a=1", "b=2", "--port", "1"),
        ("--lora=a=1", "m", "--lora", "b=2"),
    ],
)
def test_adapters_one_or_several_a_flag(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    config = parse(monkeypatch, *arguments)
    assert config.engine.model == "m"
    assert config.adapters == (AdapterSpec("a", "1"), AdapterSpec("b", "2"))


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHLINE_API_KEY", "k2, k3")
    config = parse(monkeypatch, "m", "--api-key", "k1")
    assert config.access.keys == plain_keys("k1", "k2", "k3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("MODEL",)),
        (("m", "--port", "x"), ("--port", "'x'")),
        (("m", "--port", "70000"), ("--port", "65535")),
        (("m", "--max-num-seqs", "0"), ("--max-num-seqs", "at least 1")),
        (("m", "--block-size", "1000"), ("--block-size", "256")),
        (("m", "--gpu-memory-utilization", "2"), ("--gpu-memory-utilization", "at most 1")),
        (("m", "--dtype", "int3"), ("--dtype", "bfloat16")),
        (("m", "--kv-cache-dtype", "int8"), ("--kv-cache-dtype", "auto", "fp8")),
        (("m", "--adapter-dtype", "bfloat16"), ("--adapter-dtype", "auto", "fp8")),
        (("m", "--quantization", "awq"), ("--quantization", "fp8")),
        (("m", "--lora", "x"), ("--lora", "NAME=PATH")),
        (("m", "--lora", "=x"), ("--lora", "NAME=PATH")),
        (("m", "--no-such-flag"), ("--no-such-flag",)),
        (("m", "--kv-offload-gb", "-1"), ("--kv-offload-gb", "0 or more")),
        (("m", "--kv-offload-gb", "nan"), ("--kv-offload-gb", "finite")),
        (("m", "--kv-cache-gb", "inf"), ("--kv-cache-gb", "finite")),
        (("m", "--max-body-mb", "inf"), ("--max-body-mb", "finite")),
        (("m", "--body-timeout", "0"), ("--body-timeout", "0.0")),
        (("m", "--body-timeout", "inf"), ("--body-timeout", "finite")),
        (("m", "--max-loras", "0"), ("--max-loras", "at least 1")),
        (("m", "--max-step-rank", "0"), ("--max-step-rank", "at least 1")),
        (("m", "--scheduling-policy", "lifo"), ("--scheduling-policy", "fcfs")),
        (("m", "--max-queued-requests", "0"), ("--max-queued-requests", "at least 1")),
        (("m", "--max-overtake-cost", "0"), ("--max-overtake-cost", "at least 1")),
        (("m", "--tenant-kv-share", "0"), ("--tenant-kv-share", "over 0")),
        (("m", "--tenant-kv-share", "1.1"), ("--tenant-kv-share", "at most 1")),
        (("m", "--max-loras", "9" * 20), ("--max-loras", "at most 2147483647")),
        (("m", "--max-queued-requests", "9" * 20), ("--max-queued-requests", "at most")),
        (("m", "--adapter-source", "ftp://x"), ("--adapter-source", "ftp://x")),
        (("m", "--adapter-versions-kept", "-1"), ("--adapter-versions-kept", "0")),
        (("m", "--max-adapter-mb", "inf"), ("--max-adapter-mb", "finite")),
        (("m", "--adapter-host-gb", "-1"), ("--adapter-host-gb", "0 or more")),
        (("m", "another"), ("too many words", "MODEL")),
    ],
)
def test_bad_flags_are_named(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refuse(monkeypatch, *arguments)
    assert all(word in message for word in words), message


def test_a_file_gives_defaults_that_flags_override(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: m\nmax-num-seqs: 7\nblock_size: 32\nrestart-engine: true\n"
        "lora: {a: '1', b: '2'}\nserved-model-name: base\nkv-cache-gb: 2\n"
        "quantization: fp8\nkv-cache-dtype: fp8\nadapter-dtype: fp8\nenforce-eager: true\n"
    )
    config = parse(monkeypatch, "--config", str(file), "--block-size", "8")
    assert (config.engine.model, config.engine.max_num_seqs) == ("m", 7)
    assert config.engine.block_size == 8
    assert (config.engine.quantization, config.engine.kv_cache_dtype) == ("fp8", "fp8")
    assert config.engine.adapter_dtype == "fp8"
    assert config.engine.enforce_eager
    assert config.restart_engine
    assert config.adapters == (AdapterSpec("a", "1"), AdapterSpec("b", "2"))
    assert config.served_model_names == ("base",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-sequences: 1", ("max-num-sequences", "max-num-seqs", "block-size")),
        ("max-num-seqs: many", ("--max-num-seqs", "many")),
        ("max-num-seqs: [1]", ("max-num-seqs", "single value")),
        ("lora: [1]", ("lora", "strings")),
        ("kv-offload-gb:", ("kv-offload-gb", "must have a value")),
        ("max-loras: null", ("max-loras", "must have a value")),
        ("share-prefixes:", ("share-prefixes", "must have a value")),
        ("enable-prefix-caching: 3", ("enable-prefix-caching", "true or false")),
        ("share-prefixes: 2020-01-01", ("share-prefixes", "true or false")),
        ("async-scheduling: maybe", ("--async-scheduling", "maybe")),
        ("enforce-eager: 3", ("enforce-eager", "true or false")),
        ("kv-cache-dtype: 8", ("--kv-cache-dtype", "fp8")),
        ("quantization: int4", ("--quantization", "fp8")),
        ("config: other.yaml", ("unknown key 'config'",)),
        ("- a\n- b", ("mapping",)),
        ("a: [", ("serve.yaml",)),
    ],
)
def test_bad_keys_and_values_of_a_file_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    message = refuse(monkeypatch, "m", "--config", str(file))
    assert all(word in message for word in words), message


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "nope.yaml" in refuse(monkeypatch, "m", "--config", str(tmp_path / "nope.yaml"))


def branchline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "branchline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("serve",), 2),
        (("serve", "m", "--port", "x"), 2),
        (("nonsense",), 2),
        (("serve", "/no/such/directory"), 1),
        (("serve", "nobody/no-such-model"), 1),
        (("serve", "/tmp", "--lora", "a=/no/such/adapter", "--port", "0"), 1),
        (("serve", "/tmp", "--host", "203.0.113.1"), 1),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments: tuple[str, ...], status: int) -> None:
    done = branchline(*arguments)
    assert done.returncode == status
    assert done.stderr.startswith("branchline: error: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_version_and_help_are_quick() -> None:
    assert branchline("--version").stdout == f"branchline, version {__version__}\n"
    heavy = "torch|transformers|fastapi|uvicorn|zmq|pydantic|yaml"
    code = (
        "import sys, re; from branchline import cli\n"
        "try: cli.cli(['--help'])\nexcept SystemExit: pass\n"
        f"assert not [n for n in sys.modules if re.fullmatch({heavy!r}, n)], sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"serve" in done.stdout
    assert b"bench" in done.stdout


@pytest.mark.parametrize("line", ["max-num-seqs: 1.5", "port: true"])
def test_a_config_files_numbers_are_not_bent(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(line)
    result = CliRunner().invoke(cli.cli, ["serve", "model", "--config", str(path)])
    assert result.exit_code == 2
    assert "is not a valid integer" in result.output
