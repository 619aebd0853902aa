"""A thousand adapters on a server with room for 64: every answer right, memory flat."""

from __future__ import annotations

import random
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from adapter_server import AdapterServer, serve_adapters
from many_adapters import BatchedReference, TinyAdapter, write_adapters
from oracle import MARGIN, Reference
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_ADAPTERS = 1000
ROOM = 64
NUM_REQUESTS = 4500
NUM_BEFORE = 2000
"""Requests before memory is looked at: until then pools are touched for the first time."""
NUM_CLIENTS = 8
NUM_TOKENS = 6
# All ask the same, over two blocks: what is cached for one must never be another's.
PROMPT = list(b"Whose words are these, and who is it that asks?")
GROWTH = 32 << 20
"""Of the memory of all processes. oneDNN keeps a kernel for every shape that it has seen, up to a
number; what stayed of each load or each request would be more."""

PAGE_BYTES_OF_QKV = 4 * 16 * (3 * 64 + 3 * 64) * 4
PAGE_BYTES = 253_952
"""A page of 16 ranks of every group of modules of the tiny model."""


@dataclass(frozen=True)
class Crowd:
    server: AdapterServer
    model: Path
    adapters: list[TinyAdapter]
    max_bytes: int


@dataclass
class Traffic:
    """What was answered, by adapter, and what memory was used meanwhile, in bytes."""

    outputs: dict[int, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    resident: list[int] = field(default_factory=list)
    most_used: float = 0.0


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    directory = tmp_path_factory.mktemp("crowd").resolve()
    model = make_tiny_model(directory / "model", "llama")
    adapters = write_adapters(model, directory / "root", NUM_ADAPTERS)
    num_pages = sum(adapter.num_pages for adapter in adapters) * ROOM // NUM_ADAPTERS
    memory = ("--adapter-memory-gb", gigabytes(num_pages * PAGE_BYTES))
    host = ("--adapter-host-gb", gigabytes(num_pages * PAGE_BYTES_OF_QKV))
    kv = ("--kv-cache-gb", "0.02")
    with serve_adapters(model, *memory, *host, *kv, roots=[directory / "root"]) as server:
        with ThreadPoolExecutor(NUM_CLIENTS) as admins:
            list(admins.map(lambda each: server.put(each.name, each.path), adapters))
        yield Crowd(server, model, adapters, num_pages * PAGE_BYTES_OF_QKV)


def gigabytes(num_bytes: int) -> str:
    return f"{(num_bytes + 1024) / (1 << 30):.9f}"


def test_a_thousand_tenants(crowd: Crowd) -> None:
    server = crowd.server
    assert len(server.models()) == 1 + NUM_ADAPTERS
    traffic = run(crowd, requests(random.Random(1)))
    assert set(traffic.outputs) == set(range(NUM_ADAPTERS)), "each was asked"
    check_outputs(crowd, traffic)
    tiers = server.tiers()
    assert sum(tiers.values()) == NUM_ADAPTERS
    assert 0 < tiers["device"] < 3 * ROOM
    assert tiers["disk"] > NUM_ADAPTERS - 6 * ROOM
    assert traffic.most_used <= crowd.max_bytes
    assert server.server.metric("branchline:adapter_evictions_total", tier="device") > ROOM
    assert server.server.metric("branchline:adapter_load_failures_total") == 0
    third = len(traffic.resident) // 3
    first, last = traffic.resident[:third], traffic.resident[-third:]
    growth = statistics.median(last) - statistics.median(first)
    assert growth < GROWTH, f"{growth / 2**20:.1f} MiB more in the last third"


def requests(rng: random.Random) -> list[int]:
    """Every adapter once, then by how popular they are."""
    order = list(range(NUM_ADAPTERS))
    rng.shuffle(order)
    weights = [1 / (place + 1) for place in range(NUM_ADAPTERS)]
    return order + rng.choices(order, weights, k=NUM_REQUESTS - NUM_ADAPTERS)


def run(crowd: Crowd, numbers: list[int]) -> Traffic:
    """Ask all of them, from a few clients at once; no request may fail."""
    traffic, lock = Traffic(), threading.Lock()
    processes = [psutil.Process(crowd.server.server.process.pid)]
    processes += processes[0].children(recursive=True)

    def ask(place: int) -> None:
        number = numbers[place]
        name = crowd.adapters[number].name
        answer = crowd.server.complete(name, PROMPT, max_tokens=NUM_TOKENS)
        with lock:
            traffic.outputs[number].add(tuple(answer.output))
        if place >= NUM_BEFORE and place % 20 == 0:
            resident = sum(process.memory_info().rss for process in processes)
            used = crowd.server.used()["device"]
            with lock:
                traffic.resident.append(resident)
                traffic.most_used = max(traffic.most_used, used)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(ask, range(len(numbers))))
    return traffic


def check_outputs(crowd: Crowd, traffic: Traffic) -> None:
    """Every answer is its adapter's own; the reference that says so is as peft's."""
    reference = BatchedReference(crowd.model)
    check_reference(crowd, reference, traffic)
    answers = [(number, list(out)) for number, outs in traffic.outputs.items() for out in outs]
    wrong, distinct = [], {tuple(output) for _, output in answers}
    for start in range(0, len(answers), 100):
        batch = answers[start : start + 100]
        adapters = [crowd.adapters[number] for number, _ in batch]
        logits = reference.next_logits(adapters, [PROMPT + output[:-1] for _, output in batch])
        scores = logits[:, len(PROMPT) - 1 :]
        chosen = scores.gather(2, torch.tensor([output for _, output in batch])[..., None])
        behind = (scores.amax(-1) - chosen[..., 0]).amax(-1)
        wrong += [
            crowd.adapters[number].name
            for (number, _), gap in zip(batch, behind.tolist(), strict=True)
            if gap >= MARGIN
        ]
    assert not wrong, f"{len(wrong)} answers are not their adapter's: {wrong[:10]}"
    assert len(distinct) > NUM_ADAPTERS * 0.8, "answers that are alike would prove little"


def check_reference(crowd: Crowd, reference: BatchedReference, traffic: Traffic) -> None:
    """A few adapters of different ranks, as peft has them."""
    some = [next(each for each in crowd.adapters if each.rank == rank) for rank in (4, 32, 64)]
    peft = Reference(crowd.model, {each.name: each.path for each in some})
    batched = reference.next_logits(some, [PROMPT] * len(some))
    for row, adapter in zip(batched, some, strict=True):
        torch.testing.assert_close(
            row, peft.next_logits(PROMPT, adapter.name), atol=1e-4, rtol=1e-4
        )
