"""A scheduler over a stand-in for the model that reads the KV, for tests of what must not matter.

The stand-in writes each token to the slot it is told, reads every context back through the
block tables, and takes the next token from a hash of what it read. So a token is right only
if all KV before it was in place, whatever the chunks, the batch, aborts and preemptions. Each
entry also says who computed it, for whom: so nothing is ever shared that should not be.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from branchline.engine.batch import StepBatch
from branchline.engine.blocks import SCRAP_BLOCK
from branchline.engine.plan import SampledToken, ScheduledChunk, StepPlan, StepResult
from branchline.engine.prompt_output import PromptPart
from branchline.engine.prompt_rows import PromptRows
from branchline.engine.types import GenerationRequest, TokenLogprobs
from branchline.lora.activation import find_activation
from branchline.lora.traits import AdapterTraits

NUM_TOKEN_IDS = 23
EOS = 3
INVOCATION = (7, 8)
ADAPTERS = {
    "digest-a": AdapterTraits(rank=16, num_bytes=1 << 20),
    "digest-b": AdapterTraits(rank=64, num_bytes=1 << 20),
    "digest-c": AdapterTraits(rank=16, num_bytes=1 << 20, invocation_tokens=INVOCATION),
}
DIGESTS = tuple(ADAPTERS)
EMPTY, POISON = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the tokens must not depend on."""

    block_size: int = 4
    num_spare_blocks: int = 0
    budget: int = 16
    max_num_seqs: int = 4
    max_model_len: int = 40
    enabled: bool = True
    num_host_blocks: int = 0
    depth: int = 0
    num_slots: int = len(ADAPTERS)
    max_step_rank: int | None = None
    max_queued_requests: int | None = None
    policy: str = "fair"
    max_overtake_cost: int = 65536
    tenant_share: float = 0.5
    isolate_tenants: bool = True


def author_of(generation: GenerationRequest, isolate_tenants: bool) -> tuple[int, int, int]:
    """Who computes a request's KV: before the adapter's start, from there on, and that start."""
    whose = (generation.tenant if isolate_tenants else None, generation.cache_salt)
    base, digest = _number((None, *whose)), generation.adapter
    if digest is None:
        return base, base, 0
    invocation = ADAPTERS[digest].invocation_tokens
    if invocation is None:
        return base, _number((digest, *whose)), 0
    start = find_activation(generation.prompt_token_ids, invocation)
    if start is None:
        return base, base, 0
    return base, _number((digest, *whose, start)), start


def _number(name: tuple[object, ...]) -> int:
    return zlib.crc32(repr(name).encode())


def next_token(context: Sequence[int], author: int) -> int:
    seed = np.asarray([*context, author % 1000], dtype=np.int64)
    return zlib.crc32(seed.tobytes()) % NUM_TOKEN_IDS


def expected_output(generation: GenerationRequest, setting: Setting) -> list[int]:
    """What one request gives by itself."""
    params, context = generation.params, list(generation.prompt_token_ids)
    if generation.pooling is not None or params.max_tokens == 0:
        return []
    author = author_of(generation, setting.isolate_tenants)[1]
    output: list[int] = []
    while True:
        token_id = next_token(context, author)
        context.append(token_id)
        output.append(token_id)
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
        if token_id in ends and len(output) >= params.min_tokens:
            return output
        if len(output) == params.max_tokens or len(context) >= setting.max_model_len:
            return output


def expected_vector(generation: GenerationRequest) -> list[float] | None:
    """What pooling gives: of rows that are (token, position, 1)."""
    rows = [(token, i, 1) for i, token in enumerate(generation.prompt_token_ids)]
    if generation.pooling is None:
        return None
    chosen = rows if generation.pooling == "mean" else rows[-1:]
    total = np.array(chosen, dtype=np.float64).sum(0)
    return (total / len(chosen)).astype(np.float32).tolist()


@dataclass(slots=True)
class FakeStep:
    """A step on the fake device: it runs when its result is asked for, after those before it."""

    model: FakeModel
    plan: StepPlan
    batch: StepBatch
    authors: list[tuple[int, int, int]]
    prompts: list[PromptRows]
    num_errors: int = 0
    fails: bool = False

    def result(self) -> StepResult:
        if self.fails:
            self.model.poison(self.plan.chunks)
            self.model.sampled = [0] * len(self.plan.sampling_chunks())
            raise RuntimeError("boom")
        token_ids = self.model.execute(self.plan, self.batch, self.authors)
        bad = self.plan.sampling_chunks()[: self.num_errors]
        self.model.poison(bad)
        tokens = [SampledToken(token_id) for token_id in token_ids]
        tokens[: len(bad)] = [SampledToken(-1, error="not finite") for _ in bad]
        ids, positions = self.batch.input_ids.numpy(), self.batch.positions.numpy()
        hidden = np.stack([ids, positions, np.ones_like(ids)], axis=1)
        return StepResult(tokens, {each.request_id: _part(each, hidden) for each in self.prompts})


def _part(rows: PromptRows, hidden: np.ndarray) -> PromptPart:
    if rows.kind != "logprobs":
        vector = hidden[rows.rows.start : rows.rows.stop].sum(0).astype(np.float32)
        return PromptPart(rows.end, vector=vector)
    own = hidden[rows.rows.start : rows.rows.stop]
    entries = [
        TokenLogprobs(following, float(position), int(token), [], [])
        for (token, position, _), following in zip(own.tolist(), rows.token_ids, strict=True)
    ]
    return PromptPart(rows.end, entries)


