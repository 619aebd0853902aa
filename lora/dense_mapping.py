"""Which rows of a step meet which dense parts of adapters: worked out once a step, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..kernels.ops import Selection, VectorRows, uses_kernels
from .dense import DensePool
from .indices import Array, Indices, spans
from .runs import Runs, merge_runs

MIN_RUN_ROWS = 16
"""From this many rows on a run of one adapter reads its vectors in place, without a gather."""

MAX_SHORT_RUNS = 2
"""Up to this many runs do so however short."""

EMBED_TABLES = frozenset({"embed", "embed_a", "embed_scale", "embed_token_ids"})
HEAD_TABLES = frozenset({"head", "head_a", "head_scale", "head_shift", "head_token_ids"})


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a step, tokens or logits, that meet one adapter's tables."""

    rows: Selection
    tables: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class StepDense:
    """The dense parts of one step's adapters, and which rows want them.

    ``vectors`` are the tokens whose adapter has some; ``groups`` and ``norms`` those that any of
    them changes. ``embeddings`` says which tokens, ``heads`` which rows of logits meet tables.
    """

    pool: DensePool
    vectors: tuple[VectorRows, ...]
    groups: frozenset[str]
    norms: frozenset[str]
    embeddings: tuple[TableRows, ...]
    heads: tuple[TableRows, ...]


def build_step_dense(
    slots: Sequence[int | None],
    lengths: Sequence[int],
    samples: Sequence[bool],
    pool: DensePool | None,
) -> StepDense | None:
    """Route a step of one segment a request; None if no adapter of it has anything dense.

    ``slots`` is None for the base model. ``samples``: the segment's last row gives logits.
    Unlike low-rank pairs, what is dense applies to the tokens before an activation too.
    """
    if pool is None:
        return None
    found = {slot: pool.held(slot) for slot in {*slots} if slot is not None}
    held = {slot: dense for slot, dense in found.items() if dense is not None}
    if not any(slot in held and length for slot, length in zip(slots, lengths, strict=True)):
        return None
    indices = Indices(3 * sum(lengths) + len(slots), pool.device)
    owners = np.array([slot if slot in held else -1 for slot in slots], dtype=np.int64)
    tables = {slot: dense.tables for slot, dense in held.items()}
    pages = {slot: dense.page for slot, dense in held.items() if dense.page is not None}
    runs = merge_runs([slot if slot in pages else None for slot in slots], lengths)
    step = StepDense(
        pool=pool,
        vectors=_route_vectors(runs, pages, indices, gathers=uses_kernels(pool.vectors)),
        groups=frozenset().union(*(dense.affine_groups for dense in held.values())),
        norms=frozenset().union(*(dense.norms for dense in held.values())),
        embeddings=_route_tables(np.repeat(owners, lengths), tables, EMBED_TABLES, indices),
        heads=_route_tables(owners[np.array(samples, dtype=bool)], tables, HEAD_TABLES, indices),
    )
    indices.send()
    return step


def route_heads(dense: StepDense, slots: Sequence[int | None]) -> StepDense:
    """The same step with other rows of logits: one for each of ``slots``."""
    found = {slot: dense.pool.held(slot) for slot in {*slots} if slot is not None}
    tables = {slot: held.tables for slot, held in found.items() if held is not None}
    owners = np.array([-1 if slot is None else slot for slot in slots], dtype=np.int64)
    indices = Indices(len(slots), dense.pool.device)
    heads = _route_tables(owners, tables, HEAD_TABLES, indices)
    indices.send()
    return replace(dense, heads=heads)


def _route_vectors(
    runs: Runs, pages: Mapping[int, int], indices: Indices, gathers: bool
) -> tuple[VectorRows, ...]:
    """Runs one by one where they are long or few, the rest in one gather.

    Kernels gather for nothing (``gathers``): several runs are one launch of theirs.
    """
    each = np.array([pages[slot] for slot in runs.slots.tolist()], dtype=np.int64)
    if gathers:
        direct = np.full(len(each), len(each) == 1)
    else:
        direct = (runs.lengths >= MIN_RUN_ROWS) | (len(each) <= MAX_SHORT_RUNS)
    alone = runs.where(direct)
    routed = [
        VectorRows(Selection(start, start + length), page)
        for start, length, page in zip(
            alone.starts.tolist(), alone.lengths.tolist(), each[direct].tolist(), strict=True
        )
    ]
    short = runs.where(~direct)
    if short.slots.size:
        tokens = indices.select(spans(short.starts, short.lengths))
        routed.append(VectorRows(tokens, indices.put(np.repeat(each[~direct], short.lengths))))
    return tuple(routed)


def _route_tables(
    owners: Array,
    tables: Mapping[int, Mapping[str, Tensor]],
    wanted: frozenset[str],
    indices: Indices,
) -> tuple[TableRows, ...]:
    """The rows, by their owners [n], of each slot that has one of the wanted tables."""
    routed = []
    for slot in sorted(tables):
        if wanted.isdisjoint(tables[slot]):
            continue
        rows = np.flatnonzero(owners == slot)
        if rows.size:
            routed.append(TableRows(indices.select(rows), tables[slot]))
    return tuple(routed)
