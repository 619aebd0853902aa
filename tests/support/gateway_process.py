"""A whole fleet of real processes, for tests: Redis, replicas and gateways."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis_server import RedisServer, redis_server
from server_process import START_SECONDS, ServerProcess, start_command, wait_for

SECRET = "a-secret-of-this-fleet"
OPEN = ("--allow-anonymous",)


@dataclass
class Fleet:
    """Replicas by id and gateways in the order they were started; ``stack`` stops them all."""

    model: str
    redis: RedisServer | None
    stack: ExitStack
    serve_flags: tuple[str, ...] = ()
    gateway_flags: tuple[str, ...] = OPEN
    replicas: dict[str, ServerProcess] = field(default_factory=dict)
    gateways: list[ServerProcess] = field(default_factory=list)

    @property
    def gateway(self) -> ServerProcess:
        """The first one."""
        return self.gateways[0]

    @property
    def url(self) -> str:
        """Where clients go."""
        return self.gateway.base_url

    def start_replica(self, replica_id: str, *flags: str, port: int = 0) -> ServerProcess:
        """One more, or one again; it is not up yet."""
        words = ["serve", self.model, "--port", str(port), "--replica-id", replica_id]
        if self.redis is not None:
            words += ["--fleet", self.redis.url]
        environment = {"BRANCHLINE_FLEET_SECRET": SECRET}
        words += [*self.serve_flags, *flags]
        server = self.stack.enter_context(start_command(*words, env=environment))
        self.replicas[replica_id] = server
        return server

    def start_gateway(self, *flags: str) -> ServerProcess:
        """One more; it is not up yet."""
        words = ["gateway", "--port", "0", *self.gateway_flags, *flags]
        words += ["--redis", self.redis.url] if self.redis is not None else self._members()
        environment = {"BRANCHLINE_FLEET_SECRET": SECRET}
        gateway = self.stack.enter_context(start_command(*words, env=environment))
        self.gateways.append(gateway)
        return gateway

    def _members(self) -> list[str]:
        return [word for r in self.replicas.values() for word in ("--replica", r.base_url)]

    def state(self, gateway: int = 0) -> dict[str, Any]:
        """What a gateway knows of the fleet."""
        answer = httpx.get(f"{self.gateways[gateway].base_url}/admin/fleet", timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def up(self, gateway: int = 0) -> set[str]:
        """Ids of the replicas that a gateway would send to."""
        return {entry["id"] for entry in self.state(gateway)["replicas"] if entry["is_up"]}

    def wait_until_up(self, ids: Sequence[str] | None = None, seconds: float = 60.0) -> None:
        """Wait until every gateway would send to just these, by default to all."""
        wanted = set(self.replicas if ids is None else ids)
        for number in range(len(self.gateways)):
            wait_for(lambda n=number: self.up(n) == wanted, seconds, self.output)  # type: ignore[misc]

    def kill(self, replica_id: str) -> None:
        """SIGKILL, which takes the engine along."""
        process = self.replicas[replica_id].process
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def output(self) -> str:
        """All that everybody has printed, for an explanation."""
        named = {**self.replicas, **{f"gateway {n}": g for n, g in enumerate(self.gateways)}}
        return "\n".join(f"=== {name}\n{process.output()}" for name, process in named.items())


@contextmanager
def fleet(
    model: Path | str,
    *,
    replicas: int = 2,
    gateways: int = 1,
    lora: Mapping[str, Path | str] | None = None,
    serve_flags: Sequence[str] = (),
    gateway_flags: Sequence[str] = OPEN,
    with_redis: bool = True,
    seconds: float = START_SECONDS,
) -> Iterator[Fleet]:
    """Replicas ``replica-1`` … behind gateways, all up; stopped on leaving."""
    loras = [word for name, path in (lora or {}).items() for word in ("--lora", f"{name}={path}")]
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server()) if with_redis else None
        house = Fleet(str(model), redis, stack, (*serve_flags, *loras), tuple(gateway_flags))
        for number in range(replicas):
            house.start_replica(f"replica-{number + 1}")
        for server in house.replicas.values():
            server.wait_until_ready(seconds)
        for _ in range(gateways):
            house.start_gateway()
        for gateway in house.gateways:
            gateway.wait_until_ready(seconds)
        house.wait_until_up()
        yield house
