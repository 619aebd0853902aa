"""The shared exactness oracle: transformers + peft in float32 on the weights we serve.

At each position the reference decides on OUR tokens so far. Where its margin (the lead of
its best noised logit) is at least ``margin``, our token must be its choice; at a near tie
any token within the margin of the best will do, and the reference goes on from ours. Up to
the first near tie that is equality of sequences, and every later position is still checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.variants import calculate_alora_offsets
from reference_adapters import add_adapter, base_for, load_base, shares_base
from sampling_rule import Context, Decision, decide
from torch import Tensor

from branchline.engine.types import SamplingParams, TokenLogprobs

MARGIN = 1e-3
GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


class Reference:
    """transformers + peft, float32, on the CPU; adapters by the names that tests use.

    Plain adapters share one base. One that is more (see ``reference_adapters``) is put on a base
    of its own: PEFT writes its biases and tables into the base, or needs another vocabulary.
    """

    def __init__(
        self, model_dir: str | Path, adapters: Mapping[str, str | Path] | None = None
    ) -> None:
        base = load_base(model_dir)
        eos = base.generation_config.eos_token_id
        self.eos_token_ids: list[int] = [eos] if isinstance(eos, int) else list(eos or [])
        # PEFT finds modules by name: an adapter called like one ("up", "base") would confuse it.
        self._names = {name: f"a{i}" for i, name in enumerate(adapters or {})}
        self._peft: PeftModel | None = None
        self._own: dict[str, PeftModel] = {}
        for name, path in (adapters or {}).items():
            if shares_base(Path(path)):
                self._peft = add_adapter(self._peft or base, self._names[name], Path(path))
            else:
                own = base_for(Path(path), model_dir)
                self._own[name] = add_adapter(own, self._names[name], Path(path)).float().eval()
        self._model = (self._peft or base).float().eval()

    def next_logits(
        self,
        token_ids: Sequence[int],
        adapter: str | None = None,
        num_prompt_tokens: int | None = None,
    ) -> Tensor:
        """[T, V] float32: row i is for what follows token i. One forward, no cache.

        V is the adapter's own vocabulary, where it has one. Where an activated LoRA begins is
        decided, as PEFT's ``generate`` does, by the first ``num_prompt_tokens`` tokens (None: all
        of them); its ``forward`` alone would take the last invocation in the output as well.
        """
        count = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
        offset = self._alora_offset(token_ids[:count], adapter)
        if offset is not None:
            offset += len(token_ids) - count
        return self._forward(token_ids, adapter, offset)[0]

    def _peft_of(self, adapter: str | None) -> PeftModel | None:
        """The PEFT model that a request of this adapter (None: the base) runs on."""
        return self._peft if adapter is None else self._own.get(adapter, self._peft)

    def _alora_offset(self, prompt: Sequence[int], adapter: str | None) -> int | None:
        """How many tokens at the prompt's end PEFT gives an aLoRA; None: none, or a plain LoRA."""
        peft = self._peft_of(adapter)
        if adapter is None or peft is None:
            return None
        configs, name = peft.peft_config, self._names[adapter]
        if not configs[name].alora_invocation_tokens:
            return None
        offsets: list[int | None] = calculate_alora_offsets(
            configs, name, torch.tensor([list(prompt)])
        )
        return offsets[0]

    @torch.inference_mode()
    def _forward(
        self,
        token_ids: Sequence[int],
        adapter: str | None,
        alora_offset: int | None,
        cache: object = None,
    ) -> tuple[Tensor, object]:
        arguments = {"input_ids": torch.tensor([list(token_ids)]), "past_key_values": cache}
        peft = self._peft_of(adapter)
        if adapter is not None:
            assert peft is not None, f"no adapter {adapter!r} was given"
            peft.set_adapter(self._names[adapter])
            if peft.active_peft_config.alora_invocation_tokens:
                # A list even for None, or PEFT would search these tokens for an invocation.
                arguments["alora_offsets"] = [alora_offset]
            output = peft(**arguments, use_cache=True)
        elif peft is None:
            output = self._model(**arguments, use_cache=True)
        else:
            with peft.disable_adapter():
                output = peft(**arguments, use_cache=True)
        return output.logits[0].float(), output.past_key_values


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """What was compared; ``near_ties`` are the indices of output tokens that had no clear lead."""

    num_positions: int
    near_ties: list[int]
    least_gap: float


