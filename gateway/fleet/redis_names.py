"""The keys that a fleet uses in Redis; all of one slot share a hash tag, so that Cluster works.

```
{branchline:F}:generation          drawn when the store was made; absent: Redis came back empty
{branchline:F}:replicas            hash   replica id -> ReplicaReport
{branchline:F}:beats               zset   replica id -> when it last told, Redis' clock, ms
{branchline:F}:adapters:R          string AdapterPlaces of replica R, expires
{branchline:F}:keys:R              stream KeyEvents of replica R (field e), capped
{branchline:F}:gateways            hash   gateway id -> GatewayReport
{branchline:F}:gateway_beats       zset   gateway id -> when, ms
{branchline:F}:store:K             hash   name -> document, K one of tenant key adapter alias
{branchline:F}:changes             stream what changed in the store (fields kind, name, revision)
{branchline:F:t:T}:…               counters of tenant T (its name as hex)
{branchline:F:t:T}:responses       hash   response id -> sealed KeptResponse, expires
{branchline:F:t:T}:response_times  zset   response id -> when it was kept, ms
{branchline:F:t:T}:response_bytes  string bytes of the hash's values
```
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RedisNames:
    """Key names of one fleet; ``fleet`` is 1 to 64 of letters, digits, ``.``, ``_`` and ``-``."""

    fleet: str

    @property
    def tag(self) -> str:
        """What all keys of the fleet begin with."""
        return f"{{branchline:{self.fleet}}}"

    @property
    def generation(self) -> str:
        """Drawn when the store was made."""
        return f"{self.tag}:generation"

    @property
    def replicas(self) -> str:
        """Reports by replica id."""
        return f"{self.tag}:replicas"

    @property
    def beats(self) -> str:
        """Replica ids by their last beat."""
        return f"{self.tag}:beats"

    def adapters(self, replica_id: str) -> str:
        """What a replica serves beside its base."""
        return f"{self.tag}:adapters:{replica_id}"

    def keys(self, replica_id: str) -> str:
        """The stream of a replica's prefix keys."""
        return f"{self.tag}:keys:{replica_id}"

    @property
    def gateways(self) -> str:
        """Reports by gateway id."""
        return f"{self.tag}:gateways"

    @property
    def gateway_beats(self) -> str:
        """Gateway ids by their last beat."""
        return f"{self.tag}:gateway_beats"

    def store(self, kind: str) -> str:
        """Documents of one kind."""
        return f"{self.tag}:store:{kind}"

    @property
    def changes(self) -> str:
        """The stream of changes of the store."""
        return f"{self.tag}:changes"

    def tenant(self, name: str) -> str:
        """What a tenant's counters begin with: a tag, and so a slot, of its own."""
        return f"{{branchline:{self.fleet}:t:{name.encode().hex()}}}"

    def responses(self, tenant: str) -> list[str]:
        """A tenant's kept responses, when each was kept, and their bytes in all."""
        tag = self.tenant(tenant)
        return [f"{tag}:responses", f"{tag}:response_times", f"{tag}:response_bytes"]
