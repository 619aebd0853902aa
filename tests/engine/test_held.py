"""Requests that are held: what they give back, what they keep, and how they go on."""

from __future__ import annotations

import pytest
from small_scheduler import EOS, generation, lengths, make_scheduler, step

from branchline.engine.errors import RequestError
from branchline.engine.plan import SampledToken
from branchline.engine.scheduler import Scheduler


def in_decode(scheduler: Scheduler, *request_ids: str, **fields) -> None:
    """Have requests added and their prompts computed."""
    for request_id in request_ids:
        scheduler.add(generation(request_id, **{"max_tokens": 50, **fields}))
    step(scheduler)
    assert {r.request_id for r in scheduler.running} >= set(request_ids)


def counts(scheduler: Scheduler) -> tuple[int, int, int]:
    return len(scheduler.running), scheduler.num_waiting, scheduler.held.num_parked


def test_a_held_request_gives_everything_back_and_goes_on():
    scheduler = make_scheduler()
    in_decode(scheduler, "a", adapter="digest-a")
    scheduler.hold("a")
    scheduler.check()
    assert counts(scheduler) == (0, 0, 1)
    assert not scheduler.has_requests
    assert scheduler.cache.blocks.num_private == 0
    assert not scheduler.schedule().chunks
    scheduler.go_on("a")
    assert counts(scheduler) == (0, 1, 0)
    plan, outputs = step(scheduler)
    assert lengths(plan) == {"a": 2}, "what is committed is found again"
    assert outputs[0].token_ids == [7]
    assert outputs[0].queue_seconds is None, "that went out with its first output"


def test_holds_and_goings_on_of_others_than_those_held_do_nothing():
    scheduler = make_scheduler()
    in_decode(scheduler, "a")
    for request_id in ("unknown", "a"):
        scheduler.go_on(request_id)
    scheduler.hold("unknown")
    assert counts(scheduler) == (1, 0, 0)
    for _ in range(2):
        scheduler.hold("a")
    assert (scheduler.held.num_holds, counts(scheduler)) == (1, (0, 0, 1))
    for _ in range(2):
        scheduler.go_on("a")
    assert counts(scheduler) == (0, 1, 0)
    scheduler.abort("a")
    scheduler.hold("a")
    scheduler.go_on("a")
    scheduler.check()
    assert counts(scheduler) == (0, 0, 0)


def test_one_that_has_not_started_can_be_held():
    scheduler = make_scheduler(max_num_seqs=1)
    in_decode(scheduler, "a")
    scheduler.add(generation("b"))
    scheduler.add(generation("c"))
    scheduler.hold("b")
    scheduler.abort("a")
    assert lengths(step(scheduler)[0]) == {"c": 5}
    scheduler.go_on("b")
    assert counts(scheduler) == (1, 1, 0)


def test_one_in_the_midst_of_its_prompt_can_be_held():
    scheduler = make_scheduler(budget=8)
    scheduler.add(generation("long", num_prompt=30))
    step(scheduler)
    scheduler.hold("long")
    scheduler.check()
    assert counts(scheduler) == (0, 0, 1)
    scheduler.go_on("long")
    assert lengths(step(scheduler)[0]) == {"long": 8}
    assert scheduler.running[0].num_computed_tokens == 16


def test_the_token_of_a_step_under_way_is_taken_in_before_it_is_parked():
    scheduler = make_scheduler()
    in_decode(scheduler, "a", "b")
    under_way = scheduler.schedule()
    scheduler.hold("a")
    scheduler.check()
    assert counts(scheduler) == (2, 0, 0)
    ahead = scheduler.schedule()
    assert lengths(ahead) == {"b": 1}
    outputs = scheduler.apply(under_way, [SampledToken(11), SampledToken(12)])
    scheduler.check()
    assert {output.request_id: output.token_ids for output in outputs} == {"a": [11], "b": [12]}
    assert counts(scheduler) == (1, 0, 1)
    scheduler.apply(ahead, [SampledToken(13)])
    scheduler.go_on("a")
    plan = scheduler.schedule()
    assert lengths(plan) == {"a": 3, "b": 1}
    assert plan.chunks[-1].request.output_token_ids == [7, 11]


