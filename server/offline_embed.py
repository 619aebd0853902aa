"""Embeddings without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..engine.errors import RequestError
from ..engine.loop import EngineLoop
from ..engine.types import Pooling
from .batch_run import Job
from .offline_steps import run_each
from .vectors import POOLED, unit_vector


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """One prompt's vector, of unit length; ``prompt`` is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    adapter: str | None
    embedding: list[float]
    num_cached_tokens: int = 0


def check_pooling(pooling: str, dimensions: int | None, hidden_size: int) -> None:
    """Raises RequestError for what the model's vectors do not have."""
    if pooling not in ("last", "mean"):
        raise RequestError("pooling", f"is {pooling!r}, it may be 'last' or 'mean'")
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise RequestError("dimensions", f"is {dimensions}, it may be 1 to {hidden_size}")


def run_embeddings(
    engine: EngineLoop,
    jobs: Sequence[Job],
    pooling: Pooling,
    dimensions: int | None,
    on_done: Callable[[int], object],
) -> list[EmbeddingOutput]:
    """One vector a job, in their order; raises BranchlineError for the first that fails."""
    requests = [replace(job.choices[0].generation, params=POOLED, pooling=pooling) for job in jobs]
    outputs = run_each(engine, requests, on_done)
    embeddings = []
    for job, output in zip(jobs, outputs, strict=True):
        assert output.embedding is not None, "it is all that a pooled request gives"
        vector = unit_vector(output.embedding, dimensions).tolist()
        embeddings.append(
            EmbeddingOutput(
                job.request_id,
                job.prompt,
                job.prompt_token_ids,
                job.adapter,
                vector,
                output.num_cached_tokens,
            )
        )
    return embeddings
