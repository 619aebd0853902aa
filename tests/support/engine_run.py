"""Requests through an engine loop to their end, and their answers against the reference's."""

from __future__ import annotations

from collections.abc import Sequence

from oracle import Reference, check_generation

from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest


def generate_all(
    loop: EngineLoop, generations: Sequence[GenerationRequest]
) -> dict[str, list[int]]:
    """Tokens by request id; nothing may fail, and every step leaves the engine in order."""
    for generation in generations:
        loop.add(generation)
    tokens: dict[str, list[int]] = {generation.request_id: [] for generation in generations}
    while loop.has_work:
        for output in loop.step():
            assert output.finish_reason != "error", output.error
            tokens[output.request_id] += output.token_ids
        loop.check()
    return tokens


def check_generations(
    reference: Reference,
    generations: Sequence[GenerationRequest],
    tokens: dict[str, list[int]],
    **tolerances: float,
) -> None:
    """Every answer is what the reference would choose, with ``check_generation``'s tolerances."""
    for generation in generations:
        check_generation(
            reference,
            generation.prompt_token_ids,
            tokens[generation.request_id],
            generation.adapter,
            generation.params,
            generation.choice_index,
            **tolerances,
        )
