"""Grammars from outside are tried in a process beside this one before anything is made of them."""

from __future__ import annotations

from collections import OrderedDict

from ...engine.types import DEFAULT_TENANT, Grammar
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
from .gbnf import Gbnf
from .read import FieldGrammar
from .turns import Turns
from .vocabularies import Vocabularies

FUNCTION = "branchline.server.structured.check_worker:check"

# Of time by the clock, and of memory beyond what Python and its libraries take. Real schemas take
# milliseconds.
MAX_SECONDS = 1.5
MAX_BYTES = 1 << 30

NUM_PROCESSES, MAX_WAITING = 2, 256
MAX_OF_TENANT = 64
"""Different grammars of one tenant that are being checked or wait for it."""

MAX_KNOWN, MAX_KNOWN_BYTES = 1024, 16 << 20

Outcome = tuple[Grammar | Gbnf, str | None]


class GrammarChecks:
    """Says of each grammar whether it can be compiled; what it has said it remembers.

    ``vocabularies`` are what the engine needs to compile it. Tenants take turns; what one asks for
    many times at once is checked once.
    """

    def __init__(self, function: str = FUNCTION, max_seconds: float = MAX_SECONDS) -> None:
        work = Work(function, niceness=5, max_bytes=MAX_BYTES)
        self.vocabularies = Vocabularies()
        self._pool = WorkerPool(work, NUM_PROCESSES, MAX_WAITING)
        self._max_seconds = max_seconds
        self._same, self._of_tenant = Turns(1), Turns(NUM_PROCESSES, MAX_OF_TENANT)
        self._known: OrderedDict[Grammar | Gbnf, Outcome] = OrderedDict()
        self._num_bytes = 0

    async def checked(
        self, wanted: FieldGrammar | None, tenant: str = DEFAULT_TENANT
    ) -> Grammar | None:
        """The grammar for the engine; raises ApiError: 400 naming the field where there is none,
        429 where too many of the tenant's wait."""
        if wanted is None:
            return None
        grammar, error = self._recall(wanted) or await self._check_in_turn(wanted, tenant)
        if error is not None:
            raise bad_field(wanted.field, error, code="invalid_grammar")
        assert isinstance(grammar, Grammar), "one that can be had is in a dialect of the engine's"
        return grammar

    async def in_own_dialect(
        self, wanted: FieldGrammar | None, tenant: str = DEFAULT_TENANT
    ) -> FieldGrammar | None:
        """The same for the engine, so that others can be made of it; raises ApiError."""
        if wanted is None or isinstance(wanted.grammar, Grammar):
            return wanted
        grammar = await self.checked(wanted, tenant)
        assert grammar is not None, "none is for none only"
        return FieldGrammar(wanted.field, grammar)

    async def close(self) -> None:
        """End the processes now; what is being checked fails."""
        await self._pool.close()

    def _recall(self, wanted: FieldGrammar) -> Outcome | None:
        outcome = self._known.get(wanted.grammar)
        if outcome is not None:
            self._known.move_to_end(wanted.grammar)
        return outcome

    async def _check_in_turn(self, wanted: FieldGrammar, tenant: str) -> Outcome:
        async with self._same.take((tenant, wanted.grammar)):
            outcome = self._recall(wanted)
            if outcome is None:
                async with self._of_tenant.take(tenant):
                    outcome = await self._check(wanted)
                self._remember(wanted.grammar, outcome)
        return outcome

    async def _check(self, wanted: FieldGrammar) -> Outcome:
        try:
            outcome = await self._pool.run(wanted.grammar, self._max_seconds)
        except (JobTimeoutError, JobEndedError):
            return wanted.grammar, "is too complex: it can't be compiled in bounded time and memory"
        except JobError as error:
            raise _refusal(wanted.field, error) from error
        assert isinstance(outcome, tuple), "the function returns these"
        return outcome

    def _remember(self, grammar: Grammar | Gbnf, outcome: Outcome) -> None:
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
