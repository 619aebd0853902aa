"""Which modules of a base model an adapter can change, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

PAGE_RANK = 16
"""Ranks in one page of adapter memory."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """One fused linear: ``in_features`` in, the slices' features out, in their order.

    ``slices`` is ``((module_name, out_features), ...)``. ``fused_name`` is the module's own
    name when the checkpoint itself holds the fused linear (Phi-3's ``qkv_proj``): adapters
    of such a base then name that module and not the slices.
    """

    in_features: int
    slices: tuple[tuple[str, int], ...]
    fused_name: str | None = None

    @property
    def out_features(self) -> int:
        """Features of all slices together."""
        return sum(size for _, size in self.slices)

    @property
    def slice_sizes(self) -> tuple[int, ...]:
        """Out features of each slice."""
        return tuple(size for _, size in self.slices)


@dataclass(frozen=True, slots=True)
class NormShape:
    """A norm: ``name`` is ours, ``module`` the checkpoint's, within its layer (or the model).

    The names are those of ``engine.models.layer.LayerWeights``, and ``final_norm``.
    """

    name: str
    module: str
    size: int


class VectorLayout:
    """Where an adapter's vectors lie in one flat row of ``size`` float32 numbers.

    For each layer and module group a ``scale`` [out_features], by which the rows of what the
    linear gives are multiplied (DoRA), and a ``shift`` [out_features] that is added then (biases);
    and the weights of each norm, those of the base where the adapter has none of its own.
    """

    def __init__(self, shapes: ModuleShapes) -> None:
        self._starts: dict[tuple[str, str, int], tuple[int, int]] = {}
        self.size = 0
        for layer in range(shapes.num_layers):
            for group, shape in shapes.groups.items():
                self._add("scale", group, layer, shape.out_features)
                self._add("shift", group, layer, shape.out_features)
            for norm in shapes.norms:
                self._add("norm", norm.name, layer, norm.size)
        if shapes.final_norm is not None:
            self._add("norm", shapes.final_norm.name, 0, shapes.final_norm.size)

    def _add(self, kind: str, name: str, layer: int, size: int) -> None:
        self._starts[kind, name, layer] = (self.size, size)
        self.size += size

    def scale(self, group: str, layer: int) -> tuple[int, int]:
        """Start and length of a group's factors."""
        return self._starts["scale", group, layer]

    def shift(self, group: str, layer: int) -> tuple[int, int]:
        """Start and length of what is added to a group's output."""
        return self._starts["shift", group, layer]

    def norm(self, name: str, layer: int = 0) -> tuple[int, int]:
        """Start and length of a norm's weight; ``final_norm`` is in layer 0."""
        return self._starts["norm", name, layer]


@dataclass(frozen=True)
class ModuleShapes:
    """What adapters can change in a base model.

    ``groups`` are its LoRA-capable linears by name (``qkv``, ``o``, ``gate_up``, ``down``),
    ``norms`` those of each layer. ``tied``: the output layer's weight is the embedding's.
    ``vocab_size`` 0: embeddings, output layer and norms are not adapted.
    """

    num_layers: int
    groups: dict[str, GroupShape]
    norms: tuple[NormShape, ...] = ()
    final_norm: NormShape | None = None
    hidden_size: int = 0
    vocab_size: int = 0
    tied: bool = False

    @classmethod
    def for_decoder(
        cls,
        *,
        num_layers: int,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        fused: bool = False,
        sandwich_norms: bool = False,
        qk_norm: bool = False,
        vocab_size: int = 0,
        tied: bool = False,
    ) -> ModuleShapes:
        """Shapes of a Llama-like decoder; ``fused`` if its checkpoint fuses qkv and gate/up."""
        query, kv = num_heads * head_dim, num_kv_heads * head_dim
        qkv = (("q_proj", query), ("k_proj", kv), ("v_proj", kv))
        gate_up = (("gate_proj", intermediate_size), ("up_proj", intermediate_size))
        groups = {
            "qkv": GroupShape(hidden_size, qkv, "qkv_proj" if fused else None),
            "o": GroupShape(query, (("o_proj", hidden_size),)),
            "gate_up": GroupShape(hidden_size, gate_up, "gate_up_proj" if fused else None),
            "down": GroupShape(intermediate_size, (("down_proj", hidden_size),)),
        }
        before_mlp = "pre_feedforward_layernorm" if sandwich_norms else "post_attention_layernorm"
        norms = [
            NormShape("attention_norm", "input_layernorm", hidden_size),
            NormShape("mlp_norm", before_mlp, hidden_size),
        ]
        if sandwich_norms:
            norms += [
                NormShape("attention_output_norm", "post_attention_layernorm", hidden_size),
                NormShape("mlp_output_norm", "post_feedforward_layernorm", hidden_size),
            ]
        if qk_norm:
            norms += [
                NormShape("q_norm", "self_attn.q_norm", head_dim),
                NormShape("k_norm", "self_attn.k_norm", head_dim),
            ]
        return cls(
            num_layers,
            groups,
            tuple(norms),
            NormShape("final_norm", "norm", hidden_size),
            hidden_size,
            vocab_size,
            tied,
        )

    def page_size(self, group: str) -> int:
        """Numbers in one page of a group, over all layers: A's 16 ranks for each slice, and B's."""
        shape = self.groups[group]
        a_size = len(shape.slices) * shape.in_features
        return self.num_layers * PAGE_RANK * (a_size + shape.out_features)

    @cached_property
    def vectors(self) -> VectorLayout:
        """The layout of an adapter's vectors."""
        return VectorLayout(self)
