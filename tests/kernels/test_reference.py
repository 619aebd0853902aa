"""The small ops against plain float64 formulas."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels import ops


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (2, 3, 16)])
def test_rms_norm(shape, dtype, tolerance, offset):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * (weight.double() + offset)
    actual = ops.rms_norm(x, weight, 1e-5, offset)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_fused_add_rms_norm_returns_the_sum_too():
    x, residual, weight = randn(4, 8), randn(4, 8, seed=1), randn(8, seed=2)
    normed, total = ops.fused_add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, ops.rms_norm(x + residual, weight, 1e-6))


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rope_rotates_pairs_half_a_head_apart(rotary_dim):
    heads = randn(3, 5, 8)
    before = heads.clone().double()
    angle = randn(3, rotary_dim // 2, seed=2).double()
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
    ops.apply_rope(heads, cos.float(), sin.float())
    half = rotary_dim // 2
    pairs = torch.complex(before[..., :half], before[..., half:rotary_dim])
    turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat([turned.real, turned.imag, before[..., rotary_dim:]], -1)
    torch.testing.assert_close(heads.double(), expected, rtol=1e-5, atol=1e-5)


def test_rope_turns_a_view_of_a_fused_projection_and_nothing_beside_it():
    qkv = randn(3, 4 * 8)
    expected = qkv.clone()
    heads = qkv[:, :24].clone().view(3, 3, 8)
    cos, sin = randn(3, 8, seed=1), randn(3, 8, seed=2)
    ops.apply_rope(heads, cos, sin)
    expected[:, :24] = heads.flatten(1)
    ops.apply_rope(qkv.view(3, 4, 8)[:, :3], cos, sin)
    assert torch.equal(qkv, expected)


def test_kv_write_touches_only_its_slots():
    k_cache, v_cache = torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8)
    k, v = randn(2, 2, 8), randn(2, 2, 8, seed=1)
    ops.kv_write(k, v, ops.KvCache(k_cache, v_cache), torch.tensor([11, 2]))
    assert torch.equal(k_cache[2, 3], k[0])
    assert torch.equal(v_cache[0, 2], v[1])
    assert k_cache.count_nonzero() == k.numel()
    assert v_cache.count_nonzero() == v.numel()


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_queries_turn_and_turned_keys_are_written(num_tokens, beside, turns):
    """Whether queries and keys are views of one projection or not, to the same bits."""
    qkv, slots = randn(num_tokens, 7, 8), torch.tensor([11, 2, 5])[:num_tokens]
    q, k, v = (part.clone() for part in qkv.split_with_sizes((3, 2, 2), 1))
    rope = (randn(num_tokens, 4, seed=1), randn(num_tokens, 4, seed=2)) if turns else None
    expected = q.clone(), k.clone()
    for heads in expected if turns else ():
        ops.apply_rope(heads, *rope)
    cache = ops.KvCache(torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8))
    if beside:
        q, k, v = qkv.split_with_sizes((3, 2, 2), 1)
    ops.rope_and_kv_write(q, k, v, rope, cache, slots)
    assert torch.equal(q, expected[0])
    assert torch.equal(cache.keys.flatten(0, 1)[slots], expected[1])
    assert torch.equal(cache.values.flatten(0, 1)[slots], v)
    assert torch.equal(v, randn(num_tokens, 7, 8)[:, 5:])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activation(activation):
    gate_up = randn(5, 14)
    gate, up = gate_up.double().chunk(2, -1)
    if activation == "silu":
        expected = gate / (1 + (-gate).exp()) * up
    else:
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        expected = 0.5 * gate * (1 + inner.tanh()) * up
    torch.testing.assert_close(
        ops.gated_activation(gate_up, activation).double(), expected, rtol=1e-5, atol=1e-6
    )
