"""Logprobs of prompts and pooled vectors through the kernels, as transformers and PEFT say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_run import check_generations
from prompt_batch import mixed_requests, run, serve, start, tokens_of
from prompt_oracle import check_prompts

from branchline.engine import prompt_reader
from branchline.kernels import ops


def test_a_mixed_batch(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of few rows, of several vocabularies."""
    assert ops.uses_kernels(torch.empty(0, device=device))
    monkeypatch.setattr(prompt_reader, "SLICE_BYTES", 7 * 4 * 260)
    served = serve(tmp_path, "llama31", ("rank 8", "added tokens"), num_hidden_layers=2)
    loop = start(
        served,
        device="cuda" if device.type == "cuda" else "cpu",
        block_size=4,
        max_model_len=64,
        max_num_seqs=16,
        kv_cache_gb=0.005,
        max_num_batched_tokens=64,
    )
    generations = mixed_requests(served, 9)
    outputs = run(loop, generations)
    check_prompts(served.reference, generations, outputs)
    talking = [each for each in generations if each.pooling is None and each.params.max_tokens]
    check_generations(served.reference, talking, tokens_of(outputs))
