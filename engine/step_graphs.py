"""Decode steps as captured graphs: one launch in place of the hundreds that a step is made of."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..lora.bank import AdapterBank
from .batch import StepBatch, has_dense
from .graph_inputs import GraphInputs, GraphKind, graph_kinds
from .graph_recorder import Launch, Recorder
from .progress import OnProgress, Progress, tell_nobody
from .runner import ModelRunner
from .step_layout import StepLayout, decode_layout

PROGRESS_STEP = 20
"""Graphs from one line about them to the next."""


class StepGraphs:
    """Every kind of decode step, captured once and replayed from then on.

    A graph holds addresses and no adapter's content: the weights, the KV pool, the adapter bank
    and the inputs stay where they are, and which pages a row meets is read from the inputs at
    each replay. To whatever changes pages or blocks a replay is a step like any other: it is
    launched on the same stream, and leases end when its result has been taken in.

    Prompts, adapters that bring more than low-rank pairs, and steps with more pages of ranks than
    any kind has room for are left to the caller.
    """

    def __init__(
        self,
        runner: ModelRunner,
        bank: AdapterBank | None,
        max_num_seqs: int,
    ) -> None:
        decoder = runner.decoder
        self._runner = runner
        self._bank = bank
        self._kinds = list(graph_kinds(max_num_seqs, bank))
        self._inputs = GraphInputs(
            self._kinds, bank, runner.layout.block_size, decoder.max_model_len, decoder.device
        )
        # Shared by all: in a graph's own memory each would keep its logits apart.
        shape = (max_num_seqs, decoder.config.vocab_size)
        self.logits = torch.empty(shape, dtype=torch.float32, device=decoder.device)
        self._batches: dict[GraphKind, StepBatch] = {}
        self._replays: dict[GraphKind, Launch] = {}

    @property
    def kinds(self) -> list[GraphKind]:
        """What is captured, or to be, the least room first."""
        return self._kinds

    @property
    def max_size(self) -> int:
        """Requests of the largest kind."""
        return self._kinds[-1].size

    @torch.inference_mode()
    def capture(self, recorder: Recorder, on_progress: OnProgress = tell_nobody) -> None:
        """Record every kind, the largest first, so that the others find its memory free."""
        total = len(self._kinds)
        for number, kind in enumerate(reversed(self._kinds), start=1):
            if number % PROGRESS_STEP == 1 or number == total:
                on_progress(Progress(f"capturing graphs {number}/{total}"))
            self._inputs.fill(kind, decode_layout([], [], [], [], 1))
            # The graph reads the batch's tensors: it goes where the graph goes.
            self._batches[kind] = self._inputs.batch(kind)
            self._replays[kind] = recorder.record(partial(self._run, kind))

    def _run(self, kind: GraphKind) -> None:
        self.logits[: kind.size].copy_(self._runner.compute(self._batches[kind]))

    def execute(self, layout: StepLayout, previous_token_ids: Tensor | None) -> Tensor | None:
        """One step, in inference mode -> its logits [N, vocab] float32; None if no kind does.

        They are good until the next call.
        """
        if not layout.is_decode or (self._bank and has_dense(layout.adapters, self._bank)):
            return None
        wants_adapters = any(slot is not None for slot in layout.adapters.segment_slots)
        kinds = [kind for kind in self._kinds if (kind.work is not None) == wants_adapters]
        size = next((kind.size for kind in kinds if kind.size >= layout.num_tokens), None)
        for kind in kinds:
            if kind.size == size:
                logits = self.replay(kind, layout, previous_token_ids)
                if logits is not None:
                    return logits
        return None

    def replay(
        self, kind: GraphKind, layout: StepLayout, previous_token_ids: Tensor | None = None
    ) -> Tensor | None:
        """A step of decodes as one of a kind that is at least as large; None if it doesn't fit."""
        filled = self._inputs.fill(kind, layout)
        if filled is None:
            return None
        self._runner.prepare(
            filled.input_ids, filled.follows, filled.zero_blocks, previous_token_ids
        )
        self._replays[kind]()
        return self.logits[: layout.num_tokens]
