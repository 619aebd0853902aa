"""Embeddings and output layers whose rows may each carry a different adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import ops
from .dense_mapping import TableRows

NO_TOKEN = float("-inf")
"""The logit of an id that a row's vocabulary does not have."""


def embed(token_ids: Tensor, weight: Tensor, routed: Sequence[TableRows] = ()) -> Tensor:
    """Rows of ``weight`` [vocab, H] for ``token_ids`` [T], or of an adapter's own -> [T, H].

    Ids beyond ``vocab`` are allowed on rows whose adapter has an embedding with more.
    """
    if not routed:
        return F.embedding(token_ids, weight)
    hidden = F.embedding(token_ids.clamp(max=len(weight) - 1), weight)
    for part in routed:
        part.rows.put(hidden, _embed(part.rows.of(token_ids), part.rows.of(hidden), part.tables))
    return hidden


def _embed(token_ids: Tensor, base: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """One adapter's embedding of ``token_ids`` [n], ``base`` [n, H] being the base model's."""
    hidden = F.embedding(token_ids, tables["embed"]) if "embed" in tables else base
    if "embed_token_ids" in tables:
        ids = tables["embed_token_ids"]  # ascending
        place = torch.searchsorted(ids, token_ids).clamp(max=len(ids) - 1)
        own = tables["embed_tokens"][place]
        hidden = own.where((ids[place] == token_ids)[:, None], hidden)
    if "embed_a" in tables:
        low = F.embedding(token_ids, tables["embed_a"]).float()
        hidden = hidden.float() + low @ tables["embed_b"].float()
    if "embed_scale" in tables:
        hidden = hidden.float() * tables["embed_scale"]
    return hidden


def unembed(
    hidden: Tensor, weight: Tensor, soft_cap: float | None = None, routed: Sequence[TableRows] = ()
) -> Tensor:
    """Logits of ``hidden`` [N, H], ``cap * tanh(x / cap)`` -> [N, widest vocabulary] float32.

    ``weight`` [vocab, H] is the base model's, packed or not. Where a row's own vocabulary is
    narrower than the widest, the rest of its logits is ``NO_TOKEN``.
    """
    base = ops.linear(hidden, weight).float()
    if not routed:
        return _cap(base, soft_cap)
    own = [_unembed(part.rows.of(hidden), part.rows.of(base), part.tables) for part in routed]
    widest = max(logits.shape[1] for logits in (base, *own))
    result = _widen(_cap(base, soft_cap), widest)
    for part, logits in zip(routed, own, strict=True):
        part.rows.put(result, _widen(_cap(logits, soft_cap), widest))
    return result


def _cap(logits: Tensor, soft_cap: float | None) -> Tensor:
    """In place."""
    return logits if soft_cap is None else logits.div_(soft_cap).tanh_().mul_(soft_cap)


def _widen(logits: Tensor, size: int) -> Tensor:
    missing = size - logits.shape[1]
    return F.pad(logits, (0, missing), value=NO_TOKEN) if missing else logits


def _unembed(hidden: Tensor, base: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """One adapter's logits of ``hidden`` [n, H]; ``base`` [n, vocab], the base's, is only read."""
    logits = ops.linear(hidden, tables["head"]).float() if "head" in tables else base
    if "head_token_ids" in tables:
        own = ops.linear(hidden, tables["head_tokens"]).float()
        logits = logits.index_copy(1, tables["head_token_ids"], own)
    if "head_a" in tables:
        low = hidden.float() @ tables["head_a"].float().t()
        logits = logits + low @ tables["head_b"].float()
    if "head_scale" in tables:
        logits = logits * tables["head_scale"]
    if "head_shift" in tables:
        logits = logits + tables["head_shift"]
    return logits
