"""An engine whose steps are made up: decodes over long contexts that nobody had to compute.

Steps go the engine's own way from the plan on: laid out, sent, run as a replayed graph where there
is one, sampled; the next one is launched before the last one's tokens are read. Only the scheduler
is left out. Keys and values are random numbers, and so are the adapters' pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch

from branchline.engine.blocks import NUM_RESERVED_BLOCKS
from branchline.engine.build import assemble_engine
from branchline.engine.cache_types import Namespace
from branchline.engine.config import EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.models.decoder import Decoder
from branchline.engine.module_shapes import module_shapes
from branchline.engine.plan import ScheduledChunk, StepPlan
from branchline.engine.prefix_cache import BlockLease
from branchline.engine.prefix_key import PrefixKey
from branchline.engine.request import Request
from branchline.engine.step_layout import lay_out
from branchline.engine.types import SamplingParams
from branchline.lora.bank import AdapterBank
from branchline.lora.shapes import PAGE_RANK, ModuleShapes
from branchline.lora.slots import SlotLease
from branchline.lora.weights import AdapterWeights, GroupWeights

from .device import Timings, release, timed

BLOCK_SIZE = 16
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine is to hold: requests at once, keys each, adapters and their ranks."""

    max_requests: int
    max_keys: int
    max_adapters: int = 0
    adapter_bytes: int = 0
    host_bytes: int = 0
    enforce_eager: bool = False
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"


class Harness:
    """An engine for made-up steps; leave the ``with`` block to free what it holds."""

    def __init__(self, decoder: Decoder, room: Room) -> None:
        self._decoder = decoder
        self._device = decoder.device
        self._room = room
        started = time.monotonic()
        self._engine: EngineLoop | None = assemble_engine(
            _config(decoder, room), decoder.config, decoder
        )
        self.start_seconds = time.monotonic() - started
        _fill_pool(self._engine)
        self.bank: AdapterBank = self._engine.adapters.bank
        self._loaded = 0

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._engine is not None
        self._engine.adapters.close()
        self._engine = None
        del self.bank
        release(self._device)

    @property
    def engine(self) -> EngineLoop:
        """The engine, while the block is not left."""
        assert self._engine is not None
        return self._engine

    def load(self, number: int, rank: int) -> list[int]:
        """Fill the bank with ``number`` adapters of this rank and no others; their slots."""
        for slot in sorted(self.bank.loaded_slots):
            self.bank.unload(slot)
        weights = random_pages(module_shapes(self._decoder.config), rank)
        for slot in range(number):
            self.bank.reserve(slot, weights)
        return list(range(number))

    def decode(self, seq_len: int, slots: Sequence[int | None]) -> StepPlan:
        """One token each of requests that have ``seq_len`` keys with this one."""
        return self._plan([(slot, seq_len - 1, 1) for slot in slots])

    def prefill(self, lengths: Sequence[int], slots: Sequence[int | None]) -> StepPlan:
        """Whole prompts of these lengths."""
        return self._plan([(slot, 0, n) for slot, n in zip(slots, lengths, strict=True)])

    def time(self, plan: StepPlan, repeats: int = 20) -> Timings:
        """The step again and again, each launched before the one before is read."""
        return timed(self._device, self.stepper(plan), repeats)

    @torch.inference_mode()
    def is_replayed(self, plan: StepPlan) -> bool:
        """Whether a captured graph serves the step; the device computes it once."""
        graphs = self.engine._graphs
        return graphs is not None and graphs.execute(lay_out(plan, BLOCK_SIZE), None) is not None

    def stepper(self, plan: StepPlan) -> Callable[[], None]:
        """Launches the step and takes in the one before."""
        engine = self.engine
        under_way: list[Any] = []

        def step() -> None:
            under_way.append(engine._launch(plan))
            if len(under_way) > 1:
                under_way.pop(0).result()

        return step

    def _plan(self, chunks: Sequence[tuple[int | None, int, int]]) -> StepPlan:
        """Chunks of (adapter slot, first position, tokens)."""
        made = []
        block = NUM_RESERVED_BLOCKS
        for number, (slot, start, length) in enumerate(chunks):
            num_blocks = -(-(start + length) // BLOCK_SIZE)
            request = self._request(number, start + length, slot)
            request.blocks.block_ids = list(range(block, block + num_blocks))
            block += num_blocks
            made.append(ScheduledChunk(request, start, length, samples=True))
        return StepPlan(tuple(made), number=1)

    def _request(self, number: int, num_tokens: int, slot: int | None) -> Request:
        cache = self.engine._scheduler.cache
        vocab_size = self._decoder.config.vocab_size
        tokens = [(number * 7919 + i * 104_729) % vocab_size for i in range(num_tokens)]
        request = Request(
            request_id=str(number),
            prompt_token_ids=tokens,
            params=SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, seed=0),
            blocks=BlockLease(cache, "bench"),
            key=PrefixKey(BLOCK_SIZE, Namespace("bench")),
            arrival=number,
            queued_at=0.0,
            token_ids=tokens,
        )
        if slot is not None:
            request.slot = SlotLease(self.engine.adapters.slots, str(slot), slot)
        return request


