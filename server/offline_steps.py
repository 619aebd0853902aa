"""Engine requests of one output each, in this process: steps of beams, and pooled prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engine.loop import EngineLoop
from ..engine.types import GenerationRequest, TokenOutput
from .generation import raise_for


def run_each(
    engine: EngineLoop,
    requests: Sequence[GenerationRequest],
    on_done: Callable[[int], object] = lambda num_done: None,
) -> list[TokenOutput]:
    """The output of each request; raises BranchlineError for the first that fails.

    Nothing of them stays in the engine, however it ends.
    """
    outputs: dict[str, TokenOutput] = {}
    live = {request.request_id for request in requests}

    def take(output: TokenOutput) -> None:
        if output.request_id in live:
            raise_for(output)
            outputs[output.request_id] = output
            live.discard(output.request_id)
            on_done(1)

    try:
        for request in requests:
            for refused in engine.add(request):
                take(refused)
        while live:
            assert engine.has_work, "a request left the engine without an output"
            for output in engine.step():
                take(output)
    finally:
        for request_id in live:
            engine.abort(request_id)
    return [outputs[request.request_id] for request in requests]
