"""Every kind of adapter on every architecture, all in one batch, against transformers + peft.

The table in docs/adapters.md is rendered from what this file is parametrised by. To write it
anew: ``BRANCHLINE_WRITE_DOCS=1 python -m pytest tests/engine/test_adapter_parity.py -k table``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from adapter_batch import Engine, Prompted, run, start_engine
from adapter_kinds import INVOCATION, KINDS
from oracle import Reference
from paged_run import odd_chunks
from tiny_adapters import make_adapter
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny_model
from torch import Tensor

TOLERANCE = 1e-4
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/adapters.md"
BEGIN, END = "<!-- parity -->\n", "<!-- /parity -->"
SHORT_CONTEXT = 32
"""Phi-3's tiny model switches rope factors here; served up to it, both sides use the short ones."""

TITLES = {
    "llama": "Llama 2",
    "llama3": "Llama 3",
    "llama31": "Llama 3.1",
    "llama32": "Llama 3.2",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "phi3": "Phi-3",
    "smollm2": "SmolLM2",
    "smollm3": "SmolLM3",
}
NUM_QUICK = 4
"""Of so many pairs of family and kind one is not slow; each kind and each family has some."""

CASES = [
    pytest.param(
        family,
        kind,
        id=f"{family}-{kind}",
        marks=[pytest.mark.slow] if (row + column) % NUM_QUICK else [],
    )
    for column, family in enumerate(FAMILIES)
    for row, kind in enumerate(KINDS)
]

# Trained rows (5, 97, 258, 101, 3, 98, 1 ...), an invocation in the middle, and output after it.
TOKENS = [5, 97, 258, 20, *INVOCATION, 3, 98, 110, 7, 1, 115, 200, 9, 101, 33]
NUM_OUTPUT_TOKENS = 5


@dataclass(frozen=True)
class Family:
    """A family's tiny model, the sequences of one batch by name, and their logits."""

    model: Path
    adapters: dict[str, Path]
    engine: Engine
    sequences: dict[str, Prompted]
    logits: dict[str, dict[int, Tensor]]


@pytest.fixture(scope="module")
def families(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Family]:
    """Makes a family and runs its batch, once, with the kinds that this session asks for."""
    params = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    asked = [(found["family"], found["kind"]) for found in params if "kind" in found]

    @cache
    def make(family: str) -> Family:
        directory = tmp_path_factory.mktemp(family)
        model = make_tiny_model(directory / "model", family, tokenizer=False)
        kinds = [kind for f, kind in asked if f == family and family not in KINDS[kind].skips]
        adapters = {
            kind: KINDS[kind].make(model, directory / f"kind{number}", number)
            for number, kind in enumerate(KINDS)
            if kind in kinds
        }
        adapters["plain"] = make_adapter(model, directory / "plain", 8, seed=99)
        length = SHORT_CONTEXT if family == "phi3" else None
        engine = start_engine(model, adapters, directory / "formatted", max_model_len=length)
        sequences = {name: prompted(name) for name in engine.slots} | {
            f"base {number}": prompted(None, number) for number in range(3)
        }
        logits = run(engine, list(sequences.values()), odd_chunks)
        by_name = dict(zip(sequences, logits, strict=True))
        return Family(model, adapters, engine, sequences, by_name)

    return make


def prompted(adapter: str | None, number: int = 0) -> Prompted:
    """Tokens that meet what the adapter changes; added ones too, where it adds some."""
    tokens = [*TOKENS[number:], *TOKENS[:number]]
    if adapter in KINDS and KINDS[adapter].new_tokens > 0:
        tokens = [*tokens[:3], VOCAB_SIZE + 2, VOCAB_SIZE, *tokens[3:], VOCAB_SIZE + 1]
    return Prompted(tokens, len(tokens) - NUM_OUTPUT_TOKENS, adapter)


def expected(family: Family, name: str) -> Tensor:
    """What transformers and peft say of a sequence, [length, vocab]."""
    sequence = family.sequences[name]
    adapters = {name: family.adapters[name]} if name in family.adapters else {}
    reference = Reference(family.model, adapters)
    adapter, count = sequence.adapter, sequence.num_prompt_tokens
    return reference.next_logits(sequence.token_ids, adapter, count)


def assert_same(actual: dict[int, Tensor], exact: Tensor) -> None:
    """In the row's own vocabulary it is the reference's; what is beyond can not be sampled."""
    assert len(exact) - 1 in actual
    for position, ours in actual.items():
        theirs = exact[position]
        size = len(theirs)
        error = float((ours[:size] - theirs).abs().max() / theirs.abs().max())
        assert error < TOLERANCE, f"position {position}: {error}"
        assert (ours[size:] == -torch.inf).all()


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_logits_are_those_of_transformers_and_peft(
    family: str, kind: str, families: Callable[[str], Family]
) -> None:
    if family in KINDS[kind].skips:
        pytest.skip(KINDS[kind].skips[family])
    made = families(family)
    if kind in made.engine.errors:
        raise made.engine.errors[kind]
    assert_same(made.logits[kind], expected(made, kind))


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_and_base_rows_beside_them(family: str, families: Callable[[str], Family]) -> None:
    """Plain rows as peft's; base rows, to the bit, as if all rows of the batch were base."""
    made = families(family)
    for name in ("plain", "base 0", "base 1"):
        assert_same(made.logits[name], expected(made, name))
    only_base = [
        replace(sequence, adapter=None, token_ids=[min(t, 259) for t in sequence.token_ids])
        for sequence in made.sequences.values()
    ]
    alone = run(made.engine, only_base, odd_chunks)
    for name, logits in zip(made.sequences, alone, strict=True):
        if name.startswith("base"):
            for position, row in logits.items():
                assert torch.equal(made.logits[name][position][: len(row)], row)


def render() -> str:
    """The matrix as a table, and why some kinds can't be."""
    families = list(FAMILIES)
    lines = [
        f"| kind | {' | '.join(TITLES[family] for family in families)} |",
        f"| --- |{' :-: |' * len(families)}",
    ]
    reasons: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        cells = ["-" if family in kind.skips else "yes" for family in families]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        for reason in sorted(set(kind.skips.values())):
            reasons.setdefault(reason, []).append(name)
    lines += ["", "A dash: the model has nothing that this kind could train.", ""]
    lines += [
        f"- {', '.join(f'*{name}*' for name in kinds)}: {reason}"
        for reason, kinds in reasons.items()
    ]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_documents_is_this_matrix() -> None:
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    if os.environ.get("BRANCHLINE_WRITE_DOCS"):
        DOCUMENT.write_text(before + BEGIN + render() + END + after)
    else:
        assert table == render(), "write it anew with BRANCHLINE_WRITE_DOCS=1"
