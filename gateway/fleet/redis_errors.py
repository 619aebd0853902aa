"""Which of redis-py's errors say that Redis can't serve now, whatever was asked.

```
RedisDown               Redis does not answer, or answers that it can't
```
"""

from __future__ import annotations

from redis import exceptions

_OUTAGES = (
    OSError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.InvalidResponse,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.SlotNotCoveredError,
)
# How such answers begin where redis-py has no class for them.
_ANSWERS = ("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "OOM", "LOADING", "READONLY")
_CLUSTER_PROBLEMS = ("Redis Cluster cannot", "Cluster mode is not enabled", "All slots are not")


class RedisDown(Exception):  # noqa: N818
    """Redis does not answer; whether it did what was asked of it is not known."""


def is_outage(error: Exception) -> bool:
    """Whether an error is Redis's state and not the request's fault."""
    if isinstance(error, _OUTAGES):
        return True
    if isinstance(error, exceptions.RedisClusterException):
        return str(error).startswith(_CLUSTER_PROBLEMS)
    return isinstance(error, exceptions.ResponseError) and str(error).startswith(_ANSWERS)
