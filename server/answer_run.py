"""How an answer that is not streamed comes about: its choices are generated, or beams searched."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from .answer import Answer
from .beam_run import search_beams
from .generation import ChoiceDelta
from .services import Services


def deltas_of(services: Services, answer: Answer, arrival: float) -> AsyncGenerator[ChoiceDelta]:
    """The deltas of all choices; closing this ends what still runs."""
    if answer.beams is not None:
        return search_beams(services, answer, answer.beams, arrival)
    return services.generator.run(answer.choices, answer.model, arrival)
