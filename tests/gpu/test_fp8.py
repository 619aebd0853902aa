"""Rows in 8 bits: the kernel rounds exactly as its twin does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import Reference
from paged_run import all_at_once, paged_logits, random_prompts
from rounded_reference import round_linears
from tiny_models import make_tiny_model

from branchline.engine import weight_copy
from branchline.engine.config import Quantization
from branchline.engine.models.config import ModelConfig
from branchline.engine.weights import load_decoder
from branchline.kernels import ops
from branchline.kernels.fp8 import scaled_product
from branchline.kernels.gpu.fp8 import quantize_rows as kernel
from branchline.kernels.kv_cache import FP8, quantize_rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def spread(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Rows of very different magnitudes, elements down to denormals of 8 bits, a row of zeros."""
    generator = torch.Generator().manual_seed(rows * size)
    x = torch.randn(rows, size, generator=generator)
    x *= torch.rand(rows, size, generator=generator).pow(6)
    x *= 10 ** torch.linspace(-3, 3, rows).unsqueeze(1)
    x[0] = 0
    return x.to(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 16, 100, 1024, 5000])
def test_equals_the_twin_exactly(device: torch.device, dtype: torch.dtype, size: int) -> None:
    x = spread(5, size, dtype, device)
    values, scales = kernel(x)
    expected, expected_scales = quantize_rows(x)
    assert (values.dtype, scales.dtype) == (FP8, torch.float32)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected.float())


def test_strided_rows_and_no_rows(device: torch.device) -> None:
    x = spread(4, 96, torch.bfloat16, device)
    values, scales = kernel(x[:, 32:64])
    expected, expected_scales = quantize_rows(x[:, 32:64])
    assert torch.equal(values.float(), expected.float())
    assert torch.equal(scales, expected_scales)
    assert [part.numel() for part in kernel(x[:0])] == [0, 0]


def test_a_bad_row_stays_bad_and_alone(device: torch.device) -> None:
    x = spread(3, 64, torch.bfloat16, device)
    x[1, 7] = float("nan")
    values, scales = kernel(x)
    expected, _ = quantize_rows(x[[0, 2]])
    assert torch.equal(values[[0, 2]].float(), expected.float())
    if x.is_cuda:  # the interpreter knows no NaN in 8 bits
        assert (values[1].float() * scales[1]).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_has_the_product_of_what_was_rounded(
    device: torch.device, dtype: torch.dtype, bias: bool
) -> None:
    """On a GPU through its 8 bit units, elsewhere through the twin: to the dtype's rounding."""
    x = spread(5, 96, dtype, device).clamp(-100, 100)
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(48, 96, generator=generator).to(dtype).to(device)
    added = torch.randn(48, generator=generator).to(dtype).to(device) if bias else None
    weight = ops.quantize_weight(plain)
    y = ops.linear(x, weight, added)
    assert y.dtype == dtype
    expected = scaled_product(*quantize_rows(x), weight).double()
    expected += 0 if added is None else added.double()
    tolerance = 2e-2 if x.is_cuda or dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_model_is_that_of_rounded_linears(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda":
        pytest.skip("a GPU rounds to bfloat16 between; the interpreter can be held to float32")
    make_tiny_model(tmp_path, "llama31", tokenizer=False, num_hidden_layers=1)
    config = ModelConfig.from_directory(tmp_path)
    decoder = load_decoder(tmp_path, config, torch.float32, device, 64, quantization="fp8")
    lengths = (9, 5)
    prompts = random_prompts(lengths)
    logits = torch.cat(paged_logits(decoder, prompts, all_at_once(lengths)))
    exact = Reference(tmp_path)
    round_linears(exact)
    expected = torch.cat([exact.next_logits(prompt) for prompt in prompts])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_weights_reach_a_gpu(
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through buffers that no tensor fits in whole: as on the host, bit for bit."""
    if device.type != "cuda":
        pytest.skip("copies between a host and a device need two")
    make_tiny_model(tmp_path, "qwen2", tokenizer=False)
    monkeypatch.setattr(weight_copy, "STAGING_BYTES", 1000)
    config = ModelConfig.from_directory(tmp_path)
    there, here = (
        load_decoder(tmp_path, config, dtype, where, quantization=quantization)._weights
        for where in (device, torch.device("cpu"))
    )
    assert torch.equal(there.embedding.cpu(), here.embedding)
    for ours, theirs in zip(there.layers, here.layers, strict=True):
        for name in ("attention_norm", "qkv", "qkv_bias", "o", "mlp_norm", "gate_up", "down"):
            copied, plain = getattr(ours, name), getattr(theirs, name)
            if isinstance(plain, ops.Fp8Weight):
                assert torch.equal(copied.scales.cpu(), plain.scales)
                assert torch.equal(copied.values.cpu().float(), plain.values.float())
            else:
                dense = plain.to_dense() if plain.is_mkldnn else plain
                assert torch.equal(copied.cpu(), dense)
