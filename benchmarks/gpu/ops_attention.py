"""Writing keys and values and attending to them: decodes, prompts, chunks, windows, 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.kv_cache import FP8

from .bench import Bench, Case, error, poisoned, wide

BLOCK_SIZE = 16
FP8_ERROR = 0.065
"""Three bits of mantissa round by 1/16 at most."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of a step: so many of each one's last tokens are queries."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64

    def tables(self, order: list[int]) -> list[list[int]]:
        """Blocks of each request, scattered in a pool whose block 0 is nobody's."""
        left = iter(order)
        return [[1 + next(left) for _ in range(-(-n // BLOCK_SIZE))] for n in self.seq_lens]

    @property
    def num_blocks(self) -> int:
        """Blocks that all of them take."""
        return sum(-(-length // BLOCK_SIZE) for length in self.seq_lens)


MIXED = Batch((1, 1, 1, 21, 9), (1, 64, 131, 21, 50))
LONG = Batch((1, 1, 1, 1, 300), (32_768, 513, 4096, 17, 6000), 32, 8, 128)
LEAST = Batch((1, 1, 5), (1, 37, 12), 4, 2, 16)
WIDE_HEADS = Batch((1, 1, 40), (700, 33, 170), 8, 4, 256)


def pool(bench: Bench, num_blocks: int, batch: Batch, is_fp8: bool) -> ops.KvCache:
    """A cache in which reading what nobody wrote is found out: by its size."""
    size = (num_blocks + 8, BLOCK_SIZE, batch.num_kv_heads, batch.head_dim)
    if not is_fp8:
        keys, values = (torch.full(size, 1e4, device=bench.device) for _ in range(2))
        return ops.KvCache(keys.to(bench.dtype), values.to(bench.dtype))
    keys, values = (torch.full(size, 448.0, device=bench.device).to(FP8) for _ in range(2))
    scales = [torch.full(size[:3], 10.0, device=bench.device) for _ in range(2)]
    return ops.KvCache(keys, values, *scales)


def stored(cache: ops.KvCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [T, Hkv, D] that lie in ``slots`` [T], in float64."""
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    found = []
    for rows, scales in (
        (cache.keys, cache.key_scales),
        (cache.values, cache.value_scales),
    ):
        read = rows.float()[blocks, offsets].double()
        found.append(read if scales is None else read * scales[blocks, offsets, :, None].double())
    return found[0], found[1]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first R dims of x [T, H, D] in float64; cos and sin [T, R]."""
    half = cos.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def angles(bench: Bench, num_tokens: int, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, R] of random angles, both halves alike."""
    angle = bench.uniform(num_tokens, rotary_dim // 2) * 6
    cos, sin = (torch.cat((t, t), -1).to(bench.dtype) for t in (angle.cos(), angle.sin()))
    return cos, sin


def signed(sin: Tensor) -> Tensor:
    """``sin`` as the op wants it: its first half negated."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[:, :half], sin[:, half:]), -1)


def rope_and_kv_write(bench: Bench, rotary_dim: int, is_fp8: bool = False) -> float:
    """Of q, k and v side by side in one tensor: q in place, k and v in a strided cache."""
    num_tokens, batch = 19, Batch((1,), (19,), 8, 2, 64)
    heads = bench.draw(num_tokens, 12, 64)
    q, k, v = heads.split_with_sizes((8, 2, 2), 1)
    cos, sin = angles(bench, num_tokens, rotary_dim)
    expected_q, expected_k = (turned(wide(x), wide(cos), wide(sin)) for x in (q, k))
    expected_v = wide(v).clone()
    slots = torch.tensor(bench.permutation(3 * BLOCK_SIZE)[:num_tokens], device=bench.device)
    cache = pool(bench, 3, batch, is_fp8)
    ops.rope_and_kv_write(q, k, v, (cos, signed(sin)), cache, slots)
    keys, values = stored(cache, slots)
    written = max(error(keys, expected_k), error(values, expected_v))
    if is_fp8:
        written = 0.0 if written <= FP8_ERROR else written
    return max(error(q, expected_q), written)


def attention(
    bench: Bench,
    batch: Batch,
    window: int | None = None,
    soft_cap: float | None = None,
    is_fp8: bool = False,
) -> float:
    """rope_and_kv_write and paged_attention together; what was written is read back too."""
    batch = bench.pick(batch, MIXED if batch.num_blocks > 100 else batch, LEAST)
    tables = batch.tables(bench.permutation(batch.num_blocks))
    num_keys = sum(batch.seq_lens)
    keys, values = (bench.draw(num_keys, batch.num_kv_heads, batch.head_dim) for _ in range(2))
    slots = torch.tensor(
        [
            table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for table, length in zip(tables, batch.seq_lens, strict=True)
            for position in range(length)
        ],
        device=bench.device,
    )
    cache = pool(bench, batch.num_blocks, batch, is_fp8)
    expected = wide(keys).clone(), wide(values).clone()
    q = torch.zeros(num_keys, batch.num_heads, batch.head_dim, device=bench.device)
    ops.rope_and_kv_write(q.to(bench.dtype), keys, values, None, cache, slots)
    read = stored(cache, slots)
    written = max(error(read[0], expected[0]), error(read[1], expected[1]))
    if written > (FP8_ERROR if is_fp8 else 0):
        return math.inf
    scale = batch.head_dim**-0.5
    q = bench.draw(sum(batch.query_lens), batch.num_heads, batch.head_dim)
    metadata = ops.build_attention_metadata(tables, batch.query_lens, batch.seq_lens, bench.device)
    poisoned(q)  # the allocator's next block of this size is not a lucky zero
    actual = ops.paged_attention(q, cache, metadata, scale, window, soft_cap)
    parts = zip(
        torch.split(wide(q), list(batch.query_lens)),
        torch.split(read[0], list(batch.seq_lens)),
        torch.split(read[1], list(batch.seq_lens)),
        strict=True,
    )
    return error(actual, torch.cat([attended(*part, scale, window, soft_cap) for part in parts]))


def attended(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
) -> Tensor:
    """One request's causal attention, q [Tq, H, D] over k, v [L, Hkv, D], in float64."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    position = torch.arange(len(k), device=q.device)
    row = position[-len(q) :, None]
    hidden = (position > row) | (position <= row - (window or len(k) + 1))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


CASES: dict[str, Case] = {
    "rope_and_kv_write": partial(rope_and_kv_write, rotary_dim=64),
    "rope_and_kv_write, partial": partial(rope_and_kv_write, rotary_dim=32),
    "rope_and_kv_write, 8 bits": partial(rope_and_kv_write, rotary_dim=64, is_fp8=True),
    "kv_write + attention": partial(attention, batch=MIXED),
    "attention, sliding window": partial(attention, batch=MIXED, window=24),
    "attention, soft cap": partial(attention, batch=MIXED, soft_cap=20.0),
    "attention, 32,768 keys": partial(attention, batch=LONG),
    "attention, 32,768 keys, window": partial(attention, batch=LONG, window=1000),
    "attention, heads of 256": partial(attention, batch=WIDE_HEADS),
    "attention, 8 bits": partial(attention, batch=MIXED, is_fp8=True),
    "attention, 8 bits, 32,768 keys": partial(attention, batch=LONG, is_fp8=True),
}
