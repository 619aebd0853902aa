"""What ``branchline up`` starts: each process' command line and environment, as plain values."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CPU_MEMORY_SHARE = 0.25
"""Of a machine without a GPU, for the KV caches of all replicas together."""

_BRANCHLINE = (sys.executable, "-P", "-m", "branchline")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """What to bring up. ``serve_flags`` go to every replica, ``gateway_flags`` to the gateway.

    ``redis_url`` None starts one that only this user reaches, behind a Unix socket.
    """

    model: str
    directory: Path
    num_replicas: int = 2
    adapters: tuple[tuple[str, str], ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    redis_url: str | None = None
    tenants: str | None = None
    state_dir: str | None = None
    admin_keys: tuple[str, ...] = ()
    cuda_devices: tuple[str, ...] = ()
    serve_flags: tuple[str, ...] = ()
    gateway_flags: tuple[str, ...] = ()
    fleet_secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def is_open(self) -> bool:
        """Whether who sends no key may come in: nobody has named tenants."""
        return self.tenants is None

    @property
    def socket_path(self) -> Path:
        """Where the Redis of our own listens."""
        return self.directory / "redis.sock"

    @property
    def redis(self) -> str:
        """The address of Redis for gateway and replicas."""
        return self.redis_url or f"unix://{self.socket_path}"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process: its name in the output, its words, and what its environment has besides ours.

    ``ready_line`` is in the line that it prints once it can be used.
    """

    name: str
    words: tuple[str, ...]
    ready_line: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def redis_child(config: UpConfig, binary: Path) -> ChildSpec:
    """A Redis that keeps nothing on disk: what has to last is in the gateway's state."""
    words = (str(binary), "--port", "0", "--unixsocket", str(config.socket_path))
    rest = ("--unixsocketperm", "700", "--save", "", "--appendonly", "no")
    return ChildSpec("redis", (*words, *rest, "--dir", str(config.directory)), "eady to accept")


def replica_children(config: UpConfig) -> list[ChildSpec]:
    """The replicas, each on a free port of the loopback."""
    return [_replica(config, number) for number in range(config.num_replicas)]


def _replica(config: UpConfig, number: int) -> ChildSpec:
    name = f"replica-{number + 1}"
    words = (*_BRANCHLINE, "serve", config.model, "--host", "127.0.0.1", "--port", "0")
    fleet = ("--fleet", config.redis, "--replica-id", name)
    state = ("--state-dir", str(Path(config.state_dir, name))) if config.state_dir else ()
    environment = {"BRANCHLINE_FLEET_SECRET": config.fleet_secret, "PYTHONUNBUFFERED": "1"}
    if config.cuda_devices:
        device = config.cuda_devices[number % len(config.cuda_devices)]
        environment["CUDA_VISIBLE_DEVICES"] = device
    flags = (*fleet, *state, *_cpu_flags(config), *config.serve_flags)
    return ChildSpec(name, (*words, *flags), "serving on http", environment)


def _cpu_flags(config: UpConfig) -> tuple[str, ...]:
    """Even parts of the cores and of the memory; engines that each take all are in their own way.

    What is among ``serve_flags`` comes later and counts.
    """
    if config.cuda_devices or has_gpu():
        return ()
    flags = {word.partition("=")[0] for word in config.serve_flags}
    num_threads = max(1, (os.cpu_count() or 1) // config.num_replicas)
    share = CPU_MEMORY_SHARE / config.num_replicas
    memory = ("--cpu-memory-utilization", f"{share:.4f}")
    is_told = flags & {"--kv-cache-gb", "--config"}  # of these a flag of ours may know less
    return ("--num-threads", str(num_threads), *(() if is_told else memory))


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists()


def gateway_child(config: UpConfig) -> ChildSpec:
    """The gateway, on the port that clients are told."""
    words = (*_BRANCHLINE, "gateway", "--redis", config.redis)
    place = ("--host", config.host, "--port", str(config.port))
    access = ("--allow-anonymous",) if config.is_open else ("--tenants", str(config.tenants))
    state = ("--state-dir", str(Path(config.state_dir, "gateway"))) if config.state_dir else ()
    environment = {"BRANCHLINE_FLEET_SECRET": config.fleet_secret, "PYTHONUNBUFFERED": "1"}
    if config.admin_keys:
        environment["BRANCHLINE_ADMIN_KEY"] = ",".join(config.admin_keys)
    flags = (*place, *access, *state, *config.gateway_flags)
    return ChildSpec("gateway", (*words, *flags), "serving on http", environment)


def adapter_command(config: UpConfig, url: str, name: str, path: str) -> ChildSpec:
    """Registers one adapter, of this machine or of a hub, as an admin would."""
    upload = ("--upload",) if Path(path).exists() else ()
    words = (*_BRANCHLINE, "adapter", "put", name, path, *upload, "--url", url)
    key = {"BRANCHLINE_ADMIN_KEY": config.admin_keys[0]} if config.admin_keys else {}
    return ChildSpec(f"adapter {name}", words, "", key)