def _config(decoder: Decoder, room: Room) -> EngineConfig:
    blocks_each = -(-room.max_keys // BLOCK_SIZE) + 1
    model = decoder.config
    token_bytes = 2 * model.num_layers * model.num_kv_heads * (model.head_dim * 2 + 4)
    kv_bytes = (room.max_requests * blocks_each + 8) * BLOCK_SIZE * token_bytes
    if decoder.dtype.itemsize == 4:
        kv_bytes *= 2
    return EngineConfig(
        model="random",
        dtype="float32" if decoder.dtype == torch.float32 else "bfloat16",
        device="cuda" if decoder.device.type == "cuda" else "cpu",
        max_num_seqs=room.max_requests,
        block_size=BLOCK_SIZE,
        kv_cache_gb=kv_bytes / GIB,
        enable_prefix_caching=False,
        max_loras=max(1, room.max_adapters),
        adapter_memory_gb=room.adapter_bytes / GIB,
        adapter_dense_gb=0.0,
        adapter_host_gb=room.host_bytes / GIB,
        enforce_eager=room.enforce_eager,
        kv_cache_dtype=room.kv_cache_dtype,
    )


def _fill_pool(engine: EngineLoop) -> None:
    """Random keys and values everywhere: zeros can be faster, and hide what is read wrongly."""
    runner = engine._runner
    for cache in runner.layout.caches(runner.kv_pool):
        for stored in (cache.keys, cache.values):
            for blocks in torch.split(stored, 4096):
                blocks.copy_(torch.randn(blocks.shape, device=blocks.device).to(blocks.dtype))
        for scales in (cache.key_scales, cache.value_scales):
            if scales is not None:
                scales.fill_(1.0)


def random_pages(shapes: ModuleShapes, rank: int) -> AdapterWeights:
    """An adapter on all linears whose numbers are nowhere: only its sizes are asked for."""
    pages = -(-rank // PAGE_RANK)
    groups = {}
    for name, shape in shapes.groups.items():
        size_a = (shapes.num_layers, pages, len(shape.slices) * PAGE_RANK, shape.in_features)
        size_b = (shapes.num_layers, pages, PAGE_RANK, shape.out_features)
        groups[name] = GroupWeights(
            torch.empty(size_a, device="meta"), torch.empty(size_b, device="meta")
        )
    return AdapterWeights(groups)


def random_bytes(decoder: Decoder, rank: int) -> int:
    """Bytes of an adapter on all linears."""
    shapes = module_shapes(decoder.config)
    pages = -(-rank // PAGE_RANK)
    return sum(shapes.page_size(name) for name in shapes.groups) * pages * decoder.dtype.itemsize


def fill_bank(bank: AdapterBank) -> None:
    """Random numbers in every page."""
    for pool in bank.pools.values():
        for layer_a, layer_b in zip(pool.a_layers, pool.b_layers, strict=True):
            layer_a.normal_(0, pool.shape.in_features**-0.5)
            layer_b.normal_(0, 0.02)
