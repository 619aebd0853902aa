"""Headers between a gateway and a replica; a replica reads them only beside the fleet's secret."""

from __future__ import annotations

FLEET_SECRET = "x-branchline-fleet-secret"
TENANT = "x-branchline-tenant"
TENANT_WEIGHT = "x-branchline-tenant-weight"
PRIORITY = "x-branchline-priority"
"""An integer that is added to the body's ``priority``; lower runs first."""
CACHE_GROUP = "x-branchline-cache-group"
"""A sharing group: its tenants share cached prefixes with each other and with nobody else."""
MODEL = "x-branchline-model"
"""The replica's own name of what answers, in place of the body's ``model``."""
STREAM_STATE = "x-branchline-stream-state"
"""``1``: comments in the stream say what is needed to resume it elsewhere."""
RESUME = "x-branchline-resume"
"""The length in bytes of a ``ResumeRecord`` that stands before the original body."""
EXPLAIN_ROUTE = "x-branchline-route"
"""In a request: asks to be told why; in an answer: which replica it was and why."""
REQUEST_KEY = "x-branchline-request-key"
"""A client's own: what a split alias goes by, 1 to ``MAX_KEY_LENGTH`` characters."""
MAX_KEY_LENGTH = 256
REQUEST_ID = "x-request-id"
TRACE_PARENT = "traceparent"
