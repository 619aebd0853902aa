"""Makes a gateway's limiter and usage reader, which share a ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..fleet.connection import RedisLink
from ..fleet.redis_names import RedisNames
from .ledger import Ledger
from .limiter import Limiter
from .usage import UsageReader


def build_limits(
    link: RedisLink | None,
    names: RedisNames,
    *,
    gateway_id: str,
    num_gateways: Callable[[], int],
    state_dir: Path | None = None,
    keep_days: int = 90,
) -> tuple[Limiter, UsageReader]:
    """``link`` None: no Redis, and usage is this gateway's own, in ``state_dir / "usage"``."""
    directory = None if state_dir is None else state_dir / "usage"
    ledger = Ledger(directory, is_shared=link is not None, keep_days=keep_days)
    limiter = Limiter(link, names, gateway_id=gateway_id, num_gateways=num_gateways, ledger=ledger)
    return limiter, UsageReader(link, names, ledger)
