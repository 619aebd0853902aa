"""The adapters of a configuration: read, checked, and on the device or ready to go there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..lora.activation import require_in_vocabulary
from ..lora.adapter import AdapterConfig
from ..lora.bank import AdapterBank
from ..lora.errors import AdapterError
from ..lora.loader import load_adapter
from ..lora.residency import AdapterResidency, pages_for
from ..lora.shapes import ModuleShapes
from ..lora.slots import AdapterSlots
from ..lora.traits import AdapterTraits
from ..lora.weights import AdapterWeights
from .config import EngineConfig
from .models.config import ModelConfig
from .models.decoder import Decoder


class EngineAdapters(NamedTuple):
    """``bank`` is None without adapters, ``residency`` when all of them fit on the device."""

    bank: AdapterBank | None
    slots: AdapterSlots
    residency: AdapterResidency | None
    traits: dict[str, AdapterTraits]


def load_adapters(
    config: EngineConfig, decoder: Decoder, on_progress: Callable[[str], None]
) -> EngineAdapters:
    """Read every adapter version and load as many as ``max_loras`` allows.

    The bank has just the pages of those, of the largest in each group when there are more versions
    than slots; those are then kept in host memory too, in the bank's dtype.
    """
    paths = {source.digest: Path(source.path) for source in config.adapters}
    num_slots = min(len(paths), config.max_loras or len(paths))
    slots = AdapterSlots(num_slots)
    if not paths:
        return EngineAdapters(None, slots, None, {})
    shapes = module_shapes(decoder.config)
    host: dict[str, AdapterWeights] = {}
    traits: dict[str, AdapterTraits] = {}
    for digest, path in paths.items():
        on_progress(f"loading adapter {path}")
        host[digest], traits[digest] = _read(path, shapes, decoder)
    num_pages = pages_for((weights.num_pages for weights in host.values()), num_slots)
    bank = AdapterBank(
        shapes, shapes.num_layers, num_pages, decoder.dtype, decoder.device, num_slots
    )
    for digest in list(host)[:num_slots]:
        bank.load(slots.add(digest), host[digest])
    if num_slots == len(host):
        return EngineAdapters(bank, slots, None, traits)
    on_progress(f"{num_slots} of {len(host)} adapters are on the device at once")
    for digest in host:
        slots.register(digest)
    return EngineAdapters(bank, slots, AdapterResidency(bank, slots, host), traits)


def _read(
    path: Path, shapes: ModuleShapes, decoder: Decoder
) -> tuple[AdapterWeights, AdapterTraits]:
    """An adapter in the bank's dtype, in memory that its device can copy from."""
    try:
        config = AdapterConfig.from_directory(path)
        if config.invocation_tokens is not None:
            require_in_vocabulary(config.invocation_tokens, decoder.config.vocab_size)
        weights = load_adapter(path, config, shapes).as_dtype(decoder.dtype)
    except AdapterError as error:
        raise AdapterError(f"adapter {path}", str(error)) from error
    itemsize = decoder.dtype.itemsize
    traits = AdapterTraits.from_pages(weights.num_pages, shapes, itemsize, config.invocation_tokens)
    return weights, traits


def module_shapes(model: ModelConfig) -> ModuleShapes:
    """The linears of ``model`` that can carry an adapter."""
    return ModuleShapes.for_decoder(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        fused=model.fused_projections,
        sandwich_norms=model.sandwich_norms,
        qk_norm=model.qk_norm,
        vocab_size=model.vocab_size,
        tied=model.tie_word_embeddings,
    )
