"""Whether captured graphs compute what eager steps do, adapters included; asked once, at start."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lora.bank import AdapterBank
from .batch import send_batch
from .blocks import NUM_RESERVED_BLOCKS
from .errors import EngineStartError
from .graph_inputs import GraphKind
from .runner import ModelRunner
from .step_graphs import StepGraphs
from .step_layout import StepLayout, decode_layout
from .trial_adapter import trial_slot

MAX_ERROR = 0.2
"""Of what the adapter changes, or of the logits: far over rounding, far under a wrong step."""


@torch.inference_mode()
def check_graphs(graphs: StepGraphs, runner: ModelRunner, bank: AdapterBank | None) -> None:
    """Replay every kind on rows that an eager step has computed; nothing else may be under way.

    Where a kind takes adapters, every other row has one. Raises EngineStartError for a kind whose
    logits differ.
    """
    num_rows = min(graphs.max_size, runner.kv_pool.shape[2] - NUM_RESERVED_BLOCKS)
    probe = _Probe(runner, bank, num_rows)
    nobody: list[int | None] = [None] * num_rows
    base = probe.expect(nobody)
    for kind in graphs.kinds:
        if kind.work is None:
            probe.check(graphs, kind, nobody[: _rows(kind)], base, _size(base))
    if bank is not None and any(kind.work for kind in graphs.kinds):
        loaded = bank.loaded_slots
        with trial_slot(bank) as slot:
            is_trial = slot not in loaded  # else it may be too large for some kinds
            slots = [slot if row % 2 == 0 else None for row in range(num_rows)]
            adapted = probe.expect(slots)
            effect = _size(adapted - base)
            if not is_trial:  # it may change so little that rounding is a large part of it
                effect = max(effect, _size(base) / 4)
            for kind in graphs.kinds:
                if kind.work is not None:
                    rows = slots[: _rows(kind)]
                    probe.check(graphs, kind, rows, adapted, effect, must_fit=is_trial)
    probe.clear()


def _rows(kind: GraphKind) -> int:
    """One is padding, where there is more than one."""
    return max(1, kind.size - 1)


def _size(tensor: Tensor) -> float:
    """Root mean square."""
    return float(tensor.float().square().mean().sqrt())


class _Probe:
    """Requests of two tokens, or of one where a block has no room for two; a block each."""

    def __init__(self, runner: ModelRunner, bank: AdapterBank | None, num_rows: int) -> None:
        self._runner = runner
        self._bank = bank
        self._tables = [[NUM_RESERVED_BLOCKS + row] for row in range(num_rows)]
        self._position = min(1, runner.layout.block_size - 1)

    def expect(self, slots: list[int | None]) -> Tensor:
        """What an eager step gives for the last tokens; the first ones are computed before."""
        for position in range(self._position):
            self._eager(self._layout(slots, position))
        return self._eager(self._layout(slots, self._position)).clone()

    def check(
        self,
        graphs: StepGraphs,
        kind: GraphKind,
        slots: list[int | None],
        expected: Tensor,
        effect: float,
        must_fit: bool = True,
    ) -> None:
        """Have the first rows' last tokens computed again; nothing of the step before helps."""
        graphs.logits.fill_(torch.nan)
        first = NUM_RESERVED_BLOCKS
        for cache in self._runner.kv_caches:
            for part in (cache.keys, cache.values):
                part[first : first + len(slots), self._position].zero_()
        logits = graphs.replay(kind, self._layout(slots, self._position))
        if logits is None and not must_fit:
            return
        if logits is None:
            raise EngineStartError(f"CUDA graphs: a step of {kind} has no room for an adapter")
        error = _size(logits - expected[: len(slots)]) / effect
        if not error <= MAX_ERROR:
            raise EngineStartError(
                f"CUDA graphs: a replayed step of {kind} is off from the eager one by {error:.0%}; "
                "--enforce-eager does without them"
            )

    def _layout(self, slots: list[int | None], position: int) -> StepLayout:
        vocab_size = self._runner.decoder.config.vocab_size
        num_rows, block_size = len(slots), self._runner.layout.block_size
        token_ids = [(7 * row + 3 * position + 1) % vocab_size for row in range(num_rows)]
        tables = self._tables[:num_rows]
        return decode_layout(token_ids, [position] * num_rows, tables, slots, block_size)

    def _eager(self, layout: StepLayout) -> Tensor:
        runner = self._runner
        return runner.execute(send_batch(layout, self._bank, runner.decoder.device))

    def clear(self) -> None:
        """Leave the blocks as they were."""
        blocks = [block for [block] in self._tables]
        self._runner.kv_pool[:, :, min(blocks) : max(blocks) + 1].zero_()
