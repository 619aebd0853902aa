"""What the admin API says of cache and tenants: names beside digests, rates beside counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..engine.cache_types import CacheReport, NamespaceReport, PinReport, PrefixReport
from .access import Access
from .catalog import Catalog
from .tenant_meter import OTHER, TenantCounts, TenantMeter
from .text.tokenizer import Tokenizer

MAX_PREVIEW_CHARACTERS = 80

Fields = dict[str, Any]


class CacheView:
    """Shapes the engine's reports; ``tokenizer`` None leaves out what prompts say."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer | None = None) -> None:
        self._catalog = catalog
        self._tokenizer = tokenizer

    def report(self, report: CacheReport) -> Fields:
        """The whole report; blocks and tokens are counts."""
        return {
            **msgspec.to_builtins(report),
            "hit_rate": _rate(report.num_hit_tokens, report.num_query_tokens),
            "namespaces": [self._namespace(entry) for entry in report.namespaces],
            "prefixes": [self._prefix(entry) for entry in report.prefixes],
            "pins": [self.pin(entry) for entry in report.pins],
        }

    def pin(self, pin: PinReport) -> Fields:
        """One pin."""
        return self._named(pin)

    def _namespace(self, entry: NamespaceReport) -> Fields:
        rate = _rate(entry.num_hit_tokens, entry.num_query_tokens)
        return self._named(entry) | {"hit_rate": rate}

    def _prefix(self, entry: PrefixReport) -> Fields:
        """Without its tokens: they are the tenant's words. A salted one never shows any."""
        fields = self._named(entry)
        del fields["first_token_ids"]
        if self._tokenizer is not None:
            tokenizer = self._catalog.tokenizer_of(entry.adapter) or self._tokenizer
            text = None if entry.salted else tokenizer.decode(entry.first_token_ids)
            fields["preview"] = text and text[:MAX_PREVIEW_CHARACTERS]
        return fields

    def _named(self, entry: PinReport | NamespaceReport | PrefixReport) -> Fields:
        """The entry's fields and the names that clients use for its adapter, or the base."""
        names = self._catalog.names_of(entry.adapter)
        return {**msgspec.to_builtins(entry), "models": names}


def tenants_report(access: Access, meter: TenantMeter) -> Fields:
    """Every tenant that is configured or has been seen; past the meter's limit they are one."""
    rows = [_tenant(name, counts, counts.weight) for name, counts in meter.tenants.items()]
    if meter.other is not None:
        rows.append(_tenant(OTHER, meter.other, None))
    configured = set(access.tenant_names)
    return {"tenants": [row | {"configured": row["name"] in configured} for row in rows]}


def _tenant(name: str, counts: TenantCounts, weight: float | None) -> Fields:
    requests: Mapping[int, int] = counts.num_requests
    return {
        "name": name,
        "weight": weight,
        "num_in_flight": counts.num_in_flight,
        "num_requests": {str(status): number for status, number in sorted(requests.items())},
        "num_prompt_tokens": counts.num_prompt_tokens,
        "num_cached_tokens": counts.num_cached_tokens,
        "num_generation_tokens": counts.num_generation_tokens,
    }


def _rate(num_hits: int, num_queries: int) -> float | None:
    return num_hits / num_queries if num_queries else None
