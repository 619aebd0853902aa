"""Which linear modules of a base model can carry LoRA, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

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
class ModuleShapes:
    """The LoRA-capable groups of a base model, by name (``qkv``, ``o``, ``gate_up``, ``down``)."""

    num_layers: int
    groups: dict[str, GroupShape]

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
        return cls(num_layers, groups)

    def page_size(self, group: str) -> int:
        """Numbers in one page of a group, over all layers: A's 16 ranks for each slice, and B's."""
        shape = self.groups[group]
        a_size = len(shape.slices) * shape.in_features
        return self.num_layers * PAGE_RANK * (a_size + shape.out_features)
