"""Greedy decoding with transformers (and peft), and how sure each decision was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Decoded:
    """Token ids chosen, each with its margin: the logit chosen less the next best."""

    token_ids: list[int]
    margins: list[float]


@torch.inference_mode()
def decode_greedily(
    model: Any, prompt_token_ids: Sequence[int], max_new_tokens: int, eos_token_ids: Sequence[int]
) -> Decoded:
    """Up to `max_new_tokens`, an end-of-text token included."""
    input_ids = torch.tensor([list(prompt_token_ids)])
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_token_ids),
        pad_token_id=eos_token_ids[0],
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = output.sequences[0, len(prompt_token_ids) :].tolist()
    best = [step[0].float().topk(2).values for step in output.logits]
    return Decoded(token_ids, [round((two[0] - two[1]).item(), 4) for two in best])
