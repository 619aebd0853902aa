"""The life of ``branchline up``: Redis first, gateway and replicas together, adapters last."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence

import httpx

from .child import Child, run_to_end
from .plan import UpConfig, adapter_command, gateway_child, redis_child, replica_children
from .redis_binary import UpError, find_redis_server

REDIS_SECONDS, START_SECONDS = 15.0, 900.0
JOIN_SECONDS = 60.0
_ADDRESS = re.compile(r"http://\S+")

QUIET = frozenset({"redis"})
"""Whose output is not shown: of Redis' own nobody needs more than that it is there."""


async def bring_up(config: UpConfig, say: Callable[[str], None], stop: asyncio.Event) -> int:
    """Run everything until ``stop``; raises UpError when it does not come up."""
    up = _Up(config, say)
    starting = asyncio.ensure_future(up.start())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopped
        return 0
    finally:
        for task in (starting, stopped):
            task.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)
        await up.stop()


class _Up:
    def __init__(self, config: UpConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        config = self._config
        if config.redis_url is None:
            redis = self._begin(Child(redis_child(config, find_redis_server()), self._tell))
            await self._ready([redis], REDIS_SECONDS)
        replicas = [self._begin(Child(spec, self._tell)) for spec in replica_children(config)]
        gateway = self._begin(Child(gateway_child(config), self._tell))
        await self._ready([gateway, *replicas], START_SECONDS)
        found = _ADDRESS.search(gateway.ready_text)
        assert found, "the gateway says where it serves"
        await self._joined(found[0], [gateway, *replicas])
        for name, path in config.adapters:
            spec = adapter_command(config, found[0], name, path)
            if await run_to_end(spec, self._tell):
                raise UpError(f"adapter {name} was not taken; the lines above say why")
        self._say(f"up: {config.num_replicas} replicas behind {found[0]}")

    def _begin(self, child: Child) -> Child:
        self._children.append(child)
        self._tasks.append(asyncio.create_task(child.run()))
        return child

    async def _ready(self, children: Sequence[Child], seconds: float) -> None:
        """Wait until all are up; one that ends before, or takes too long, is an error."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not all(child.ready.is_set() for child in children):
            _check_none_ended(children)
            if asyncio.get_running_loop().time() > deadline:
                late = [child.spec.name for child in children if not child.ready.is_set()]
                raise UpError(f"{', '.join(late)} did not come up within {seconds:g} s")
            await asyncio.sleep(0.05)

    async def _joined(self, url: str, children: Sequence[Child]) -> None:
        """Wait until the gateway sees all replicas, which say that they serve a moment before."""
        deadline = asyncio.get_running_loop().time() + JOIN_SECONDS
        num_seen, num_replicas = 0, self._config.num_replicas
        async with httpx.AsyncClient(base_url=url, timeout=10.0, trust_env=False) as client:
            while num_seen < num_replicas:
                _check_none_ended(children)
                if asyncio.get_running_loop().time() > deadline:
                    raise UpError(
                        f"the gateway sees {num_seen} of {num_replicas} replicas after "
                        f"{JOIN_SECONDS:g} s; its /admin/fleet says why"
                    )
                await asyncio.sleep(0.1)
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    num_seen = (await client.get("/ready")).json()["num_replicas_up"]

    async def stop(self) -> None:
        """The gateway first, which lets its streams end; then the replicas, Redis last."""
        order = {"gateway": 0, "redis": 2}
        for rank in range(3):
            group = [child for child in self._children if order.get(child.spec.name, 1) == rank]
            await asyncio.gather(*(child.stop() for child in group))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell(self, name: str, line: str) -> None:
        if name not in QUIET and line:
            self._say(f"{name} | {line}")


def _check_none_ended(children: Sequence[Child]) -> None:
    """Raise UpError for one that has ended while all of them were being started."""
    for child in children:
        if child.num_starts > 1:
            raise UpError(f"{child.spec.name} did not come up; the lines above say why")
