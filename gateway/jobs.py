"""From a parsed body to the job that is routed and sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import prepare
from .body import ModelRequest
from .estimates import TokenEstimates
from .prefix_keys import CHUNK_BYTES, PrefixHasher
from .proxy.header_rules import to_replica
from .proxy.job import Job
from .types import Caller, Target


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came in."""

    request_id: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JobMaker:
    """Makes jobs; all that routing goes by is worked out here, for requests and explanations."""

    hasher: PrefixHasher
    estimates: TokenEstimates

    def make(
        self, caller: Caller, target: Target, request: ModelRequest, text: bytes, received: Received
    ) -> Job:
        """``text`` is the canonical text of the (first) prompt."""
        size = prepare.prompt_size(request, text, received.body)
        num_prompt_tokens = self.estimates.likely(target.wire_name, size)
        is_stream = bool(request.stream)
        namespace = prepare.prefix_namespace(caller, target, request)
        return Job(
            request_id=received.request_id,
            path=received.path,
            headers={
                **to_replica(received.headers),
                **prepare.fleet_headers(caller, target, is_stream=is_stream),
            },
            body=received.body,
            is_stream=is_stream,
            caller=caller,
            target=target,
            size=size,
            num_prompt_tokens=num_prompt_tokens,
            tokens_per_key=num_prompt_tokens * CHUNK_BYTES / max(len(text), 1),
            prefix_keys=self.hasher.keys(namespace, text),
            affinity=prepare.affinity(caller, target),
        )
