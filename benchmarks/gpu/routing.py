"""A step's adapters by slot, laid out as the engine lays them out."""

from __future__ import annotations

from collections.abc import Sequence

from branchline.lora.bank import AdapterBank
from branchline.lora.layers import StepLora
from branchline.lora.mapping import build_mapping


def step_lora(
    bank: AdapterBank, slots: Sequence[int | None], lengths: Sequence[int]
) -> StepLora | None:
    """Segments of rows, each of one adapter or (None) of the base; None if all are the base's."""
    mapping = build_mapping(slots, lengths, bank)
    return None if mapping is None else StepLora(bank, mapping)
