"""Every op on a device, in one dtype, against the plain formula in float64 on the host."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.layers import StepLora, project
from branchline.lora.mapping import build_mapping
from branchline.lora.shapes import PAGE_RANK, GroupShape, ModuleShapes
from branchline.lora.weights import AdapterWeights, GroupWeights

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(TOLERANCES)


@dataclass(frozen=True, slots=True)
class OpResult:
    """One op in one dtype: the largest difference over the largest expected magnitude."""

    name: str
    dtype: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is one that rounding explains; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a case runs; ``draw`` rounds to the dtype first, so both sides see one input."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def draw(self, *shape: int) -> Tensor:
        """Normal values on the device in the dtype."""
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)

    def error(self, actual: Tensor, expected: Tensor) -> float:
        """Relative to the largest expected value; infinite for what is not finite."""
        difference = (wide(actual) - expected).abs().max()
        scale = expected.abs().max().clamp(min=1e-6)
        value = float(difference / scale)
        return value if value == value else float("inf")


Case = Callable[[Bench], float]


def wide(x: Tensor) -> Tensor:
    """The same values in float64 on the host."""
    return x.detach().cpu().double()


def check_ops(device: torch.device) -> list[OpResult]:
    """All cases in all dtypes."""
    results = []
    for dtype in DTYPES:
        for name, case in CASES.items():
            bench = Bench(device, dtype, torch.Generator().manual_seed(0))
            with torch.inference_mode():
                error = case(bench)
            results.append(OpResult(name, str(dtype)[6:], error, TOLERANCES[dtype]))
    return results


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in float64."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rms_norm(bench: Bench, weight_offset: float) -> float:
    x, weight = bench.draw(33, 2048), bench.draw(2048)
    expected = normed(wide(x), wide(weight) + weight_offset, 1e-5)
    return bench.error(ops.rms_norm(x, weight, 1e-5, weight_offset), expected)


def fused_add_rms_norm(bench: Bench) -> float:
    x, residual, weight = bench.draw(7, 2048), bench.draw(7, 2048), bench.draw(2048)
    expected_sum = wide(x) + wide(residual)
    actual, total = ops.fused_add_rms_norm(x, residual, weight, 1e-5)
    expected = normed(expected_sum, wide(weight), 1e-5)
    return max(bench.error(total, expected_sum), bench.error(actual, expected))


def apply_rope(bench: Bench, rotary_dim: int) -> float:
    q, k = bench.draw(19, 8, 64), bench.draw(19, 2, 64)
    angle = torch.rand(19, rotary_dim // 2, generator=bench.generator) * 6
    cos, sin = (torch.cat((t, t), -1).to(q) for t in (angle.cos(), angle.sin()))
    expected = [turned(wide(x), wide(cos), wide(sin)) for x in (q, k)]
    signed = torch.cat((-sin[:, : rotary_dim // 2], sin[:, rotary_dim // 2 :]), -1)
    for heads in (q, k):
        ops.apply_rope(heads, cos, signed)
    return max(bench.error(q, expected[0]), bench.error(k, expected[1]))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first R dims of x [T, H, D] in float64."""
    half = cos.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def gated_activation(bench: Bench, activation: ops.Activation) -> float:
    gate_up = bench.draw(13, 2 * 1024)
    gate, up = wide(gate_up).chunk(2, -1)
    if activation == "silu":
        expected = gate * torch.sigmoid(gate) * up
    else:
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        expected = 0.5 * gate * (1 + inner.tanh()) * up
    return bench.error(ops.gated_activation(gate_up, activation), expected)


