"""Steps of every kind that kernels are compiled for, before there are requests that would wait."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..lora.bank import AdapterBank
from .batch import send_batch
from .blocks import SCRAP_BLOCK
from .runner import ModelRunner
from .step_layout import StepAdapters, decode_layout
from .step_profile import largest_step
from .trial_adapter import trial_slot

TRIALS = ((512, 0), (256, 512), (160, 128), (96, 512), (32, 512))
"""Tokens with and without an adapter: in high tiles and low ones, most rows of a step and few."""


DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Requests: from few to many, their keys are split into ever fewer parts."""


@torch.inference_mode()
def warm_up_decodes(runner: ModelRunner, max_num_seqs: int) -> None:
    """Run steps of decodes over the scrap block, in tables as wide as there can be."""
    block_size, max_model_len = runner.layout.block_size, runner.decoder.max_model_len
    table = [SCRAP_BLOCK] * -(-max_model_len // block_size)
    for size in DECODE_SIZES:
        num_rows = min(size, max_num_seqs)
        zeros, tables = [0] * num_rows, [table] * num_rows
        layout = decode_layout(zeros, zeros, tables, [None] * num_rows, block_size)
        runner.execute(send_batch(layout, None, runner.decoder.device))


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
