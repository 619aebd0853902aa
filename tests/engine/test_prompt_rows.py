"""Which rows of a step's hidden states are read, for whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_scheduler import generation, make_scheduler

from branchline.engine.plan import SampledToken
from branchline.engine.prompt_output import PromptOutput, PromptPart
from branchline.engine.prompt_rows import PromptRows, prompt_rows
from branchline.engine.step_layout import lay_out
from branchline.engine.types import Pooling, TokenLogprobs


def pooled(name: str, num_prompt: int, pooling: Pooling, **fields):
    return replace(generation(name, num_prompt, **fields), pooling=pooling)


def entries(rows: PromptRows) -> PromptPart:
    return PromptPart(rows.end, [TokenLogprobs(t, -1.0, 1, [], []) for t in rows.token_ids])


def test_steps_of_plain_requests_have_none():
    scheduler = make_scheduler()
    scheduler.add(generation("plain", 7))
    assert prompt_rows(scheduler.schedule()) == []


def test_rows_lie_where_the_chunks_of_their_requests_do():
    scheduler = make_scheduler()
    scheduler.add(generation("plain", 5))
    scheduler.add(pooled("mean", 4, "mean"))
    scheduler.add(generation("scored", 6, adapter="digest-b", prompt_logprobs=2))
    scheduler.add(pooled("last", 3, "last", adapter="digest-a"))
    plan = scheduler.schedule()
    where, offset = {}, 0
    for chunk in plan.chunks:
        where[chunk.request.request_id] = offset
        offset += chunk.num_scheduled_tokens
    found = {rows.request_id: rows for rows in prompt_rows(plan)}
    start = where["mean"]
    assert found["mean"] == PromptRows("mean", "mean", range(start, start + 4), 4, [])
    start, slot = where["scored"], 1
    assert found["scored"] == PromptRows(
        "scored", "logprobs", range(start, start + 5), 5, [1, 2, 3, 4, 5], 2, slot
    )
    start = where["last"] + 2
    assert found["last"] == PromptRows("last", "last", range(start, start + 1), 3, [], 0, 0)
    assert found.keys() == {"mean", "scored", "last"}


def test_pooled_requests_have_no_row_of_logits_and_the_step_is_no_step_of_decodes():
    scheduler = make_scheduler()
    scheduler.add(pooled("pooled", 1, "mean"))
    scheduler.add(generation("plain", 1))
    plan = scheduler.schedule()
    layout = lay_out(plan, 4)
    assert [chunk.samples for chunk in plan.chunks].count(True) == 1
    assert len(layout.logits_indices) == 1
    assert not layout.is_decode
    rows = layout.logits_indices.tolist()
    assert plan.chunks[rows[0]].request.request_id == "plain"


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
def test_each_row_is_read_in_one_chunk(budget: int):
    """The row of the last token gives the first output token, and no logprobs."""
    scheduler = make_scheduler(budget=budget)
    scheduler.add(generation("scored", 8, prompt_logprobs=0, max_tokens=1))
    ends, token_ids, outputs = [], [], []
    while scheduler.has_requests:
        plan = scheduler.schedule()
        found = prompt_rows(plan)
        ends += [rows.end for rows in found]
        token_ids += [token for rows in found for token in rows.token_ids]
        sampled = [SampledToken(9) for _ in plan.sampling_chunks()]
        outputs += scheduler.apply(plan, sampled, {r.request_id: entries(r) for r in found})
    assert token_ids == [1, 2, 3, 4, 5, 6, 7]
    assert ends == [*range(budget, 7, budget), 7]
    [output] = outputs
    first, *rest = output.prompt_logprobs
    assert first is None
    assert [entry.token_id for entry in rest] == token_ids


def test_a_request_that_samples_nothing_is_planned_no_further_while_its_end_is_under_way():
    scheduler = make_scheduler()
    scheduler.add(pooled("pooled", 6, "last"))
    plan = scheduler.schedule()
    assert not scheduler.schedule().chunks
    part = PromptPart(6, vector=np.array([1.5, -2.0], dtype=np.float32))
    [output] = scheduler.apply(plan, [], {"pooled": part})
    assert (output.embedding, output.finish_reason) == ([1.5, -2.0], "stop")
    assert output.queue_seconds is not None
    assert not scheduler.has_requests
    scheduler.check()


def test_an_error_of_the_prompt_ends_the_request():
    scheduler = make_scheduler()
    scheduler.add(generation("scored", 6, prompt_logprobs=0))
    plan = scheduler.schedule()
    part = PromptPart(5, error="not finite")
    [output] = scheduler.apply(plan, [SampledToken(1)], {"scored": part})
    assert (output.finish_reason, output.error, output.token_ids) == ("error", "not finite", [])
    scheduler.check()


def test_a_mean_is_summed_in_double_precision_over_its_chunks():
    output = PromptOutput.of(pooled("mean", 3, "mean"))
    assert output is not None
    for end, value in ((1, 1e8), (2, 1.0), (3, -1e8)):
        assert output.max_reused_tokens == end - 1
        output.take(PromptPart(end, vector=np.array([value], dtype=np.float32)))
    assert output.max_reused_tokens is None
    assert output.embedding() == [pytest.approx(1 / 3)]
