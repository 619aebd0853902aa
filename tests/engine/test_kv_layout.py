"""KV pools in either precision: what a block takes, what lies where, and what a clear block is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny_model

from branchline.engine.batch import send_batch
from branchline.engine.kv_copier import KvCopier
from branchline.engine.kv_layout import KvLayout
from branchline.engine.models.config import ModelConfig
from branchline.engine.runner import ModelRunner
from branchline.engine.step_layout import decode_layout
from branchline.engine.weights import load_decoder
from branchline.kernels import ops

NUM_BLOCKS, BLOCK_SIZE = 7, 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def model(directory) -> ModelConfig:
    return ModelConfig.from_directory(directory)


@pytest.mark.parametrize(("dtype", "row"), [(torch.bfloat16, 2), (torch.float32, 4), (ops.FP8, 1)])
def test_a_pool_is_as_large_as_its_blocks(model, dtype, row):
    layout = KvLayout(model, BLOCK_SIZE, dtype)
    pool = layout.allocate(NUM_BLOCKS, "cpu")
    assert pool.nbytes == NUM_BLOCKS * layout.block_bytes
    scale = 4 if dtype == ops.FP8 else 0
    heads = 2 * model.num_layers * BLOCK_SIZE * model.num_kv_heads
    assert layout.block_bytes == heads * (model.head_dim * row + scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, ops.FP8])
def test_caches_are_views_of_the_pool_block_by_block(model, dtype):
    layout = KvLayout(model, BLOCK_SIZE, dtype)
    pool = layout.allocate(NUM_BLOCKS, "cpu")
    caches = layout.caches(pool)
    assert len(caches) == model.num_layers
    shape = (NUM_BLOCKS, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    parts = []
    for cache in caches:
        assert cache.keys.shape == cache.values.shape == shape
        assert cache.keys.dtype == cache.values.dtype == dtype
        assert cache.keys[0].is_contiguous()
        parts += [cache.keys, cache.values]
        assert (cache.key_scales is not None) == (dtype == ops.FP8)
        if cache.key_scales is not None and cache.value_scales is not None:
            assert cache.key_scales.shape == cache.value_scales.shape == shape[:3]
            parts += [cache.key_scales, cache.value_scales]
    # Every byte of a block belongs to one part of it, and other blocks have none of it.
    for part in parts:
        assert not part[3].float().any(), "two parts share bytes"
        part[3] = 1.0
    kept = pool.view(torch.uint8).clone()
    for part in parts:
        assert (part[3].float() == 1.0).all()
    pool[:, :, 3] = 0
    assert not pool.any()
    assert kept.any()


def test_quantized_blocks_travel_with_their_scales(model):
    layout = KvLayout(model, BLOCK_SIZE, ops.FP8)
    pool = layout.allocate(NUM_BLOCKS, "cpu")
    pool.copy_(torch.randint(0, 255, pool.shape, dtype=torch.uint8))
    before = pool.clone()
    copier = KvCopier(pool, 3)
    for transfer in (copier.copy_out([2, 6], [1, 2]), copier.copy_in([2, 1], [0, 4])):
        assert transfer.wait(30.0)
        assert transfer.error is None
    assert torch.equal(pool[:, :, [0, 4]], before[:, :, [6, 2]])
    copier.close()


@torch.inference_mode()
def test_a_runner_of_quantized_blocks_is_close_and_reads_what_is_there(directory, model):
    decoder = load_decoder(directory, model, torch.float32, torch.device("cpu"), 32)

    def logits(kv_dtype: torch.dtype | None, clear: bool) -> torch.Tensor:
        runner = ModelRunner(decoder, 6, 4, kv_dtype)
        for position in range(6):
            tokens = [11 * position + 3, 7 * position + 5]
            places = [position, position]
            layout = decode_layout(tokens, places, [[2, 3], [5, 4]], [None, None], 4)
            if clear and position == 5:
                runner.prepare(torch.empty(0), None, torch.tensor([2, 5]), None)
            found = runner.execute(send_batch(layout, None, decoder.device))
        return found

    exact, quantized = logits(None, False), logits(ops.FP8, False)
    error = (quantized - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.1
    exact_cleared, cleared = logits(None, True), logits(ops.FP8, True)
    assert (exact_cleared - exact).abs().max() > 0.1
    error = (cleared - exact_cleared).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.1
