"""rope_and_kv_write: rotated queries, and keys and values in the cache, in 8 bits too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from branchline.kernels import ops, reference
from branchline.kernels.kv_cache import FP8, FP8_MAX

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
NUM_BLOCKS, BLOCK_SIZE, GAP = 10, 4, 3
POISON = 1e30


@dataclass(frozen=True)
class Shape:
    """``rotary`` 0: the layer has no rotary embedding."""

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary: int


SHAPES = (
    Shape(1, 4, 1, 64, 64),
    Shape(7, 3, 3, 100, 100),
    Shape(7, 6, 2, 32, 24),
    Shape(9, 5, 5, 24, 8),
    Shape(7, 2, 1, 256, 256),
    Shape(9, 4, 2, 16, 0),
    Shape(33, 9, 3, 128, 128),
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """A projection [T, Hq + 2 Hkv, D], and cos and sin."""
    qkv = randn(shape.num_tokens, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
    if not shape.rotary:
        return qkv.to(dtype), None
    angle = randn(shape.num_tokens, shape.rotary // 2, seed=1)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
    return qkv.to(dtype), (cos.to(dtype), sin.to(dtype))


def split(qkv: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    return qkv.split_with_sizes((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)


def rotated(heads: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """In float64."""
    heads = heads.double()
    if rope is not None:
        reference.apply_rope(heads, *(part.double() for part in rope))
    return heads


def empty_cache(shape: Shape, dtype: torch.dtype, device: torch.device) -> ops.KvCache:
    """Blocks with gaps between them, all of it poison."""
    rows = (BLOCK_SIZE, shape.num_kv_heads)
    size = BLOCK_SIZE * shape.num_kv_heads * shape.head_dim
    pool = torch.full((2, NUM_BLOCKS, size + GAP), POISON if dtype != FP8 else FP8_MAX)
    keys, values = pool.to(dtype).to(device)[:, :, :size].unflatten(2, (*rows, shape.head_dim))
    if dtype != FP8:
        return ops.KvCache(keys, values)
    scales = torch.full((2, NUM_BLOCKS, BLOCK_SIZE * shape.num_kv_heads + GAP), POISON)
    key_scales, value_scales = scales.to(device)[:, :, :-GAP].unflatten(2, rows)
    return ops.KvCache(keys, values, key_scales, value_scales)


def slots(num_tokens: int) -> Tensor:
    """Slots all over the cache but in block 0."""
    order = torch.randperm(
        (NUM_BLOCKS - 1) * BLOCK_SIZE, generator=torch.Generator().manual_seed(2)
    )
    return order[:num_tokens].long() + BLOCK_SIZE


def run(
    qkv: Tensor, shape: Shape, rope, cache: ops.KvCache, slot_mapping: Tensor, device
) -> Tensor:
    """The projection after the op."""
    qkv = qkv.to(device, copy=True)
    rope = None if rope is None else tuple(part.to(device) for part in rope)
    ops.rope_and_kv_write(*split(qkv, shape), rope, cache, slot_mapping.to(device))
    return qkv.cpu()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_turn_and_find_their_slots(shape, dtype, device) -> None:
    qkv, rope = made(shape, dtype)
    cache, slot_mapping = empty_cache(shape, dtype, device), slots(shape.num_tokens)
    after = run(qkv, shape, rope, cache, slot_mapping, device)
    q, k, v = split(qkv, shape)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(split(after, shape)[0].double(), rotated(q, rope), **tolerance)
    assert torch.equal(split(after, shape)[2], v)
    keys, values = (part.flatten(0, 1).cpu() for part in (cache.keys, cache.values))
    torch.testing.assert_close(keys[slot_mapping].double(), rotated(k, rope), **tolerance)
    assert torch.equal(values[slot_mapping], v)
    for rows in (keys, values):
        rows[slot_mapping] = POISON
        assert (rows == torch.tensor(POISON, dtype=dtype)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_8_bits_the_cache_holds_what_the_twin_reads(shape, dtype, device) -> None:
    """Rows of very different sizes each keep their own precision; zeros have scale 1."""
    qkv, rope = made(shape, dtype)
    sizes = torch.logspace(-4, 3, qkv.shape[1]).to(dtype)
    qkv *= sizes[None, :, None]
    qkv[0, -1] = 0
    cache, slot_mapping = empty_cache(shape, FP8, device), slots(shape.num_tokens)
    run(qkv, shape, rope, cache, slot_mapping, device)
    _, k, v = split(qkv, shape)
    parts = (cache.keys, cache.key_scales, k), (cache.values, cache.value_scales, v)
    for (stored, scales, heads), turns in zip(parts, (rope, None), strict=True):
        assert scales is not None
        exact = rotated(heads, turns)
        largest = exact.abs().amax(-1)
        flat_scales = scales.flatten(0, 1).cpu()
        expected = torch.where(largest > 0, largest / FP8_MAX, 1.0)
        torch.testing.assert_close(
            flat_scales[slot_mapping].double(), expected, rtol=TOLERANCE[dtype], atol=0
        )
        rows = stored.flatten(0, 1).cpu()[slot_mapping].double()
        read = rows * flat_scales[slot_mapping].double().unsqueeze(-1)
        error = (read - exact).abs() / largest.clamp(min=1e-30).unsqueeze(-1)
        assert (
            error.max() < 16 / FP8_MAX + TOLERANCE[dtype]
        )  # half of the widest step, and rounding
        assert (flat_scales == POISON).sum() == flat_scales.numel() - expected.numel()


@pytest.mark.parametrize("rotary", [0, 16])
def test_8_bits_are_those_of_the_twin(rotary, device) -> None:
    shape = Shape(9, 2, 2, 16, rotary)
    qkv, rope = made(shape, torch.float32)
    slot_mapping = slots(9)
    cache, twins = empty_cache(shape, FP8, device), empty_cache(shape, FP8, torch.device("cpu"))
    run(qkv, shape, rope, cache, slot_mapping, device)
    reference.rope_and_kv_write(*split(qkv.clone(), shape), rope, twins, slot_mapping)
    assert cache.value_scales is not None
    assert twins.value_scales is not None
    assert torch.equal(cache.value_scales.cpu(), twins.value_scales)
    assert torch.equal(cache.values.cpu().view(torch.uint8), twins.values.view(torch.uint8))


def test_nan_stays_nan_in_8_bits(device) -> None:
    if device.type == "cpu":
        pytest.skip("the interpreter makes a number of it")
    shape = Shape(2, 1, 1, 16, 16)
    qkv, rope = made(shape, torch.float32)
    qkv[1, 1:, 3] = torch.nan
    cache, slot_mapping = empty_cache(shape, FP8, device), torch.tensor([5, 6])
    run(qkv, shape, rope, cache, slot_mapping, device)
    for stored in (cache.keys, cache.values):
        rows = stored.flatten(0, 1)[:, 0].cpu().float()
        assert rows[6, 3].isnan()
        assert rows[5].isfinite().all()


def test_several_tokens_may_share_a_slot_of_the_scrap_block(device) -> None:
    shape = Shape(7, 2, 1, 16, 16)
    qkv, rope = made(shape, torch.float32)
    slot_mapping = torch.tensor([0, 0, 9, 0, 1, 0, 13])
    cache = empty_cache(shape, torch.float32, device)
    run(qkv, shape, rope, cache, slot_mapping, device)
    kept = cache.keys.flatten(0, 1).cpu()[[9, 13]].double()
    torch.testing.assert_close(kept, rotated(split(qkv, shape)[1], rope)[[2, 6]])


def test_queries_and_keys_that_do_not_lie_side_by_side(device) -> None:
    """As norms of queries and keys leave them."""
    shape = Shape(7, 4, 2, 16, 16)
    qkv, rope = made(shape, torch.float32)
    q, k, v = (part.contiguous() for part in split(qkv, shape))
    given = [part.to(device, copy=True) for part in (q, k, v)]
    assert rope is not None
    cos, sin = (part.to(device) for part in rope)
    cache = empty_cache(shape, torch.float32, device)
    ops.rope_and_kv_write(*given, (cos, sin), cache, slots(7).to(device))
    torch.testing.assert_close(given[0].cpu().double(), rotated(q, rope), rtol=2e-6, atol=2e-6)
    written = cache.keys.flatten(0, 1).cpu()[slots(7)].double()
    torch.testing.assert_close(written, rotated(k, rope), rtol=2e-6, atol=2e-6)
