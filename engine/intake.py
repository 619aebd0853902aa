"""From a request as it arrives to one that can be scheduled, or to a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..lora.activation import find_activation
from ..lora.traits import AdapterTraits
from .cache_types import Namespace, PrefixTarget
from .errors import RequestError
from .prefix_cache import BlockLease, PrefixCache
from .prefix_key import PrefixKey
from .request import Request
from .types import GenerationRequest

NEVER = 1 << 60
"""Where an activated LoRA starts that is not invoked, but brings something dense."""


@dataclass(frozen=True, slots=True)
class Intake:
    """What decides whether a request can run, and whose KV it may share."""

    cache: PrefixCache
    adapters: Mapping[str, AdapterTraits]
    max_model_len: int
    isolate_tenants: bool

    def check(self, generation: GenerationRequest) -> None:
        """Raise RequestError for a request that could never run."""
        num_tokens = len(generation.prompt_token_ids)
        if not num_tokens:
            raise RequestError("prompt", "must have at least one token")
        longest = min(self.max_model_len, self.cache.pool.num_usable * self.cache.block_size)
        if generation.pooling is not None or generation.params.max_tokens == 0:
            self._check_prompt_only(generation, longest)
        elif num_tokens >= longest:
            raise RequestError(
                "prompt",
                f"has {num_tokens} tokens; with one to generate, the most is {longest - 1}",
            )
        else:
            self._check_output(generation, longest - 1 - num_tokens)
        if not generation.weight > 0:
            raise RequestError("weight", "must be over 0")
        self._require_adapter(generation.adapter)

    def _check_prompt_only(self, generation: GenerationRequest, longest: int) -> None:
        """Raise RequestError for one that ends with its prompt, and can't."""
        num_tokens = len(generation.prompt_token_ids)
        if num_tokens > longest:
            raise RequestError("prompt", f"has {num_tokens} tokens; the most is {longest}")
        if generation.output_token_ids:
            raise RequestError("output_token_ids", "must be empty where nothing is generated")

    def _check_output(self, generation: GenerationRequest, room: int) -> None:
        """Raise RequestError where the given output leaves no token to generate."""
        max_tokens = generation.params.max_tokens
        most = room if max_tokens is None else min(room, max_tokens - 1)
        num_given = len(generation.output_token_ids)
        if num_given > most:
            raise RequestError(
                "output_token_ids",
                f"has {num_given} tokens; with one to generate, the most is {most}",
            )

    def _require_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self.adapters:
            raise RequestError("adapter", f"{adapter!r} is not loaded")

    def open(self, generation: GenerationRequest, arrival: int, queued_at: float) -> Request:
        """A waiting request for one that ``check`` has passed."""
        start = self._adapter_start(generation.adapter, generation.prompt_token_ids)
        base = self._base(generation.tenant, generation.cache_group, generation.cache_salt)
        key = self._key(generation.adapter, start, base)
        lease = BlockLease(self.cache, generation.tenant)
        request = Request.from_generation(generation, key, lease, arrival, queued_at)
        if start is not None:
            request.adapter_start = start
        elif self._is_dense(generation.adapter):
            request.adapter_start = NEVER
        else:  # an activated LoRA that is not invoked: the base model's answer
            request.adapter = None
        key.extend_to(request.token_ids)
        return request

    def key_of(self, target: PrefixTarget) -> PrefixKey:
        """The key of a prefix that an admin names; raises RequestError for an unknown adapter."""
        self._require_adapter(target.adapter)
        start = self._adapter_start(target.adapter, target.prompt_token_ids)
        base = self._base(target.tenant, target.cache_group, target.cache_salt)
        key = self._key(target.adapter, start, base)
        key.extend_to(target.prompt_token_ids)
        return key

    def _adapter_start(self, adapter: str | None, prompt_token_ids: list[int]) -> int | None:
        """The first position that the adapter computes, None if it computes none."""
        if adapter is None:
            return 0
        invocation = self.adapters[adapter].invocation_tokens
        return 0 if invocation is None else find_activation(prompt_token_ids, invocation)

    def _base(self, tenant: str | None, group: str | None, salt: str | None) -> Namespace:
        """The base model's namespace for a tenant, or for all tenants of a group."""
        model = self.cache.model
        if not self.isolate_tenants:
            return Namespace(model, salt=salt)
        return Namespace(model, tenant=tenant if group is None else None, salt=salt, group=group)

    def _key(self, adapter: str | None, start: int | None, base: Namespace) -> PrefixKey:
        """The namespaces of a sequence: the base's, the adapter's, or one behind the other."""
        size = self.cache.block_size
        if adapter is None:
            return PrefixKey(size, base)
        if self.adapters[adapter].invocation_tokens is None:
            return PrefixKey(size, base._replace(adapter=adapter))
        own = base._replace(adapter=adapter, activation=start)
        if self._is_dense(adapter):  # what is dense applies before the invocation too
            return PrefixKey(size, own)
        return PrefixKey(size, base) if start is None else PrefixKey(size, own, base, start // size)

    def _is_dense(self, adapter: str | None) -> bool:
        return adapter is not None and self.adapters[adapter].is_dense
