"""Which rows of a step's hidden states give something of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import ScheduledChunk, StepPlan
from .prompt_output import PromptKind


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of a step that one request's prompt is read from, one behind the other.

    ``end`` is the position behind the last of them. ``token_ids`` are what follows each row, where
    logprobs are wanted. ``slot`` is the request's adapter, None for the base model.
    """

    request_id: str
    kind: PromptKind
    rows: range
    end: int
    token_ids: list[int]
    num_top: int = 0
    slot: int | None = None


def prompt_rows(plan: StepPlan) -> list[PromptRows]:
    """In the order of the step, a request at most once; none for a step of plain requests."""
    found = []
    offset = 0
    for chunk in plan.chunks:
        if chunk.request.prompt_output is not None:
            rows = _rows(chunk, offset)
            if rows is not None:
                found.append(rows)
        offset += chunk.num_scheduled_tokens
    return found


def _rows(chunk: ScheduledChunk, offset: int) -> PromptRows | None:
    """Those of a chunk that begins at row ``offset`` of the step."""
    request = chunk.request
    output = request.prompt_output
    assert output is not None
    wanted = output.wanted(chunk.start, chunk.end)
    if not wanted:
        return None
    first = offset + wanted.start - chunk.start
    scores = output.kind == "logprobs"
    return PromptRows(
        request_id=request.request_id,
        kind=output.kind,
        rows=range(first, first + len(wanted)),
        end=wanted.stop,
        token_ids=request.token_ids[wanted.start + 1 : wanted.stop + 1] if scores else [],
        num_top=output.num_top,
        slot=None if request.slot is None else request.slot.slot,
    )
