"""A server under the adapter benchmarks: started, administered and weighed over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import httpx
import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from branchline.benchmarks.peers import servers

from .adapter_files import SHAPES, AdapterStore, shape_of
from .client import TIMEOUT_SECONDS, Client, RequestError

OK, CREATED, CONFLICT = 200, 201, 409
PATIENCE_SECONDS, POLL_SECONDS = 30.0, 0.02
N = TypeVar("N", int, float)

ROLES = {"engine": "branchline.engine.process", "formatting": "branchline.server.workers.process"}
"""The server's other processes, by their modules."""

MEMORY = "branchline:adapter_memory_bytes"


class Bytes(msgspec.Struct, frozen=True):
    """What an adapter takes on each tier when it is there."""

    device: int
    host: int
    disk: int


class Entry(msgspec.Struct, frozen=True):
    """One adapter, as far as it is read here."""

    name: str
    version: int
    digest: str
    bytes: Bytes
    tier: str | None
    error: str | None = None


class _Listed(msgspec.Struct):
    adapters: list[Entry]


class _Put(msgspec.Struct):
    changed: bool
    adapter: Entry


class _Removed(msgspec.Struct):
    done: bool


class Admin:
    """The admin API; whatever is not answered as it should be ends the benchmark."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def put(self, name: str, path: Path, status: int = CREATED) -> Entry:
        """Add an adapter (201), or replace it (200) by other bytes."""
        body = {"source": str(path)}
        answer = await self._call("PUT", f"/admin/adapters/{name}", status, body)
        put = msgspec.json.decode(answer.content, type=_Put)
        if not put.changed:
            raise RequestError(f"{name}: nothing has changed")
        return put.adapter

    async def load(self, name: str, tier: str) -> Entry:
        """Bring an adapter to a tier."""
        return await self._entry("POST", f"{name}/load", {"tier": tier})

    async def evict(self, name: str, tier: str) -> Entry:
        """Take an adapter off a tier, as soon as the last request has let go of it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            path = f"/admin/adapters/{name}/evict"
            answer = await self._http.post(path, json={"tier": tier})
            if answer.status_code != CONFLICT or time.monotonic() > deadline:
                return msgspec.json.decode(_checked(answer, OK).content, type=Entry)
            await asyncio.sleep(POLL_SECONDS)

    async def get(self, name: str) -> Entry:
        """One adapter."""
        return await self._entry("GET", name)

    async def delete(self, name: str) -> None:
        """Remove an adapter and wait for its memory."""
        path = f"/admin/adapters/{name}?wait={PATIENCE_SECONDS:g}"
        answer = await self._call("DELETE", path, OK)
        if not msgspec.json.decode(answer.content, type=_Removed).done:
            raise RequestError(f"{name}: removed, and still in memory")

    async def entries(self) -> list[Entry]:
        """All adapters."""
        answer = await self._call("GET", "/admin/adapters", OK)
        return msgspec.json.decode(answer.content, type=_Listed).adapters

    async def metrics(self) -> dict[str, float]:
        """Samples by name; for the memory of adapters, by ``TIER STATE``."""
        text = (await self._call("GET", "/metrics", OK)).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels, name = sample.labels, sample.name
                key = f"{labels['tier']} {labels['state']}" if name == MEMORY else name
                found[key] = found.get(key, 0.0) + sample.value
        return found

    async def memory(self) -> dict[str, int]:
        """Bytes that adapters hold on the device and in host memory."""
        found = await self.metrics()
        return {tier: int(found[f"{tier} used"]) for tier in ("device", "dense", "host")}

    async def _entry(self, method: str, path: str, body: object = None) -> Entry:
        answer = await self._call(method, f"/admin/adapters/{path}", OK, body)
        return msgspec.json.decode(answer.content, type=Entry)

    async def _call(
        self, method: str, path: str, status: int, body: object = None
    ) -> httpx.Response:
        return _checked(await self._http.request(method, path, json=body), status)


def _checked(answer: httpx.Response, status: int) -> httpx.Response:
    if answer.status_code != status:
        request = answer.request
        raise RequestError(
            f"{request.method} {request.url.path}: HTTP {answer.status_code}, not {status}: "
            f"{answer.text[:300]}"
        )
    return answer


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and how to speak with it."""

    name: str
    client: Client
    admin: Admin
    process: psutil.Process

    def resident_bytes(self) -> dict[str, int]:
        """RSS of the server and of its processes, by what they are, and of all together."""
        return _by_role((role, process.memory_info().rss) for role, process in self._family())

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time that they have taken, in the same form."""
        times = ((role, process.cpu_times()) for role, process in self._family())
        return _by_role((role, used.user + used.system) for role, used in times)

    def _family(self) -> Iterator[tuple[str, psutil.Process]]:
        yield "server", self.process
        for child in self.process.children(recursive=True):
            command = child.cmdline()
            yield next(role for role, module in ROLES.items() if module in command), child


def _by_role(parts: Iterable[tuple[str, N]]) -> dict[str, N]:
    found: dict[str, N] = {}
    for role, number in parts:
        found[role] = found[role] + number if role in found else number
    return found | {"all": sum(found.values())}


@asynccontextmanager
async def connected(peer: servers.Peer, name: str) -> AsyncIterator[Server]:
    """A running server, with connections of its own."""
    root = peer.url.removesuffix("/v1")
    async with (
        Client(peer.url).session() as client,
        httpx.AsyncClient(base_url=root, timeout=TIMEOUT_SECONDS) as http,
    ):
        yield Server(name, client, Admin(http), _process_of(peer))


def _process_of(peer: servers.Peer) -> psutil.Process:
    for child in psutil.Process().children():
        if child.cmdline()[-len(peer.command) + 1 :] == list(peer.command[1:]):
            return child
    raise click.ClickException(f"there is no process of {peer.name}")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an adapter of each shape takes, as the server says."""

    by_shape: list[Bytes]

    @classmethod
    async def read(cls, admin: Admin, store: AdapterStore) -> Sizes:
        """Register one of each shape, ask, and remove them again."""
        names = [f"probe{number}" for number in range(len(SHAPES))]
        for number, name in enumerate(names):
            await admin.put(name, store.path(number))
        found = {entry.name: entry.bytes for entry in await admin.entries()}
        for name in names:
            await admin.delete(name)
        return cls([found[name] for name in names])

    def room_for(self, numbers: Sequence[int]) -> Room:
        """Memory in which just these adapters lie side by side, on the device and on the host."""
        # The pool has as many pages of the linears that an adapter leaves alone.
        page = max(
            size.device // shape.num_pages
            for size, shape in zip(self.by_shape, SHAPES, strict=True)
        )
        pages = sum(shape_of(number).num_pages for number in numbers)
        host = sum(self.by_shape[number % len(SHAPES)].host for number in numbers)
        return Room(num_adapters=len(numbers), device_bytes=pages * page, host_bytes=host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory for so many adapters."""

    num_adapters: int
    device_bytes: int
    host_bytes: int

    def half(self) -> Room:
        """Half of it on the device; host memory stays."""
        return Room(
            num_adapters=self.num_adapters // 2,
            device_bytes=self.device_bytes // 2,
            host_bytes=self.host_bytes,
        )

    def flags(self) -> list[str]:
        """The server's."""
        return [
            *("--max-loras", str(self.num_adapters), "--adapter-dense-gb", "0"),
            *("--adapter-memory-gb", repr(self.device_bytes / 2**30)),
            *("--adapter-host-gb", repr(self.host_bytes / 2**30)),
        ]