class FakeModel:
    """KV slots that remember (token, position, author), and the next token as a hash of these."""

    def __init__(self, num_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._kv = np.full((num_blocks, block_size, 3), EMPTY, dtype=np.int64)
        self._host = np.full((num_host_blocks, block_size, 3), EMPTY, dtype=np.int64)
        self.sampled: list[int] = []
        self._broken: set[str] = set()
        self.num_computed_tokens = 0

    def clear(self, block_ids: Sequence[int]) -> None:
        self._kv[list(block_ids)] = EMPTY

    def poison(self, chunks: Sequence[ScheduledChunk]) -> None:
        """What a step that went wrong may leave in any block that it wrote to."""
        for chunk in chunks:
            lease = chunk.request.blocks
            self._broken.add(chunk.request.request_id)
            self._kv[lease.block_ids[lease.num_shared :]] = POISON

    def execute(
        self, plan: StepPlan, batch: StepBatch, authors: list[tuple[int, int, int]]
    ) -> list[int]:
        self.clear(plan.zero_block_ids)
        ids = batch.input_ids.numpy().copy()
        if batch.follows is not None:
            assert self.sampled, "the step before gave no token"
            rows, samples = batch.follows.numpy()
            ids[rows] = np.asarray(self.sampled)[samples]
        slots, positions = batch.slot_mapping.numpy(), batch.positions.numpy()
        self.num_computed_tokens += len(slots)
        kept = slots[slots != SCRAP_BLOCK * self._block_size]
        assert len(set(kept.tolist())) == len(kept), "two tokens went to one slot"
        assert kept.min(initial=1 << 60) >= (SCRAP_BLOCK + 1) * self._block_size, "reserved blocks"
        flat = self._kv.reshape(-1, 3)
        bounds = batch.attention.cu_seqlens_q.tolist()
        for i, (base, own, start) in enumerate(authors):
            rows = slice(bounds[i], bounds[i + 1])
            flat[slots[rows], 0], flat[slots[rows], 1] = ids[rows], positions[rows]
            flat[slots[rows], 2] = np.where(positions[rows] < start, base, own)
        broken = [chunk.request.request_id in self._broken for chunk in plan.chunks]
        contexts = self._contexts(batch, authors, broken)
        self.sampled = [next_token(*contexts[row]) for row in batch.logits_indices.tolist()]
        return self.sampled

    def _contexts(
        self, batch: StepBatch, authors: list[tuple[int, int, int]], broken: list[bool]
    ) -> dict[int, tuple[np.ndarray, int]]:
        """What each request's last row attends to, read from the blocks of its table.

        A request that failed in the step before may be in this one; nobody looks at its row.
        """
        attention, contexts = batch.attention, {}
        for i, seq_len in enumerate(attention.seq_lens.tolist()):
            if broken[i]:
                contexts[int(attention.cu_seqlens_q[i + 1]) - 1] = (np.zeros(1), 0)
                continue
            num_blocks = -(-seq_len // self._block_size)
            read = self._kv[attention.block_tables[i, :num_blocks].numpy()].reshape(-1, 3)
            assert not (read == POISON).any(), "a block was reused before it was cleared"
            assert read[:seq_len, 1].tolist() == list(range(seq_len)), "KV is missing"
            base, own, start = authors[i]
            wanted = np.where(np.arange(seq_len) < start, base, own)
            assert (read[:seq_len, 2] == wanted).all(), "somebody else's KV"
            contexts[int(attention.cu_seqlens_q[i + 1]) - 1] = (read[:seq_len, 0], own)
        return contexts

    def copy(self, block_ids: list[int], host_ids: list[int], *, inbound: bool) -> None:
        if inbound:
            self._kv[block_ids] = self._host[host_ids]
        else:
            self._host[host_ids] = self._kv[block_ids]


@dataclass(slots=True)
class FakeCopy:
    """A copy that is done after some polls, or fails then; it moves the bytes at its end."""

    model: FakeModel
    block_ids: list[int]
    host_ids: list[int]
    inbound: bool
    num_polls: int
    error: str | None = None
    fails: bool = False

    def done(self) -> bool:
        if self.num_polls == 0:
            return True
        self.num_polls -= 1
        if self.num_polls == 0:
            if self.fails:
                self.error = "no such bus"
            else:
                self.model.copy(self.block_ids, self.host_ids, inbound=self.inbound)
        return self.num_polls == 0


class FakeCopier:
    """Copies that take ``num_polls`` polls; the next one fails if ``fails_next``."""

    def __init__(self, model: FakeModel, num_polls: int = 2) -> None:
        self.model = model
        self.num_polls = num_polls
        self.fails_next = False
        self.bytes_per_second: float | None = None

    def _copy(self, block_ids: list[int], host_ids: list[int], inbound: bool) -> FakeCopy:
        fails, self.fails_next = self.fails_next, False
        return FakeCopy(self.model, block_ids, host_ids, inbound, self.num_polls, fails=fails)

    def copy_out(self, block_ids: list[int], host_ids: list[int]) -> FakeCopy:
        return self._copy(block_ids, host_ids, inbound=False)

    def copy_in(self, host_ids: list[int], block_ids: list[int]) -> FakeCopy:
        return self._copy(block_ids, host_ids, inbound=True)
