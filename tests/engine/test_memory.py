"""Sizes of the KV pool."""

from __future__ import annotations

import os

import pytest
import torch

from branchline.engine.blocks import NUM_RESERVED_BLOCKS
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.memory import (
    GIB,
    host_blocks_for,
    kv_budget,
    machine_memory,
    num_blocks_for,
)

CPU = torch.device("cpu")


def test_a_stated_size_is_taken_as_it_is():
    config = EngineConfig(model="m", kv_cache_gb=0.5)
    assert kv_budget(config, CPU, wanted=1) == GIB // 2


def test_more_than_the_machine_has_is_refused_at_the_start():
    with pytest.raises(EngineStartError, match=r"kv_cache_gb: 1e\+06 is more than the .* GiB"):
        kv_budget(EngineConfig(model="m", kv_cache_gb=1e6), CPU, wanted=1)


def test_a_cpu_takes_what_is_wanted_up_to_its_share():
    config = EngineConfig(model="m")
    assert kv_budget(config, CPU, wanted=1000) == 1000
    assert kv_budget(config, CPU, wanted=10**15) == machine_memory() // 4


@pytest.mark.parametrize(("text", "limit"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_control_group_can_lower_the_machine_s_memory(tmp_path, text, limit):
    path = tmp_path / "memory.max"
    if text is not None:
        path.write_text(text)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_memory(path) == (limit or total)


def test_reserved_blocks_are_counted_on_top():
    most = 4 * (10 - NUM_RESERVED_BLOCKS)
    assert num_blocks_for(budget=1000, block_bytes=100, block_size=4, max_model_len=most) == 10


def test_too_small_a_pool_names_both_sides_and_what_to_change():
    most = 4 * (10 - NUM_RESERVED_BLOCKS)
    error = f"holds {most} tokens.*max_model_len {most + 1}.*kv_cache_gb"
    with pytest.raises(EngineStartError, match=error):
        num_blocks_for(budget=1000, block_bytes=100, block_size=4, max_model_len=most + 1)


@pytest.mark.parametrize(
    ("kv_offload_gb", "block_bytes", "num_blocks"),
    [(0, 1000, 0), (0.0, 1, 0), (0.5, GIB // 8, 4), (0.5, GIB // 8 + 1, 3), (0.5, GIB // 2, 1)],
)
def test_host_blocks_stay_within_their_budget(kv_offload_gb, block_bytes, num_blocks):
    assert host_blocks_for(kv_offload_gb, block_bytes) == num_blocks


@pytest.mark.parametrize(
    ("kv_offload_gb", "error"),
    [
        (1e6, r"kv_offload_gb: 1e\+06 is more than the .* GiB there is"),
        (0.001, "kv_offload_gb: 0.001 is less than one block, 2 MiB"),
    ],
)
def test_host_memory_that_can_t_be_had_is_refused_at_the_start(kv_offload_gb, error):
    with pytest.raises(EngineStartError, match=error):
        host_blocks_for(kv_offload_gb, 2 * 1024**2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
        ("block_size", 0),
        ("block_size", 257),
        ("gpu_memory_utilization", 0.0),
        ("gpu_memory_utilization", 1.1),
        ("cpu_memory_utilization", 0.0),
        ("cpu_memory_utilization", 1.1),
        ("kv_cache_gb", -1.0),
        ("max_model_len", 1),
        ("num_threads", 0),
        ("dtype", "int8"),
        ("device", "tpu"),
        ("kv_cache_dtype", "int8"),
        ("adapter_dtype", "bfloat16"),
        ("quantization", "awq"),
        ("quantization", "auto"),
        ("scheduling_policy", "lifo"),
    ],
)
def test_a_bad_value_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        EngineConfig(model="m", **{field: value})
