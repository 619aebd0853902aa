"""What an adapter answers by transformers: its pairs added to the base's weights, in float32.

An answer is right if each of its tokens is the likeliest after those before it, or as good as that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from .client import Answer

BATCH = 16
TOLERANCE = 2e-4
"""How far below the best a logit may be, relative to the largest: sums are in another order."""


class Reference:
    """The base, and one adapter at a time in it."""

    def __init__(self, model: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)

    @contextmanager
    def merged(self, adapter: Path) -> Iterator[None]:
        """Have the adapter's deltas in the weights while the context lasts."""
        config = json.loads((adapter / "adapter_config.json").read_text())
        pairs = load_file(adapter / "adapter_model.safetensors")
        scale, saved = config["lora_alpha"] / config["r"], dict[str, Tensor]()
        with torch.no_grad():
            for name in [name for name in pairs if name.endswith(".lora_A.weight")]:
                b = pairs[name.replace(".lora_A.", ".lora_B.")]
                own = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
                weight = self._model.get_parameter(own)
                saved[own] = weight.clone()
                weight.add_(b.float() @ pairs[name].float(), alpha=scale)
        try:
            yield
        finally:
            with torch.no_grad():
                for own, before in saved.items():
                    self._model.get_parameter(own).copy_(before)

    def are_right(self, answers: Sequence[Answer]) -> list[bool]:
        """Whether each is what the model as it stands now would answer greedily."""
        batches = (answers[start : start + BATCH] for start in range(0, len(answers), BATCH))
        return [one <= TOLERANCE for batch in batches for one in self._shortfalls(batch)]

    @torch.no_grad()
    def _shortfalls(self, answers: Sequence[Answer]) -> list[float]:
        """By how much each answer's worst token is behind the likeliest one.

        All have a prompt of one length, and an answer of one length.
        """
        prompt = torch.tensor([answer.prompt_token_ids for answer in answers])
        tokens = torch.tensor([answer.token_ids for answer in answers])
        first = prompt.shape[1] - 1
        logits = self._model(torch.cat([prompt, tokens], 1)).logits[:, first:-1]
        chosen = logits.gather(2, tokens[..., None])[..., 0]
        behind = (logits.amax(2) - chosen).amax(1) / logits.abs().amax((1, 2))
        return list(map(float, behind))
