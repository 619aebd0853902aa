"""Every kind of adapter that PEFT writes: what the loader makes of it gives PEFT's logits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_kinds import INVOCATION, KINDS
from oracle import Reference
from served_model import ServedModel

from branchline.engine.models.config import ModelConfig
from branchline.engine.module_shapes import module_shapes
from branchline.lora.activation import find_activation
from branchline.lora.adapter import AdapterConfig
from branchline.lora.loader import load_adapter

# With the rows that kinds train, and an invocation in the middle.
PROMPT = [72, 101, 5, 97, 98, 258, *INVOCATION, 1, 3, 32, 101, 110, 7, 200]

# What is dense is checked on one tied family, and on those where it is another matter: with biases,
# fused, untied, with scaled embeddings, sandwich norms and q/k norms. Pairs: see test_loader.
PLAIN = re.compile(r"rank|target|exclude|layers|fp16|bf16|rslora|sharded")
ELSEWHERE = {
    "qwen2": re.compile(r"bias|token rows|added tokens"),
    "phi3": re.compile(r"lora_bias|dora|saved embed"),
    "gemma3": re.compile(r"embed|norms|token rows$|added tokens, rows"),
}
CASES = [("llama32", kind) for kind in KINDS if not PLAIN.match(kind)] + [
    (family, kind)
    for family, chosen in ELSEWHERE.items()
    for kind in KINDS
    if chosen.search(kind) and family in KINDS[kind].families
]


@pytest.mark.parametrize(
    ("family", "kind"), [case for case in CASES if case[0] in KINDS[case[1]].families]
)
def test_logits_are_those_of_peft(
    family: str, kind: str, model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    model = model_dir(family)
    adapter = KINDS[kind].make(model, tmp_path / "adapter", seed=2)
    config, shapes = (
        AdapterConfig.from_directory(adapter),
        module_shapes(ModelConfig.from_directory(model)),
    )
    served = ServedModel(model, shapes)
    weights = load_adapter(adapter, config, shapes, served.base)
    served.put(weights)
    size = weights.vocab_size or shapes.vocab_size
    prompt = PROMPT + list(range(260, size))
    start = 0
    if config.invocation_tokens is not None:
        start = find_activation(prompt, config.invocation_tokens) or 0
        assert start
    reference = Reference(model, {"adapter": adapter})
    expected = reference.next_logits(prompt, "adapter")
    ours = served.next_logits(prompt, start)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    base = reference.next_logits(PROMPT)
    shared = min(base.shape[1], expected.shape[1])
    difference = (expected[: len(PROMPT), :shared] - base[:, :shared]).abs().amax(dim=1)
    assert difference[start:].max() > 1, "the adapter changes nothing that a mistake could spoil"
