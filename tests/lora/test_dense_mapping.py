"""build_step_dense: which tokens and logits rows meet which vectors and tables."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from branchline.lora import dense_mapping
from branchline.lora.dense import DensePool
from branchline.lora.dense_mapping import MIN_RUN_ROWS, StepDense, build_step_dense
from branchline.lora.indices import Indices
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import DenseWeights
from branchline.tests.support.dense_parts import random_tables, random_vectors

SHAPES = ModuleShapes.for_decoder(
    num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=4
)
PLAIN, NORMS, DORA, BOTH, TABLES, HEAD_ONLY = range(6)
HAVE_VECTORS = (NORMS, DORA, BOTH)


@pytest.fixture(scope="module")
def pool() -> DensePool:
    """Slots 1 to 3 have vectors, 3 and 4 tables, 5 an output layer; 0 is a plain LoRA."""
    pool = DensePool(100_000, SHAPES, torch.float32, "cpu", num_slots=8)
    generator = torch.Generator().manual_seed(0)
    both = random_vectors(SHAPES, generator, ["down"])
    tables = random_tables(8, 20, ["embed", "head_tokens"], generator)
    adapters = {
        NORMS: random_vectors(SHAPES, generator, [], ["mlp_norm"]),
        DORA: random_vectors(SHAPES, generator, ["qkv", "o"]),
        BOTH: DenseWeights(both.vectors, both.affine_groups, both.norms, tables.tables),
        TABLES: random_tables(8, 20, ["embed_a", "head_shift"], generator),
        HEAD_ONLY: random_tables(8, 25, ["head"], generator),
    }
    for slot, dense in adapters.items():
        pool.reserve(slot, dense)
        pool.write(slot, dense)
    return pool


def build(
    pool: DensePool | None,
    segments: list[tuple[int | None, int]],
    samples: list[bool] | None = None,
) -> StepDense | None:
    slots = [slot for slot, _ in segments]
    lengths = [length for _, length in segments]
    return build_step_dense(slots, lengths, samples or [True] * len(segments), pool)


def vector_pages(step: StepDense) -> dict[int, int]:
    """Each routed token's page; no token is routed twice."""
    pages: dict[int, int] = {}
    for part in step.vectors:
        tokens = part.tokens.of(torch.arange(10_000)).tolist()
        which = part.pages
        each = [which] * len(tokens) if isinstance(which, int) else which.tolist()
        assert pages.keys().isdisjoint(tokens)
        pages |= dict(zip(tokens, each, strict=True))
    return pages


def test_steps_with_nothing_dense_have_no_routing(pool: DensePool) -> None:
    assert build(pool, []) is None
    assert build(pool, [(None, 3), (PLAIN, 2), (7, 1)]) is None
    assert build(pool, [(DORA, 0), (None, 2)]) is None
    assert build(None, [(DORA, 3)]) is None


def test_groups_and_norms_that_nobody_changes_are_absent(pool: DensePool) -> None:
    step = build(pool, [(NORMS, 2), (None, 1)])
    assert step is not None
    assert (step.groups, step.norms) == (frozenset(), {"mlp_norm"})
    step = build(pool, [(NORMS, 2), (DORA, 1), (BOTH, 1)])
    assert step is not None
    assert (step.groups, step.norms) == ({"qkv", "o", "down"}, {"mlp_norm"})


def test_every_token_of_an_adapter_with_vectors_is_routed_to_its_page(pool: DensePool) -> None:
    segments: list[tuple[int | None, int]] = [
        *[(NORMS, 1), (None, 1), (DORA, 1), (PLAIN, 1), (DORA, 1), (BOTH, 1), (TABLES, 1)],
        *[(DORA, 20), (None, 30), (BOTH, 3), (BOTH, 2)],
    ]
    step = build(pool, segments)
    assert step is not None
    owners = [slot for slot, length in segments for _ in range(length)]
    expected = {
        token: pool.held(slot).page for token, slot in enumerate(owners) if slot in HAVE_VECTORS
    }
    assert vector_pages(step) == expected


def test_long_or_few_runs_gather_nothing(pool: DensePool) -> None:
    step = build(pool, [(DORA, 1)] * 40)
    assert step is not None
    (run,) = step.vectors
    assert (run.tokens.start, run.tokens.stop, run.tokens.index) == (0, 40, None)
    assert run.pages == pool.held(DORA).page
    step = build(pool, [(DORA, 1), (NORMS, 2), (DORA, 1), (BOTH, MIN_RUN_ROWS)])
    assert step is not None
    long, short = step.vectors
    assert isinstance(long.pages, int)
    assert not isinstance(short.pages, int)
    assert short.tokens.index is None  # three runs side by side are one span
    assert len(short.pages) == 4


def test_tables_meet_all_tokens_but_only_the_rows_of_logits(pool: DensePool) -> None:
    segments: list[tuple[int | None, int]] = [
        *[(BOTH, 1), (HEAD_ONLY, 1), (None, 1), (TABLES, 1), (DORA, 1), (BOTH, 4), (TABLES, 2)],
    ]
    samples = [True, True, True, False, True, True, True]
    step = build(pool, segments, samples)
    assert step is not None
    rows = torch.arange(100)
    embeddings = {id(part.tables): part.rows.of(rows).tolist() for part in step.embeddings}
    heads = {id(part.tables): part.rows.of(rows).tolist() for part in step.heads}
    tables = {slot: id(pool.held(slot).tables) for slot in (BOTH, TABLES, HEAD_ONLY)}
    assert embeddings == {tables[BOTH]: [0, 5, 6, 7, 8], tables[TABLES]: [3, 9, 10]}
    assert heads == {tables[BOTH]: [0, 4], tables[HEAD_ONLY]: [1], tables[TABLES]: [5]}


def test_no_rows_of_logits_no_heads(pool: DensePool) -> None:
    step = build(pool, [(BOTH, 4), (HEAD_ONLY, 3)], [False, False])
    assert step is not None
    assert step.heads == ()
    assert len(step.embeddings) == 1


def test_packed_indices_are_the_same(pool: DensePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a device, on the CPU: every index arrives, and the buffer always suffices."""
    rng = random.Random(3)
    for _ in range(100):
        count = rng.randint(1, 40)
        segments = [
            (rng.choice([None, 0, 1, 2, 3, 4, 5]), rng.choice([0, 1, 1, 1, 2, 30]))
            for _ in range(count)
        ]
        samples = [rng.random() < 0.8 for _ in range(count)]
        plain = build(pool, segments, samples)
        with monkeypatch.context() as patch:
            patch.setattr(dense_mapping, "Indices", partial(Indices, packed=True))
            other = build(pool, segments, samples)
        if plain is None:
            assert other is None
            continue
        assert other is not None
        # Tensors have no equality; their printed form shows every index of small ones.
        torch.set_printoptions(threshold=100_000)
        for name in ("vectors", "embeddings", "heads"):
            assert repr(getattr(plain, name)) == repr(getattr(other, name))
    torch.set_printoptions(profile="default")
