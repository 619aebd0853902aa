"""A transformers model that computes what an adapter's loaded weights mean, in float32.

It follows the docstrings of ``lora.weights`` alone, so that a loader is checked before there is
any run time for what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lora_reference import dense_delta
from reference_adapters import load_base
from torch import Tensor, nn

from branchline.lora.shapes import GroupShape, ModuleShapes
from branchline.lora.weights import AdapterWeights, DenseWeights

_OWNERS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}


class ServedModel:
    """One adapter on a base of its own; ``base`` gives the base's tensors by name."""

    def __init__(self, model_dir: Path, shapes: ModuleShapes) -> None:
        self._model = load_base(model_dir).eval()
        self._shapes = shapes
        self._tensors = {n: t.detach().clone() for n, t in self._model.state_dict().items()}
        self._activation = 0

    def base(self, name: str) -> Tensor | None:
        """A base tensor, for ``load_adapter``."""
        return self._tensors.get(name)

    def put(self, weights: AdapterWeights) -> None:
        """Make this the model with the adapter, for good."""
        dense = weights.dense or DenseWeights()
        layout = self._shapes.vectors
        for layer in range(self._shapes.num_layers):
            for group, shape in self._shapes.groups.items():
                self._put_group(weights, dense, layer, group, shape)
            for norm in self._shapes.norms:
                if norm.name in dense.norms:
                    name = f"model.layers.{layer}.{norm.module}"
                    self._set_norm(name, dense, layout.norm(norm.name, layer))
        final = self._shapes.final_norm
        if final is not None and final.name in dense.norms:
            self._set_norm(f"model.{final.module}", dense, layout.norm(final.name))
        self._put_tables(dense, weights.vocab_size)

    @torch.inference_mode()
    def next_logits(self, token_ids: Sequence[int], activation: int = 0) -> Tensor:
        """[T, V]; pairs on linears apply from token ``activation`` on, all else everywhere."""
        self._activation = activation
        logits: Tensor = self._model(torch.tensor([list(token_ids)])).logits[0]
        return logits

    def _set_norm(self, name: str, dense: DenseWeights, place: tuple[int, int]) -> None:
        assert dense.vectors is not None
        start, length = place
        weight = self._model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data = dense.vectors[start : start + length].clone()

    def _put_group(
        self,
        weights: AdapterWeights,
        dense: DenseWeights,
        layer: int,
        group: str,
        shape: GroupShape,
    ) -> None:
        pages = weights.groups.get(group)
        delta = torch.zeros(shape.out_features, shape.in_features, dtype=torch.float64)
        if pages is not None:
            delta = dense_delta(pages, layer, shape.slice_sizes)
        scale, shift = torch.ones(shape.out_features), torch.zeros(shape.out_features)
        if dense.vectors is not None and group in dense.affine_groups:
            start, length = self._shapes.vectors.scale(group, layer)
            scale = dense.vectors[start : start + length]
            start, length = self._shapes.vectors.shift(group, layer)
            shift = dense.vectors[start : start + length]
        parts = [name for name, _ in shape.slices] if shape.fused_name is None else None
        sizes = shape.slice_sizes if parts else (shape.out_features,)
        places = zip(parts or [shape.fused_name], sizes, strict=True)
        start = 0
        for name, size in places:
            rows = slice(start, start + size)
            path = f"model.layers.{layer}.{_OWNERS[group]}.{name}"
            linear = self._model.get_submodule(path)
            linear.register_forward_hook(self._hook(delta[rows].float(), scale[rows], shift[rows]))
            start += size

    def _hook(self, delta: Tensor, scale: Tensor, shift: Tensor):  # type: ignore[no-untyped-def]
        def change(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            added = inputs[0] @ delta.t()
            added[:, : self._activation] = 0
            return (output + added) * scale + shift

        return change

    def _put_tables(self, dense: DenseWeights, vocab_size: int | None) -> None:
        embedding = self._model.get_input_embeddings()
        head = self._model.get_output_embeddings()
        tables = {"embed": self._tensors["model.embed_tokens.weight"]}
        tables["head"] = self._tensors["lm_head.weight"]
        for name in tables:
            tables[name] = dense.tables.get(name, tables[name]).clone()
            if f"{name}_tokens" in dense.tables:
                tables[name][dense.tables[f"{name}_token_ids"]] = dense.tables[f"{name}_tokens"]
        if "embed_a" in dense.tables:
            tables["embed"] += dense.tables["embed_a"] @ dense.tables["embed_b"]
        if "head_a" in dense.tables:
            tables["head"] += dense.tables["head_b"].t() @ dense.tables["head_a"]
        rows = vocab_size or self._shapes.vocab_size
        assert tables["embed"].shape == tables["head"].shape == (rows, self._shapes.hidden_size)
        embedding.padding_idx = None
        embedding.weight = nn.Parameter(tables["embed"] * dense.tables.get("embed_scale", 1))
        scale = dense.tables.get("head_scale", torch.ones(rows))
        head.weight = nn.Parameter(tables["head"] * scale[:, None])
        if "head_shift" in dense.tables:
            head.bias = nn.Parameter(dense.tables["head_shift"])
