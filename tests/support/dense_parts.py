"""Random dense parts of adapters, and what they come to when computed plainly in float64."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import DenseWeights


def random_vectors(
    shapes: ModuleShapes,
    generator: torch.Generator,
    groups: Collection[str] = (),
    norms: Collection[str] = (),
) -> DenseWeights:
    """Vectors that change these groups and norms; in the others' places is what changes nothing."""
    layout = shapes.vectors
    vectors = torch.full((layout.size,), torch.nan)
    for layer in range(shapes.num_layers):
        for group in shapes.groups:
            for kind, (start, size) in (
                (1.0, layout.scale(group, layer)),
                (0.0, layout.shift(group, layer)),
            ):
                noise = torch.randn(size, generator=generator) if group in groups else 0.0
                vectors[start : start + size] = kind + noise
    for name, layer in norm_places(shapes):
        start, size = layout.norm(name, layer)
        noise = torch.randn(size, generator=generator) if name in norms else 0.0
        vectors[start : start + size] = base_norm(name, layer, size) + noise
    return DenseWeights(vectors, frozenset(groups), frozenset(norms))


def norm_places(shapes: ModuleShapes) -> list[tuple[str, int]]:
    """Name and layer of every norm."""
    places = [(norm.name, layer) for layer in range(shapes.num_layers) for norm in shapes.norms]
    return places if shapes.final_norm is None else [*places, (shapes.final_norm.name, 0)]


def base_norm(name: str, layer: int, size: int) -> Tensor:
    """The base model's weight of a norm, in these tests."""
    generator = torch.Generator().manual_seed(len(name) + layer)
    return (1 + 0.2 * torch.randn(size, generator=generator)).bfloat16().float()


def random_tables(
    hidden_size: int, vocab_size: int, names: Collection[str], generator: torch.Generator
) -> DenseWeights:
    """Tables of these names, with what belongs to them; five rows where there are single ones."""
    shapes = {
        "embed": (vocab_size, hidden_size),
        "embed_a": (vocab_size, 3),
        "embed_b": (3, hidden_size),
        "embed_scale": (hidden_size,),
        "embed_tokens": (5, hidden_size),
        "head": (vocab_size, hidden_size),
        "head_a": (3, hidden_size),
        "head_b": (3, vocab_size),
        "head_scale": (vocab_size,),
        "head_shift": (vocab_size,),
        "head_tokens": (5, hidden_size),
    }
    pairs = {"embed_a": "embed_b", "head_a": "head_b"}
    wanted = {*names, *(pairs[name] for name in names if name in pairs)}
    tables = {
        name: torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if name in wanted
    }
    for name in ("embed", "head"):
        if f"{name}_tokens" in tables:
            ids = torch.randperm(vocab_size, generator=generator)[:5].sort().values
            tables[f"{name}_token_ids"] = ids
    return DenseWeights(tables=tables)


def plain_embedding(weight: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """The embedding [vocab, H] that an adapter makes of the base's, in float64."""
    own = tables.get("embed", weight).double().clone()
    if "embed_token_ids" in tables:
        own[tables["embed_token_ids"]] = tables["embed_tokens"].double()
    if "embed_a" in tables:
        own += tables["embed_a"].double() @ tables["embed_b"].double()
    return own * tables["embed_scale"].double() if "embed_scale" in tables else own


def plain_logits(
    hidden: Tensor, weight: Tensor, tables: Mapping[str, Tensor], soft_cap: float | None = None
) -> Tensor:
    """The logits [n, vocab] of an adapter's own output layer, in float64."""
    own = tables.get("head", weight).double().clone()
    if "head_token_ids" in tables:
        own[tables["head_token_ids"]] = tables["head_tokens"].double()
    if "head_a" in tables:
        own += (tables["head_a"].double().t() @ tables["head_b"].double()).t()
    logits = hidden.double() @ own.t()
    if "head_scale" in tables:
        logits = logits * tables["head_scale"].double()
    if "head_shift" in tables:
        logits = logits + tables["head_shift"].double()
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
