"""KV blocks between the device's pool and host memory, copied beside the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from .errors import EngineStartError
from .staging import send

STAGING_BYTES = 32 << 20
"""Device memory that blocks pass through on a GPU, so that each way is one large copy."""

Ids = tuple[int, ...]


class Transfer:
    """Blocks on their way; whoever asked for it polls ``done()``."""

    def __init__(self, future: Future[int], num_blocks: int) -> None:
        self._future = future
        self.num_blocks = num_blocks

    def done(self) -> bool:
        """Whether it has ended, well or not; never blocks."""
        return self._future.done()

    @property
    def error(self) -> str | None:
        """Why a transfer that has ended failed; what it was to write is then undefined."""
        if not self._future.done():
            return None
        try:
            error = self._future.exception()
        except CancelledError:
            return "the copier was closed"
        return None if error is None else f"{type(error).__name__}: {error}"

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has ended; False if ``timeout`` seconds were too short."""
        try:
            self._future.exception(timeout)
        except TimeoutError:
            return False
        except CancelledError:
            pass
        return True


class KvCopier:
    """Host memory for KV blocks, and the copies between it and the pool, in the order asked for.

    ``kv_pool`` is [num_layers, 2, num_blocks, ...], a block's data and whatever scales it has (see
    ``KvLayout``); host blocks are laid out [num_host_blocks, num_layers, 2, ...], pinned for a GPU.
    Until a transfer is done, blocks it reads must not be written, and blocks it writes be touched
    by nobody.
    """

    def __init__(self, kv_pool: Tensor, num_host_blocks: int) -> None:
        self._blocks = kv_pool.movedim(2, 0)
        shape = (num_host_blocks, *self._blocks.shape[1:])
        self._host = torch.empty(shape, dtype=kv_pool.dtype)
        self._block_bytes = self._blocks[0].numel() * kv_pool.itemsize
        self._staging: Tensor | None = None
        self._pinned = kv_pool.is_cuda
        if kv_pool.is_cuda:
            try:
                ops.pin_host(self._host)
            except RuntimeError as error:
                raise EngineStartError(f"kv_offload_gb: {error}") from None
            num_staged = max(1, min(num_host_blocks, STAGING_BYTES // self._block_bytes))
            self._staging = torch.empty_like(self._host[:num_staged], device=kv_pool.device)
        self._thread = ops.CopyThread(kv_pool.device, "kv-copier")

    @property
    def bytes_per_second(self) -> float | None:
        """How fast blocks were copied of late, either way; None before the first transfer."""
        return self._thread.bytes_per_second

    def copy_out(self, block_ids: Sequence[int], host_ids: Sequence[int]) -> Transfer:
        """Copy device blocks to host blocks, pair by pair."""
        return self._submit(self._out, block_ids, host_ids)

    def copy_in(self, host_ids: Sequence[int], block_ids: Sequence[int]) -> Transfer:
        """Copy host blocks to device blocks, pair by pair."""
        return self._submit(self._in, block_ids, host_ids)

    def _submit(
        self, copy: Callable[[Ids, Ids], None], block_ids: Sequence[int], host_ids: Sequence[int]
    ) -> Transfer:
        blocks, hosts = tuple(block_ids), tuple(host_ids)

        def job() -> int:
            self._check(blocks, hosts)
            copy(blocks, hosts)
            return len(blocks) * self._block_bytes

        return Transfer(self._thread.submit(job), len(blocks))

    def _check(self, blocks: Ids, hosts: Ids) -> None:
        if len(blocks) != len(hosts):
            raise ValueError(f"{len(blocks)} device blocks for {len(hosts)} host blocks")
        for name, ids, count in (
            ("device", blocks, len(self._blocks)),
            ("host", hosts, len(self._host)),
        ):
            if ids and not 0 <= min(ids) <= max(ids) < count:
                raise IndexError(
                    f"{name} blocks are 0 to {count - 1}, not {min(ids)} or {max(ids)}"
                )

    def _out(self, blocks: Ids, hosts: Ids) -> None:
        if self._staging is None:
            for block, host in zip(blocks, hosts, strict=True):
                ops.copy_on_one_core(self._host[host], self._blocks[block])
            return
        for start in range(0, len(blocks), len(self._staging)):
            staged = self._staging[: len(blocks) - start]
            part = slice(start, start + len(staged))
            torch.index_select(self._blocks, 0, self._index(blocks[part]), out=staged)
            for first, rows in _runs(hosts[part]):
                target = self._host[first : first + len(rows)]
                target.copy_(staged[rows.start : rows.stop], non_blocking=True)

    def _in(self, blocks: Ids, hosts: Ids) -> None:
        if self._staging is None:
            for block, host in zip(blocks, hosts, strict=True):
                ops.copy_on_one_core(self._blocks[block], self._host[host])
            return
        for start in range(0, len(blocks), len(self._staging)):
            staged = self._staging[: len(blocks) - start]
            part = slice(start, start + len(staged))
            for first, rows in _runs(hosts[part]):
                source = self._host[first : first + len(rows)]
                staged[rows.start : rows.stop].copy_(source, non_blocking=True)
            self._blocks.index_copy_(0, self._index(blocks[part]), staged)

    def _index(self, ids: Ids) -> Tensor:
        return send([np.array(ids, dtype=np.int64)], self._blocks.device)[0]

    def close(self) -> None:
        """Finish the transfer that runs and end those behind it with an error."""
        self._thread.close()
        if self._pinned:
            ops.unpin_host(self._host)
            self._pinned = False


def _runs(ids: Ids) -> Iterator[tuple[int, range]]:
    """Stretches of ids that follow one another: the first id, and their places in ``ids``."""
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[stop - 1] + 1:
            yield ids[start], range(start, stop)
            start = stop
