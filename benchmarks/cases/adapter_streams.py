"""Streams that never end, of names whose adapters are replaced meanwhile: which version answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from .adapter_files import SHAPES, AdapterStore
from .adapter_reference import Reference
from .adapter_server import Server
from .client import Answer, Client, RequestError
from .tenants import Shape
from .ttft import random_tokens

BASE = "base"
NUM_LIVE, NUM_STEADY = 4, 3


@dataclass(slots=True)
class Line:
    """A name that is asked the same again and again, and when each of its versions came.

    ``adapters`` are the files' numbers, version by version, None the base. ``begun`` and ``ended``
    are when the put of each was sent and answered, ``expected`` what it says when nothing else
    runs.
    """

    name: str
    adapters: list[int | None]
    prompt: list[int]
    expected: list[list[int]] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def version_of(self, answer: Answer) -> int | None:
        """The version that has said just this, of those that could answer then; else None."""
        for version in self.possible(answer):
            if answer.token_ids == self.expected[version]:
                return version
        return None

    def possible(self, answer: Answer) -> range:
        """Those that could: what was current when it was sent, and all put before its first token.

        Who has been told that a version is there is never answered by an older one.
        """
        settled = sum(moment <= answer.started for moment in self.ended)
        begun = sum(moment <= answer.arrivals[0][0] for moment in self.begun)
        return range(max(0, settled - 1), begun)

    async def repeat(self, client: Client, max_tokens: int, goes_on: Callable[[], bool]) -> None:
        """Ask, and ask again as soon as it is answered."""
        while goes_on():
            answer = await client.complete(self.name, self.prompt, max_tokens)
            self.answers.append(answer)


def make_lines(shape: Shape, num_replaces: int) -> list[Line]:
    """Names to be replaced in turn, others that stay, and the base."""
    num_versions = -(-num_replaces // NUM_LIVE) + 1
    numbers: dict[str, list[int | None]] = {
        f"live{place}": [place + len(SHAPES) * version for version in range(num_versions)]
        for place in range(NUM_LIVE)
    }
    numbers |= {f"steady{n}": [NUM_LIVE + n] for n in range(NUM_STEADY)}
    lines = []
    numbers[BASE] = [None]
    for name, adapters in numbers.items():
        prompt = random_tokens(random.Random(name), shape.input_tokens, shape.vocab_size)
        lines.append(Line(name, adapters, prompt))
    return lines


async def expect(server: Server, lines: Sequence[Line], store: AdapterStore, shape: Shape) -> None:
    """Ask every version while nothing else runs; raises RequestError if two say the same."""
    is_there = False
    for line in lines:
        for number in line.adapters:
            name = BASE if number is None else "probe"
            if number is not None:
                await server.admin.put(name, store.path(number), 200 if is_there else 201)
                is_there = True
            # With a salt, the streams find nothing of it in the prefix cache.
            answer = await server.client.complete(name, line.prompt, shape.output_tokens, "probe")
            line.expected.append(answer.token_ids)
        if len(set(map(tuple, line.expected))) < len(line.expected):
            raise RequestError(f"two versions of {line.name} answer alike: longer answers needed")
    await server.admin.delete("probe")


async def put_version(server: Server, line: Line, store: AdapterStore) -> float:
    """Put the next version of a name; returns the seconds it took."""
    number = line.adapters[len(line.begun)]
    is_first = not line.begun
    line.begun.append(time.perf_counter())
    if number is not None:
        await server.admin.put(line.name, store.path(number), 201 if is_first else 200)
    line.ended.append(time.perf_counter())
    return line.ended[-1] - line.begun[-1]


def judge(lines: Sequence[Line], reference: Reference, store: AdapterStore) -> dict[str, int]:
    """Hold every answer against those of the versions that could give it.

    One that differs has to be right by the reference's logits, for one of these versions from
    its first token to its last: steps of other sizes sum in another order. Raises RequestError
    for one that no version could have given.
    """
    found = {"num_answers": 0, "num_by_reference": 0, "num_versions_seen": 0}
    for line in lines:
        versions = [line.version_of(answer) for answer in line.answers]
        for answer, version in zip(line.answers, versions, strict=True):
            if version is None and not _is_right(line, answer, reference, store):
                raise RequestError(f"an answer of {line.name} is that of no version")
        found["num_answers"] += len(versions)
        found["num_by_reference"] += versions.count(None)
        found["num_versions_seen"] += len(set(versions) - {None})
    return found


def _is_right(line: Line, answer: Answer, reference: Reference, store: AdapterStore) -> bool:
    for version in line.possible(answer):
        number = line.adapters[version]
        with ExitStack() as stack:
            if number is not None:
                stack.enter_context(reference.merged(store.path(number)))
            if reference.are_right([answer])[0]:
                return True
    return False
