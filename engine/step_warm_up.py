"""Steps of every kind that kernels are compiled for, before there are requests that would wait."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..lora.bank import AdapterBank
from .batch import send_batch
from .runner import ModelRunner
from .step_layout import StepAdapters
from .step_profile import largest_step
from .trial_adapter import trial_slot

TRIALS = ((512, 0), (256, 512), (160, 128), (96, 512), (32, 512))
"""Tokens with and without an adapter: in high tiles and low ones, most rows of a step and few."""


@torch.inference_mode()
def warm_up_adapters(runner: ModelRunner, bank: AdapterBank | None, max_tokens: int) -> None:
    """Run steps with an adapter that are no decodes; nothing else may be under way."""
    if bank is None:
        return
    block_size, max_model_len = runner.layout.block_size, runner.decoder.max_model_len
    with trial_slot(bank) as slot:
        if slot is None:
            return
        for num_adapted, num_base in TRIALS:
            num_tokens = min(num_adapted + num_base, max_tokens)
            lengths = [min(num_adapted, num_tokens), max(0, num_tokens - num_adapted)]
            layout = largest_step(num_tokens, 1, block_size, max_model_len)
            adapters = StepAdapters(layout.adapters.slots, [slot, None], lengths)
            batch = send_batch(replace(layout, adapters=adapters), bank, runner.decoder.device)
            runner.execute(batch)
