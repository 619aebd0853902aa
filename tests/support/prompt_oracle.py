"""What transformers + peft say of a prompt: its logprobs, and its final hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from oracle import Reference, check_entries
from torch import Tensor

from branchline.engine.types import GenerationRequest, TokenLogprobs, TokenOutput

TOLERANCE = 1e-4


def final_hidden(
    reference: Reference, token_ids: Sequence[int], adapter: str | None = None
) -> Tensor:
    """[T, hidden_size] float32: what goes into the output layer, normed."""
    peft = reference._peft_of(adapter)
    model = reference._model if peft is None else peft.get_base_model()
    seen: list[Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        reference.next_logits(token_ids, adapter)
    finally:
        handle.remove()
    return seen[0][0].float()


def check_prompt_logprobs(
    reference: Reference,
    prompt_token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None] | None,
    adapter: str | None = None,
    num_top: int = 0,
) -> None:
    """Assert an entry for each token of the prompt but the first, within 1e-4."""
    assert logprobs is not None
    first, *rest = logprobs
    assert first is None
    entries = [entry for entry in rest if entry is not None]
    assert [entry.token_id for entry in entries] == list(prompt_token_ids[1:])
    assert all(len(entry.top_token_ids) == num_top for entry in entries)
    logits = reference.next_logits(prompt_token_ids, adapter)
    check_entries(logits[:-1], entries, TOLERANCE)


def check_embedding(
    reference: Reference, generation: GenerationRequest, embedding: Sequence[float] | None
) -> None:
    """Assert the pooled vector, within 1e-4 of its largest number."""
    hidden = final_hidden(reference, generation.prompt_token_ids, generation.adapter)
    expected = hidden.double().mean(0) if generation.pooling == "mean" else hidden[-1].double()
    ours = torch.tensor(embedding, dtype=torch.float64)
    assert ours.shape == expected.shape
    error = float((ours - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE, f"{generation.request_id}: {error}"


def check_prompts(
    reference: Reference,
    generations: Sequence[GenerationRequest],
    outputs: dict[str, list[TokenOutput]],
) -> None:
    """What each request wanted of its prompt came with its first output, and only then."""
    for generation in generations:
        first, *others = outputs[generation.request_id]
        assert all(each.prompt_logprobs is None and each.embedding is None for each in others)
        prompt, num_top = generation.prompt_token_ids, generation.params.prompt_logprobs
        if num_top is None:
            assert first.prompt_logprobs is None
        else:
            logprobs, adapter = first.prompt_logprobs, generation.adapter
            check_prompt_logprobs(reference, prompt, logprobs, adapter, num_top)
        if generation.pooling is None:
            assert first.embedding is None
            continue
        assert (first.token_ids, first.finish_reason, others) == ([], "stop", [])
        check_embedding(reference, generation, first.embedding)
