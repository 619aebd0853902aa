"""Grammars from outside are tried in a process beside this one before anything is made of them."""

from __future__ import annotations

from collections import OrderedDict

from ...engine.types import Grammar
from ..errors import ApiError, bad_field, unavailable
from ..workers.pool import (
    JobEndedError,
    JobError,
    JobTimeoutError,
    NoProcessError,
    PoolClosedError,
    PoolFullError,
    Work,
    WorkerPool,
)
from .read import FieldGrammar
from .vocabularies import Vocabularies

FUNCTION = "branchline.server.structured.check_worker:check"

# Of time by the clock, and of memory beyond what Python and its libraries take. Real schemas take
# milliseconds.
MAX_SECONDS = 3.0
MAX_BYTES = 1 << 30

NUM_PROCESSES, MAX_WAITING = 2, 256
MAX_KNOWN, MAX_KNOWN_BYTES = 1024, 16 << 20

Outcome = tuple[Grammar, str | None]


class GrammarChecks:
    """Says of each grammar whether it can be compiled; what it has said it remembers.

    ``vocabularies`` are what the engine needs to compile it.
    """

    def __init__(self, function: str = FUNCTION, max_seconds: float = MAX_SECONDS) -> None:
        work = Work(function, niceness=5, max_bytes=MAX_BYTES)
        self.vocabularies = Vocabularies()
        self._pool = WorkerPool(work, NUM_PROCESSES, MAX_WAITING)
        self._max_seconds = max_seconds
        self._known: OrderedDict[Grammar, Outcome] = OrderedDict()
        self._num_bytes = 0

    async def checked(self, wanted: FieldGrammar | None) -> Grammar | None:
        """The grammar for the engine; raises ApiError 400 naming the field where there is none."""
        if wanted is None:
            return None
        outcome = self._known.get(wanted.grammar)
        if outcome is None:
            outcome = await self._check(wanted)
            self._remember(wanted.grammar, outcome)
        else:
            self._known.move_to_end(wanted.grammar)
        grammar, error = outcome
        if error is not None:
            raise bad_field(wanted.field, error, code="invalid_grammar")
        return grammar

    async def close(self) -> None:
        """End the processes now; what is being checked fails."""
        await self._pool.close()

    async def _check(self, wanted: FieldGrammar) -> Outcome:
        try:
            outcome = await self._pool.run(wanted.grammar, self._max_seconds)
        except (JobTimeoutError, JobEndedError):
            return wanted.grammar, "is too complex: it can't be compiled in bounded time and memory"
        except JobError as error:
            raise _refusal(wanted.field, error) from error
        assert isinstance(outcome, tuple), "the function returns these"
        return outcome

    def _remember(self, grammar: Grammar, outcome: Outcome) -> None:
        if grammar not in self._known:
            self._num_bytes += len(grammar.text)
        self._known[grammar] = outcome
        while len(self._known) > MAX_KNOWN or self._num_bytes > MAX_KNOWN_BYTES:
            self._num_bytes -= len(self._known.popitem(last=False)[0].text)


def _refusal(field: str, error: JobError) -> ApiError:
    match error:
        case PoolFullError():
            return unavailable(
                "Too many grammars already wait to be checked; try again later.",
                "grammar_queue_full",
            )
        case NoProcessError():
            return unavailable(
                f"No process for grammars can be started: {error}.", "no_grammar_process"
            )
        case PoolClosedError():
            return unavailable("The server is shutting down.", "draining")
    return bad_field(field, f"can't be compiled: {error}", code="invalid_grammar")
