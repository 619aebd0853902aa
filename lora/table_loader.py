"""An adapter's tables: embeddings and output layers, rows of them, and pairs on them."""

from __future__ import annotations

import torch
from torch import Tensor

from .base_tensors import BaseTensors, require_base
from .dora import column_norms, magnitude_scale, row_norms
from .errors import AdapterError
from .shapes import ModuleShapes
from .table_targets import TablePair, TableTarget, TableTargets
from .tensor_files import AdapterTensors, require_finite

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_tables(
    tensors: AdapterTensors, plan: TableTargets, shapes: ModuleShapes, base: BaseTensors
) -> dict[str, Tensor]:
    """The tables of ``DenseWeights``, float32, the scale of pairs folded in.

    A table in the file that equals the base's, as PEFT writes one beside a pair, is left out.
    """
    if not plan:
        return {}
    _require_equal(tensors, plan)
    reader = _TableReader(tensors, plan, shapes, base)
    found: dict[str, Tensor] = {}
    for name, target in (("embed", plan.embedding), ("head", plan.head)):
        matrix = reader.matrix(target)
        if matrix is not None:
            found[name] = matrix
        if target.rows is not None:
            ids, order = torch.tensor(target.token_ids, dtype=torch.int64).sort()
            found[f"{name}_token_ids"] = ids
            found[f"{name}_tokens"] = reader.rows(target.rows)[order]
    for name, target in (("embed", plan.embedding), ("head", plan.head)):
        if target.pair is not None:
            found |= reader.pair(name, target, target.pair, found)
    return found


def _require_equal(tensors: AdapterTensors, plan: TableTargets) -> None:
    for first, second, turned in plan.twins:
        other = tensors.read(second)
        if not torch.equal(tensors.read(first), other.t() if turned else other):
            raise AdapterError(
                second, f"differs from {first}, with which the base model's output layer is tied"
            )


class _TableReader:
    def __init__(
        self,
        tensors: AdapterTensors,
        plan: TableTargets,
        shapes: ModuleShapes,
        base: BaseTensors,
    ) -> None:
        self._tensors, self._base = tensors, base
        self._tied = shapes.tied
        self._resized = plan.vocab_size != shapes.vocab_size
        self._read: dict[str, Tensor] = {}
        self._based = {
            target.based: EMBEDDING if shapes.tied or target is plan.embedding else HEAD
            for target in (plan.head, plan.embedding)
        }

    def matrix(self, target: TableTarget) -> Tensor | None:
        """The whole table in place of the base's; None where that is the same."""
        name = target.own or target.based
        if name is None:
            return None
        table = self.rows(name)
        if target.own is None and not self._resized:
            served = require_base(self._base, self._based[name])
            if torch.equal(table.to(served.dtype), served):
                return None
        return table

    def rows(self, name: str) -> Tensor:
        """A tensor of the file, read once though two tables have it."""
        if name not in self._read:
            self._read[name] = self._tensors.read(name)
        return self._read[name]

    def pair(
        self, name: str, target: TableTarget, pair: TablePair, found: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A pair on the embedding (A transposed) or the output layer (B transposed)."""
        a, b = self._tensors.read(pair.a), self._tensors.read(pair.b).mul_(pair.scale)
        require_finite(pair.b, b)
        is_head = name == "head"
        tables = {"head_a": a, "head_b": b.t().contiguous()} if is_head else {}
        if not is_head:
            tables = {"embed_a": a.t().contiguous(), "embed_b": b.t().contiguous()}
        if pair.bias is not None:
            tables["head_shift"] = self._tensors.read(pair.bias).mul_(pair.scale)
        if pair.magnitude is not None:
            weight = self._weight(name, found)
            norms = row_norms(weight, b, a) if is_head else column_norms(weight, a.t(), b.t())
            magnitude = self._tensors.read(pair.magnitude)
            tables[f"{name}_scale"] = magnitude_scale(pair.magnitude, magnitude, norms)
        return tables

    def _weight(self, name: str, found: dict[str, Tensor]) -> Tensor:
        """The table that a pair is added to, with its rows replaced."""
        weight = found.get(name)
        if weight is None:
            weight = require_base(self._base, EMBEDDING if name == "embed" else HEAD)
        ids = found.get(f"{name}_token_ids")
        if ids is None:
            return weight
        return weight.float().index_copy(0, ids, found[f"{name}_tokens"])
