"""How the KV pool lies in memory: blocks of all layers, in full precision or in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import ops
from ..lora.clear_memory import clear_tensor
from .models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Pools of one dtype for one model.

    Full precision: [num_layers, 2, num_blocks, block_size, Hkv, D]. In 8 bits: uint8
    [num_layers, 2, num_blocks, bytes], where a block's bytes are its data and then its float32
    scales, one a token and head:

        | data [block_size, Hkv, D] | scales [block_size, Hkv] |

    In either a block is ``pool[:, :, block]``, and clear when it is zero.
    """

    model: ModelConfig
    block_size: int
    dtype: torch.dtype

    @property
    def has_scales(self) -> bool:
        """Whether rows are kept in 8 bits."""
        return self.dtype == ops.FP8

    @property
    def block_bytes(self) -> int:
        """Bytes that one block takes over all layers, keys and values."""
        rows = self.block_size * self.model.num_kv_heads
        scales = rows * torch.float32.itemsize if self.has_scales else 0
        data = rows * self.model.head_dim * self.dtype.itemsize
        return 2 * self.model.num_layers * (data + scales)

    def allocate(self, num_blocks: int, device: torch.device | str) -> Tensor:
        """A pool of clear blocks."""
        model = self.model
        shape: tuple[int, ...] = (self.block_size, model.num_kv_heads, model.head_dim)
        dtype = self.dtype
        if self.has_scales:
            shape, dtype = (self.block_bytes // (2 * model.num_layers),), torch.uint8
        return clear_tensor((model.num_layers, 2, num_blocks, *shape), dtype, device)

    def caches(self, pool: Tensor) -> list[ops.KvCache]:
        """What each layer reads and writes: views of the pool."""
        if not self.has_scales:
            return [ops.KvCache(layer[0], layer[1]) for layer in pool]
        caches = []
        for layer in pool:
            keys, key_scales = self._split(layer[0])
            values, value_scales = self._split(layer[1])
            caches.append(ops.KvCache(keys, values, key_scales, value_scales))
        return caches

    def _split(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Data and scales of ``blocks`` [num_blocks, bytes]."""
        heads = (len(blocks), self.block_size, self.model.num_kv_heads)
        num_data = self.block_size * self.model.num_kv_heads * self.model.head_dim
        data = blocks[:, :num_data].view(ops.FP8).view(*heads, self.model.head_dim)
        return data, blocks[:, num_data:].view(torch.float32).view(heads)
