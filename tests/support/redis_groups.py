"""Redis as a Cluster of a few nodes, and under a Sentinel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis_server import RedisServer, free_port, redis_server
from server_process import wait_for

NUM_SLOTS = 16384
SERVICE = "main"


@contextmanager
def redis_cluster(num_nodes: int) -> Iterator[list[RedisServer]]:
    """Primaries that share all slots."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            )
            for _ in range(num_nodes)
        ]
        _join(nodes)
        yield nodes


def cluster_url(nodes: list[RedisServer]) -> str:
    places = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"redis+cluster://{places}"


@contextmanager
def redis_sentinel(watched: RedisServer) -> Iterator[RedisServer]:
    """One Sentinel that calls ``watched`` by the name SERVICE and can fail over alone."""
    with tempfile.TemporaryDirectory(prefix="branchline-sentinel-") as directory:
        config = Path(directory, "sentinel.conf")
        config.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {watched.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        sentinel = RedisServer(Path(directory), str(config), "--sentinel", keeps_data=False)
        try:
            sentinel.start()
            yield sentinel
        finally:
            sentinel.kill()


def _join(nodes: list[RedisServer]) -> None:
    share = -(-NUM_SLOTS // len(nodes))
    for index, node in enumerate(nodes):
        with node.client() as client:
            last = min((index + 1) * share, NUM_SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
            bus_port = int(nodes[0].config("cluster-port"))
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus_port)
    wait_for(lambda: all(_knows_all(node, len(nodes)) for node in nodes), 10)


def _knows_all(node: RedisServer, num_nodes: int) -> bool:
    with node.client() as client:
        lines = client.execute_command("CLUSTER", "INFO").decode().split()
    return {"cluster_state:ok", f"cluster_size:{num_nodes}"} <= set(lines)
