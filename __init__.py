"""Branchline: one base model, many LoRA adapters, one batch.

cli.py     the one command line, top floor
gateway/   many replicas behind one door; never imports torch
server/    HTTP <-> text <-> tokens: OpenAI API, metrics, offline ``LLM``
engine/    tokens <-> logits: schedule, cache, run, sample
lora/      adapters: what they are, where each one is, how a batch uses them
kernels/   device arithmetic: each op with its plain PyTorch twin
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.types import Grammar, SamplingParams
    from .server.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "Grammar", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from .server.llm import LLM

        return LLM
    if name == "Grammar":
        from .engine.types import Grammar

        return Grammar
    if name == "SamplingParams":
        from .engine.types import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'branchline' has no attribute {name!r}")
