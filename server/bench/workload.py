"""What a load run sends, decided before the first request: prompts, models, arrival times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Endpoint = Literal["completions", "chat"]
ModelChoice = Literal["round-robin", "zipf"]

WORDS = (
    "amber anchor apple autumn basket beacon bridge candle canyon cedar circle copper coral "
    "cotton delta desert dragon eagle ember falcon feather forest garden glacier granite harbor "
    "hazel island ivory jasmine jungle kettle lantern lemon marble meadow mirror mountain nectar "
    "ocean olive orchid paper pebble pepper pilot planet prairie quartz rabbit raven river saddle "
    "salmon shadow silver summer thunder timber valley velvet violet walnut whisper willow winter"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A load run, as asked for; the same values give the same requests.

    A prompt is ``prefix_len`` tokens that one of ``num_prefixes`` prefixes shares with others,
    then ``input_len`` of its own: random token ids below ``vocab_size``, so that lengths are
    exact, or for chat that many random words. ``rate`` (requests a second, Poisson arrivals)
    takes the place of ``concurrency`` (a new request when one ends).
    """

    models: tuple[str, ...]
    endpoint: Endpoint = "completions"
    concurrency: int = 8
    rate: float | None = None
    num_prompts: int = 64
    num_warmup: int = 2
    input_len: int = 64
    output_len: int = 64
    prefix_len: int = 0
    num_prefixes: int = 1
    model_choice: ModelChoice = "round-robin"
    zipf_exponent: float = 1.0
    vocab_size: int = 1000
    temperature: float = 0.0
    ignore_eos: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send: ``arrival`` is in seconds from the start of the run."""

    model: str
    prompt: list[int] | str
    arrival: float


def plan_requests(workload: Workload) -> list[PlannedRequest]:
    """The measured requests, in the order in which they are sent."""
    generator = random.Random(f"{workload.seed} measured")
    return list(_plan(workload, workload.num_prompts, generator))


def plan_warmup(workload: Workload) -> list[PlannedRequest]:
    """Requests before the clock starts, each model once at least, unless there are to be none."""
    count = max(workload.num_warmup, len(workload.models)) if workload.num_warmup else 0
    generator = random.Random(f"{workload.seed} warm-up")
    names = workload.models
    planned = _plan(workload, count, generator)
    return [
        PlannedRequest(names[index % len(names)], request.prompt, 0.0)
        for index, request in enumerate(planned)
    ]


def request_body(workload: Workload, request: PlannedRequest) -> dict[str, object]:
    """The JSON body of one streamed request."""
    body: dict[str, object] = {
        "model": request.model,
        "max_tokens": workload.output_len,
        "temperature": workload.temperature,
        "seed": workload.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.ignore_eos:
        body["ignore_eos"] = True
    if workload.endpoint == "chat":
        return body | {"messages": [{"role": "user", "content": request.prompt}]}
    return body | {"prompt": request.prompt}


def _plan(workload: Workload, count: int, generator: random.Random) -> Iterator[PlannedRequest]:
    prefixes = [generator.getrandbits(64) for _ in range(workload.num_prefixes)]
    models = _models(workload, count, generator)
    arrivals = _arrivals(workload, count, generator)
    for index in range(count):
        shared = random.Random(prefixes[index % len(prefixes)])
        prompt = _prompt(workload, shared, generator)
        yield PlannedRequest(models[index], prompt, arrivals[index])


def _prompt(workload: Workload, shared: random.Random, own: random.Random) -> list[int] | str:
    parts = ((shared, workload.prefix_len), (own, workload.input_len))
    if workload.endpoint == "chat":
        words = WORDS.split()
        return " ".join(source.choice(words) for source, count in parts for _ in range(count))
    size = workload.vocab_size
    return [source.randrange(size) for source, count in parts for _ in range(count)]


def _models(workload: Workload, count: int, generator: random.Random) -> list[str]:
    names = workload.models
    if workload.model_choice == "round-robin":
        return [names[index % len(names)] for index in range(count)]
    weights = [1 / rank**workload.zipf_exponent for rank in range(1, len(names) + 1)]
    return generator.choices(names, weights, k=count)


def _arrivals(workload: Workload, count: int, generator: random.Random) -> list[float]:
    if workload.rate is None:
        return [0.0] * count
    gaps = [generator.expovariate(workload.rate) for _ in range(count)]
    return list(accumulate(gaps))
