"""A scheduler over a stand-in for the model that reads the KV, for tests of what must not matter.

The stand-in writes each token to the slot it is told, reads every context back through the
block tables, and takes the next token from a hash of what it read. So a token is right only
if all KV before it was in place, whatever the chunks, the batch, aborts and preemptions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from branchline.engine.batch import StepBatch, build_batch
from branchline.engine.blocks import BlockPool
from branchline.engine.plan import SampledToken, StepPlan
from branchline.engine.scheduler import Scheduler, SchedulerLimits
from branchline.engine.types import GenerationRequest, TokenOutput
from branchline.lora.slots import AdapterSlots

NUM_TOKEN_IDS = 23
EOS = 3
DIGESTS = ("digest-a", "digest-b")
EMPTY, POISON = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the tokens must not depend on."""

    block_size: int = 4
    num_spare_blocks: int = 0
    budget: int = 16
    max_num_seqs: int = 4
    max_model_len: int = 40


def next_token(context: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(context, dtype=np.int64).tobytes()) % NUM_TOKEN_IDS


def expected_output(generation: GenerationRequest, max_model_len: int) -> list[int]:
    """What one request gives by itself."""
    params, context = generation.params, list(generation.prompt_token_ids)
    output: list[int] = []
    while True:
        token_id = next_token(context)
        context.append(token_id)
        output.append(token_id)
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
        if token_id in ends and len(output) >= params.min_tokens:
            return output
        if len(output) == params.max_tokens or len(context) >= max_model_len:
            return output


class FakeModel:
    """KV slots that remember (token, position), and the next token as a hash of a context."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._kv = np.full((num_blocks, block_size, 2), EMPTY, dtype=np.int64)

    def clear(self, block_ids: Sequence[int]) -> None:
        self._kv[list(block_ids)] = EMPTY

    def poison(self, plan: StepPlan) -> None:
        """What a step that went wrong may leave in any block that it held."""
        for chunk in plan.chunks:
            self._kv[chunk.request.blocks.block_ids] = POISON

    def execute(self, plan: StepPlan) -> list[int]:
        self.clear(plan.zero_block_ids)
        batch = build_batch(plan, self._block_size, None, torch.device("cpu"))
        slots = batch.slot_mapping.numpy()
        assert len(set(slots.tolist())) == len(slots), "two tokens went to one slot"
        assert slots.min() >= self._block_size, "block 0 is for padding"
        flat = self._kv.reshape(-1, 2)
        flat[slots, 0], flat[slots, 1] = batch.input_ids.numpy(), batch.positions.numpy()
        contexts = self._contexts(batch)
        return [next_token(contexts[row]) for row in batch.logits_indices.tolist()]

    def _contexts(self, batch: StepBatch) -> dict[int, np.ndarray]:
        """What each request's last row attends to, read from the blocks of its table."""
        attention, contexts = batch.attention, {}
        for i, seq_len in enumerate(attention.seq_lens.tolist()):
            num_blocks = -(-seq_len // self._block_size)
            read = self._kv[attention.block_tables[i, :num_blocks].numpy()].reshape(-1, 2)
            assert not (read == POISON).any(), "a block was reused before it was cleared"
            assert read[:seq_len, 1].tolist() == list(range(seq_len)), "KV is missing"
            contexts[int(attention.cu_seqlens_q[i + 1]) - 1] = read[:seq_len, 0]
        return contexts


@dataclass(slots=True)
class Progress:
    generation: GenerationRequest
    expected: list[int]
    output: list[int] = field(default_factory=list)


class House:
    """A scheduler over the fake model; checks what comes out as it comes out."""

    def __init__(self, setting: Setting) -> None:
        num_blocks = 1 + -(-setting.max_model_len // setting.block_size) + setting.num_spare_blocks
        slots = AdapterSlots(len(DIGESTS))
        for digest in DIGESTS:
            slots.add(digest)
        limits = SchedulerLimits(setting.max_model_len, setting.max_num_seqs, setting.budget)
        self.setting = setting
        self.slots = slots
        self.scheduler = Scheduler(BlockPool(num_blocks, setting.block_size), slots, limits, (EOS,))
        self.model = FakeModel(num_blocks, setting.block_size)
        self.live: dict[str, Progress] = {}
        self.finished: dict[str, list[int]] = {}

    def add(self, generation: GenerationRequest) -> None:
        self.scheduler.add(generation)
        expected = expected_output(generation, self.setting.max_model_len)
        self.live[generation.request_id] = Progress(generation, expected)

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self.live.pop(request_id, None)

    def step(self, num_errors: int = 0) -> StepPlan:
        """One step, in which the first rows may be in error."""
        plan = self._plan()
        if not plan.chunks:
            return plan
        tokens = [SampledToken(token_id) for token_id in self.model.execute(plan)]
        bad = plan.sampling_chunks()[:num_errors]
        self.model.poison(StepPlan(tuple(bad)))
        tokens[:num_errors] = [SampledToken(-1, error="not finite") for _ in bad]
        self._take(self.scheduler.apply(plan, tokens), {c.request.request_id for c in bad})
        return plan

    def failing_step(self, *, executed: bool) -> None:
        """A step that raises, before or after the model has written."""
        plan = self._plan()
        if executed and plan.chunks:
            self.model.execute(plan)
            self.model.poison(plan)
        requests = {chunk.request.request_id for chunk in plan.chunks}
        self._take(self.scheduler.fail(plan, "boom"), requests)

    def _plan(self) -> StepPlan:
        plan, setting = self.scheduler.schedule(), self.setting
        self.check()
        requests = [chunk.request for chunk in plan.chunks]
        assert len({request.request_id for request in requests}) == len(requests)
        assert sum(chunk.num_scheduled_tokens for chunk in plan.chunks) <= setting.budget
        assert len(self.scheduler.running) <= setting.max_num_seqs
        assert all(chunk.num_scheduled_tokens > 0 for chunk in plan.chunks)
        assert plan.chunks or not self.live, "requests wait and nothing is done"
        for request in requests:
            assert (request.slot is None) == (request.adapter is None)
        return plan

    def _take(self, outputs: list[TokenOutput], failed: set[str]) -> None:
        self.check()
        assert failed == {output.request_id for output in outputs if output.error}
        for output in outputs:
            progress = self.live[output.request_id]
            progress.output += output.token_ids
            assert progress.output == progress.expected[: len(progress.output)]
            if output.finish_reason is not None:
                del self.live[output.request_id]
                if not output.error:
                    assert progress.output == progress.expected
                    self.finished[output.request_id] = progress.output

    def check(self) -> None:
        self.scheduler.check()
        for digest in DIGESTS:
            holders = [r for r in self.scheduler.running if r.adapter == digest]
            assert self.slots.num_leases(digest) == len(holders)

    def drain(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_requests:
                break
            self.step()
        assert not self.live
        assert not self.scheduler.has_requests
        assert self.scheduler.num_free_blocks == self.scheduler.num_usable_blocks
        assert not any(self.slots.num_leases(digest) for digest in DIGESTS)