def test_one_that_is_to_go_on_before_it_was_parked_never_stopped():
    scheduler = make_scheduler()
    in_decode(scheduler, "a")
    under_way = scheduler.schedule()
    scheduler.hold("a")
    scheduler.go_on("a")
    ahead = scheduler.schedule()
    assert lengths(ahead) == {"a": 1}
    for plan in (under_way, ahead):
        scheduler.apply(plan, [SampledToken(7)])
        scheduler.check()
    assert counts(scheduler) == (1, 0, 0)


def test_one_that_ends_with_its_step_under_way_is_not_parked():
    scheduler = make_scheduler()
    in_decode(scheduler, "a", "b")
    for end in ("token", "abort", "fail"):
        plan = scheduler.schedule()
        scheduler.hold("a")
        if end == "abort":
            scheduler.abort("a")
        if end == "fail":
            assert len(scheduler.fail(plan, "broken")) == 2
        else:
            scheduler.apply(plan, [SampledToken(EOS if end == "token" else 7), SampledToken(7)])
        scheduler.check()
        assert counts(scheduler)[2] == 0
        if end != "fail":
            in_decode(scheduler, "a")
    assert not scheduler.adapter_use.num_requests("digest-a")


def test_others_get_its_seat_and_its_blocks():
    scheduler = make_scheduler(num_blocks=8, max_num_seqs=1, tenant_share=1.0)
    in_decode(scheduler, "slow", num_prompt=20)
    scheduler.add(generation("next", num_prompt=24, tenant="other"))
    assert lengths(step(scheduler)[0]) == {"slow": 1}
    scheduler.hold("slow")
    assert lengths(step(scheduler)[0]) == {"next": 24}
    assert scheduler.num_preemptions == 0


def test_it_goes_on_before_those_that_came_later():
    scheduler = make_scheduler(max_num_seqs=1)
    in_decode(scheduler, "first")
    scheduler.hold("first")
    in_decode(scheduler, "second")
    scheduler.add(generation("third"))
    scheduler.go_on("first")
    scheduler.abort("second")
    assert list(lengths(step(scheduler)[0])) == ["first"]


def test_held_requests_take_no_place_in_the_queue_and_are_not_shed():
    scheduler = make_scheduler(max_num_seqs=1, max_queued_requests=2)
    in_decode(scheduler, "slow", tenant="a")
    scheduler.hold("slow")
    in_decode(scheduler, "runs", tenant="a")
    for request_id in ("waits", "newer"):
        assert scheduler.add(generation(request_id, tenant="a")) == []
    [shed] = scheduler.add(generation("new", tenant="b"))
    assert shed.request_id == "newer"
    scheduler.go_on("slow")
    [refused] = scheduler.add(generation("more", tenant="a"))
    assert refused.request_id == "more"
    assert scheduler.num_waiting == 3, "one that goes on is let in whatever waits"


def test_it_is_a_user_of_its_adapter_but_does_not_want_it_now():
    scheduler = make_scheduler()
    in_decode(scheduler, "a", adapter="digest-a")
    scheduler.hold("a")
    assert scheduler.num_requests_of("digest-a") == 1
    assert scheduler.adapters_in_use() == ([], [])
    assert scheduler.wanted_adapters() == []
    assert scheduler.fail_adapter("digest-a", "gone") == []
    scheduler.go_on("a")
    assert scheduler.adapters_in_use() == ([], ["digest-a"])
    scheduler.hold("a")
    scheduler.abort("a")
    assert scheduler.num_requests_of("digest-a") == 0
    assert scheduler.adapters_in_use() == ([], [])


def test_the_scout_for_a_cold_adapter_and_those_behind_it_can_be_held():
    scheduler = make_scheduler()
    for request_id in ("scout", "behind", "last"):
        scheduler.add(generation(request_id, adapter="digest-c"))
    step(scheduler)
    for request_id in ("behind", "scout"):
        scheduler.hold(request_id)
        scheduler.check()
        step(scheduler)
    assert scheduler.wanted_adapters() == ["digest-c"], "the last one asks for it now"
    assert scheduler.num_waiting_for_adapter == 1
    for request_id in ("scout", "behind"):
        scheduler.go_on(request_id)
        step(scheduler)
    assert scheduler.num_waiting_for_adapter == 3


def test_an_id_stays_in_use_while_its_request_is_held():
    scheduler = make_scheduler()
    in_decode(scheduler, "a")
    scheduler.hold("a")
    with pytest.raises(RequestError, match="in use"):
        scheduler.add(generation("a"))
