"""Which sections there are, in which order, and how they share the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from . import ops_attention, ops_fp8, ops_lora, ops_sampling, ops_small
from .agreement import check_tokens
from .bench import DTYPES, check_cases
from .decode import time_decode
from .hot_load import time_hot_load
from .machine import measure_machine
from .peer import time_peer
from .sections import Options, Section
from .tune import compile_plans, groups_of, time_plans

AREAS = {
    "ops": (ops_small.CASES, DTYPES),
    "attention": (ops_attention.CASES, DTYPES),
    "lora": (ops_lora.CASES, DTYPES),
    "8 bits": (ops_fp8.CASES, (torch.bfloat16, torch.float16)),
    "sampling": (ops_sampling.CASES, (torch.float32,)),
}
"""Cases of each kind, and in which dtypes; logits are float32 always."""


def sections_for(options: Options, only: Sequence[str], is_tuning: bool) -> list[Section]:
    """All of them, or those of ``only``; ``is_tuning``: the tuner alone."""
    if is_tuning:
        compiling = [
            Section(f"compile {group}", 200, partial(compile_plans, group=group), group="compile")
            for group in groups_of(options.shape)
        ]
        return [*compiling, Section("tune", 200, time_plans)]
    checks = [
        Section(name, 150, partial(check_cases, cases=cases, dtypes=dtypes), "correctness")
        for name, (cases, dtypes) in AREAS.items()
    ]
    sections = [
        Section("machine", 15, measure_machine),
        *checks,
        Section("tokens", 150, check_tokens, "correctness"),
        Section("decode", 170 if not options.is_full else 900, time_decode),
        Section("hot load", 35, time_hot_load),
        Section("peer", 50, time_peer),
    ]
    known = {section.name for section in sections}
    if not set(only) <= known:
        raise SystemExit(f"--only: one of {', '.join(sorted(known))}")
    return [section for section in sections if not only or section.name in only]