def check_generation(
    reference: Reference,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    adapter: str | None = None,
    params: SamplingParams = GREEDY,
    choice_index: int = 0,
    *,
    margin: float = MARGIN,
    max_near_tie_share: float = 0.05,
) -> GenerationReport:
    """Assert that our output is what the reference would choose, token by token."""
    assert output_token_ids, "nothing was generated"
    _check_ending(output_token_ids, params, reference.eos_token_ids)
    prompt, output = list(prompt_token_ids), list(output_token_ids)
    logits = reference.next_logits(prompt + output[:-1], adapter, len(prompt))[len(prompt) - 1 :]
    near_ties, least_gap = [], math.inf
    for i, token_id in enumerate(output):
        context = Context(prompt, output[:i], reference.eos_token_ids, choice_index)
        decision = decide(logits[i].numpy(), params, context, margin)
        assert token_id in decision.acceptable, _disagreement(context, token_id, decision, adapter)
        least_gap = min(least_gap, decision.gap)
        if len(decision.acceptable) > 1:
            near_ties.append(i)
    assert len(near_ties) <= math.ceil(max_near_tie_share * len(output)), (
        f"{len(near_ties)} of {len(output)} positions are near ties: too little is compared"
    )
    return GenerationReport(len(output), near_ties, least_gap)


def _disagreement(context: Context, token_id: int, decision: Decision, adapter: str | None) -> str:
    expected = decision.acceptable[0]
    scores = decision.scores
    score = scores[token_id] if 0 <= token_id < len(scores) else -math.inf
    return (
        f"at position {context.position} (output token {len(context.output_token_ids)}, adapter "
        f"{adapter}): got token {token_id}, the reference chooses {expected}; ours is "
        f"{scores[expected] - score:.6g} behind, and the reference's lead over its next best "
        f"is {decision.gap:.6g}; the output before it is {list(context.output_token_ids)}"
    )


def _check_ending(
    output_token_ids: Sequence[int], params: SamplingParams, eos_token_ids: Sequence[int]
) -> None:
    ends = _stopping_ids(params, eos_token_ids)
    for i, token_id in enumerate(output_token_ids[:-1]):
        assert token_id not in ends, f"output token {i} is {token_id}, which ends a request"
    if params.max_tokens is not None:
        assert len(output_token_ids) <= params.max_tokens, "more than max_tokens"


def _stopping_ids(params: SamplingParams, eos_token_ids: Sequence[int]) -> set[int]:
    return {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}


def check_logprobs(
    reference: Reference,
    prompt_token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    adapter: str | None = None,
    *,
    tolerance: float = MARGIN,
) -> None:
    """Assert reported logprobs, ranks and best ids against log_softmax of the raw logits."""
    prompt, output = list(prompt_token_ids), [entry.token_id for entry in logprobs]
    logits = reference.next_logits(prompt + output[:-1], adapter, len(prompt))[len(prompt) - 1 :]
    check_entries(logits, logprobs, tolerance)


def check_entries(
    logits: Tensor, logprobs: Sequence[TokenLogprobs], tolerance: float = MARGIN
) -> None:
    """Assert logprobs, ranks and best ids, an entry a row of raw logits [N, V]."""
    expected = logits.double().log_softmax(-1)
    for i, (row, entry) in enumerate(zip(expected, logprobs, strict=True)):
        where = f"at row {i}"
        got = [entry.logprob, *entry.top_logprobs]
        want = [float(row[token_id]) for token_id in (entry.token_id, *entry.top_token_ids)]
        for ours, theirs in zip(got, want, strict=True):
            assert abs(ours - theirs) < tolerance, f"{where}: logprob {ours}, not {theirs}"
        num_above = int((row > row[entry.token_id] + tolerance).sum())
        num_level = int((row >= row[entry.token_id] - tolerance).sum())
        assert num_above < entry.rank <= num_level, f"{where}: rank {entry.rank}"
        assert len(set(entry.top_token_ids)) == len(entry.top_token_ids)
        assert entry.top_logprobs == sorted(entry.top_logprobs, reverse=True), where
        if entry.top_token_ids:
            least = float(row.topk(len(entry.top_token_ids)).values[-1])
            assert min(want[1:]) >= least - tolerance, f"{where}: a likelier id is missing"


def reference_generate(
    reference: Reference,
    prompt_token_ids: Sequence[int],
    adapter: str | None = None,
    params: SamplingParams = GREEDY,
    max_tokens: int = 16,
    choice_index: int = 0,
) -> list[int]:
    """What the reference alone generates, the stopping token included."""
    ends = _stopping_ids(params, reference.eos_token_ids)
    prompt = list(prompt_token_ids)
    output: list[int] = []
    offset = reference._alora_offset(prompt, adapter)
    fed, cache = prompt, None
    while len(output) < max_tokens:
        logits, cache = reference._forward(
            fed, adapter, None if offset is None else offset + len(output), cache
        )
        context = Context(prompt, output, reference.eos_token_ids, choice_index)
        token_id = decide(logits[-1].numpy(), params, context).acceptable[0]
        output.append(token_id)
        fed = [token_id]
        if token_id in ends:
            break
    return output