def attention(bench: Bench, window: int | None, soft_cap: float | None) -> float:
    """kv_write and paged_attention together: decodes, whole prompts and later chunks."""
    query_lens, seq_lens, size = (1, 1, 1, 21, 9), (1, 64, 131, 21, 50), 16
    blocks = random.Random(0).sample(range(1, 40), 30)
    counts = [-(-length // size) for length in seq_lens]
    tables = [[blocks.pop() for _ in range(count)] for count in counts]
    k_cache, v_cache = bench.draw(40, size, 2, 64), bench.draw(40, size, 2, 64)
    keys = [bench.draw(length, 2, 64) for length in seq_lens]
    values = [bench.draw(length, 2, 64) for length in seq_lens]
    slots = [
        table[position // size] * size + position % size
        for table, length in zip(tables, seq_lens, strict=True)
        for position in range(length)
    ]
    slot_mapping = torch.tensor(slots, device=bench.device)
    ops.kv_write(torch.cat(keys), torch.cat(values), ops.KvCache(k_cache, v_cache), slot_mapping)
    q = bench.draw(sum(query_lens), 8, 64)
    metadata = ops.build_attention_metadata(tables, query_lens, seq_lens, bench.device)
    actual = ops.paged_attention(
        q, ops.KvCache(k_cache, v_cache), metadata, 0.125, window, soft_cap
    )
    parts = zip(torch.split(wide(q), list(query_lens)), keys, values, strict=True)
    expected = [attended(row, wide(k), wide(v), window, soft_cap) for row, k, v in parts]
    return bench.error(actual, torch.cat(expected))


def attended(q: Tensor, k: Tensor, v: Tensor, window: int | None, cap: float | None) -> Tensor:
    """One request's causal attention, q [Tq, 8, D] over k, v [L, 2, D], in float64."""
    k, v = (x.repeat_interleave(4, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * 0.125
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    position = torch.arange(len(k))
    row = position[-len(q) :, None]
    hidden = (position > row) | (position <= row - (window or len(k) + 1))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def lora(bench: Bench, segments: tuple[tuple[int | None, int], ...]) -> float:
    """``project`` with ranks of one, two and four pages, and base rows among them."""
    sizes, features = (96, 32, 32), 128
    shape = GroupShape(features, tuple(zip(("q_proj", "k_proj", "v_proj"), sizes, strict=True)))
    bank = AdapterBank(ModuleShapes(1, {"qkv": shape}), 1, 16, bench.dtype, bench.device, 3)
    loaded = []
    for slot, pages in enumerate((1, 2, 4)):
        a = bench.draw(1, pages, 3 * PAGE_RANK, features) * 0.1
        b = bench.draw(1, pages, PAGE_RANK, sum(sizes)) * 0.1
        loaded.append((wide(a)[0], wide(b)[0]))
        bank.load(slot, AdapterWeights({"qkv": GroupWeights(a.cpu(), b.cpu())}))
    x, weight = bench.draw(sum(n for _, n in segments), features), bench.draw(sum(sizes), features)
    mapping = build_mapping([slot for slot, _ in segments], [n for _, n in segments], bank)
    step = StepLora(bank, mapping) if mapping is not None else None
    actual = project(x, weight, None, 0, "qkv", step)
    rows = []
    parts = torch.split(wide(x), [length for _, length in segments])
    for (owner, _), part in zip(segments, parts, strict=True):
        base = part @ wide(weight).T
        rows.append(base if owner is None else base + delta(part, *loaded[owner], sizes))
    return bench.error(actual, torch.cat(rows))


def delta(x: Tensor, a: Tensor, b: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """x A^T B slice by slice; a [pages, S*16, K], b [pages, 16, N]."""
    parts = []
    for index, b_slice in enumerate(torch.split(b, list(sizes), -1)):
        a_slice = a[:, index * PAGE_RANK : (index + 1) * PAGE_RANK]
        parts.append(x @ a_slice.flatten(0, 1).T @ b_slice.flatten(0, 1))
    return torch.cat(parts, -1)


def sampling(bench: Bench) -> float:
    """The share of rows that draw another token than on the host: logits are float32 always."""
    rows, vocab_size = 64, 5003
    logits = torch.randn(rows, vocab_size, generator=bench.generator) * 3
    temperature = torch.linspace(0.2, 2.0, rows, dtype=torch.float64)
    top_k = torch.arange(rows) % 7 * 50
    top_p = torch.linspace(0.3, 1.0, rows, dtype=torch.float64)
    min_p = torch.zeros(rows, dtype=torch.float64)
    streams = torch.arange(4 * rows).view(4, rows)
    filters = (temperature, top_k, top_p, min_p)

    def chosen(device: torch.device) -> Tensor:
        moved = logits.to(device)
        scale, *others = (value.to(device) for value in filters)
        floors = ops.filter_floors(moved, scale, *others)
        top_ids, _ = ops.top_tokens(moved)
        return ops.sample_tokens(moved, top_ids, scale, streams.to(device), floors).cpu()

    return float((chosen(bench.device) != chosen(torch.device("cpu"))).float().mean())


SCATTERED = ((0, 1), (None, 1), (1, 1), (2, 1), (0, 1), (2, 3), (None, 5), (1, 2))
LONG = ((2, 70), (None, 9), (0, 130))

CASES: dict[str, Case] = {
    "rms_norm": partial(rms_norm, weight_offset=0.0),
    "rms_norm, offset 1": partial(rms_norm, weight_offset=1.0),
    "fused_add_rms_norm": fused_add_rms_norm,
    "apply_rope": partial(apply_rope, rotary_dim=64),
    "apply_rope, partial": partial(apply_rope, rotary_dim=32),
    "gated_activation, silu": partial(gated_activation, activation="silu"),
    "gated_activation, gelu": partial(gated_activation, activation="gelu_tanh"),
    "kv_write + attention": partial(attention, window=None, soft_cap=None),
    "  sliding window": partial(attention, window=24, soft_cap=None),
    "  soft cap": partial(attention, window=None, soft_cap=20.0),
    "lora, scattered rows": partial(lora, segments=SCATTERED),
    "lora, long runs": partial(lora, segments=LONG),
    "sampling": sampling,
}
