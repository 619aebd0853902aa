"""Choosing tokens: the same ones on the device as by the plain formulas on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from branchline.kernels import ops

from .bench import Bench, Case, error, wide

MAX_SHARE = 0.02
"""One row of 64 may sit on a boundary that the last bit of an exponential decides."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Random logits, and filters of all strengths, by row."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    streams: Tensor

    @classmethod
    def of(cls, bench: Bench) -> Draw:
        """On the host."""
        rows, vocab_size = bench.pick((64, 128_256), (64, 5003), (6, 517))
        wide = torch.linspace(0, 1, rows, dtype=torch.float64)
        return cls(
            logits=torch.randn(rows, vocab_size, generator=bench.generator) * 3,
            temperature=0.2 + 1.8 * wide,
            top_k=torch.arange(rows) % 7 * 50,
            top_p=0.3 + 0.7 * wide,
            min_p=(torch.arange(rows) % 5 == 1) * 0.01,
            streams=torch.arange(4 * rows).view(4, rows) * 2_654_435_761 % 2**32,
        )

    def to(self, device: torch.device) -> Draw:
        """The same on a device."""
        parts = (self.logits, self.temperature, self.top_k, self.top_p, self.min_p, self.streams)
        return Draw(*(part.to(device) for part in parts))

    def floors(self) -> Tensor:
        """The least logit that each row's filters keep."""
        return ops.filter_floors(self.logits, self.temperature, self.top_k, self.top_p, self.min_p)

    def tokens(self, floors: Tensor | None) -> Tensor:
        """One token a row."""
        top_ids, _ = ops.top_tokens(self.logits)
        return ops.sample_tokens(self.logits, top_ids, self.temperature, self.streams, floors)


def share_of_other_rows(actual: Tensor, expected: Tensor) -> float:
    """How many rows differ, of all; none do if it is one that a last bit may decide."""
    differs = actual.cpu() != expected
    share = float((differs if differs.ndim == 1 else differs.any(-1)).float().mean())
    return 0.0 if share <= MAX_SHARE else share


def greedy(bench: Bench) -> float:
    """Also where two logits tie: the lower id."""
    logits = Draw.of(bench).logits
    logits[:, [7, 300]] = 50.0
    ids, values = ops.top_tokens(logits.to(bench.device))
    return float((ids.cpu() != 7).float().mean() + (values.cpu() != 50.0).float().mean())


def filters(bench: Bench) -> float:
    host = Draw.of(bench)
    device = host.to(bench.device)
    kept = device.logits >= device.floors()[:, None]
    return share_of_other_rows(kept, host.logits >= plain_floors(host)[:, None])


def plain_floors(draw: Draw) -> Tensor:
    """By a sort of each row's probabilities in float64."""
    floors = []
    for row in range(len(draw.logits)):
        values = draw.logits[row].double().sort(descending=True).values
        shares = (values / draw.temperature[row]).softmax(0)
        keep = shares >= draw.min_p[row] * shares[0]
        if draw.top_k[row] > 0:
            keep &= values >= values[min(int(draw.top_k[row]), len(values)) - 1]
        shares = torch.where(keep, shares, 0)
        shares /= shares.sum()
        keep &= (shares.cumsum(0) - shares < draw.top_p[row]) | (draw.top_p[row] >= 1)
        floors.append(values[keep].min())
    return torch.stack(floors)


def sampled(bench: Bench) -> float:
    """Gumbel-max over what the filters keep: the host's plain code is the reference."""
    from branchline.kernels import sample

    host = Draw.of(bench)
    floors = plain_floors(host)
    top_ids, _ = sample.top_tokens(host.logits)
    arguments = (host.logits, top_ids, host.temperature, host.streams)
    device = host.to(bench.device)
    return max(
        share_of_other_rows(device.tokens(None), sample.sample_tokens(*arguments)),
        share_of_other_rows(
            device.tokens(floors.to(bench.device)), sample.sample_tokens(*arguments, floors)
        ),
    )


def edits(bench: Bench) -> float:
    """Bias, repetition, presence: some ids of some rows, all others as they were."""
    logits = Draw.of(bench).logits
    rows, vocab_size = logits.shape
    where = torch.tensor([[0, 0, rows - 1, 1], [3, vocab_size - 1, 0, 77]])
    changes = torch.tensor([[2.0, 0, -5, 0], [1.0, 1.3, 1.7, 1.2], [0.0, 0.5, 0.25, 0]])
    expected = wide(logits).clone()
    for (row, column), (bias, repetition, amount) in zip(
        where.T.tolist(), changes.T.double().tolist(), strict=True
    ):
        value = float(expected[row, column]) + bias
        value = value / repetition if value > 0 else value * repetition
        expected[row, column] = value - amount
    edited = logits.to(bench.device)
    ops.edit_logits(edited, where.to(bench.device), changes.to(bench.device))
    return error(edited.cpu(), expected)


def logprobs(bench: Bench) -> float:
    """Of a token a row, its rank, and the five best of every other row."""
    logits = Draw.of(bench).logits
    rows, vocab_size = logits.shape
    token_ids = torch.arange(rows) * 7 % vocab_size
    counts = [5 * (row % 2) for row in range(rows)]
    device_logits = logits.to(bench.device)
    found = ops.report_logprobs(device_logits, token_ids.to(bench.device), counts)
    chosen, ranks, *best = (part.cpu() for part in found)
    expected = wide(logits).log_softmax(-1)
    picked = expected[torch.arange(rows), token_ids]
    worst = error(chosen, picked)
    if not torch.equal(ranks, (expected > picked[:, None]).sum(1) + 1):
        return float("inf")
    for row, count in enumerate(counts):
        mine = [
            (logprob, token)
            for r, token, logprob in zip(*(part.tolist() for part in best), strict=True)
            if r == row and logprob > float("-inf")
        ]
        if [t for _, t in sorted(mine, reverse=True)][:count] != (
            expected[row].topk(count).indices.tolist()
        ):
            return float("inf")
    return worst


CASES: dict[str, Case] = {
    "greedy": greedy,
    "filters": filters,
    "sampled": sampled,
    "edits": edits,
    "logprobs": logprobs,
}
