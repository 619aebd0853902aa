"""Who starts when adapters, ranks, places in the queue or blocks are short, an example each."""

from __future__ import annotations

from small_scheduler import generation, lengths, make_scheduler, step


def test_one_whose_adapter_is_not_there_is_passed_and_wanted():
    scheduler = make_scheduler()
    scheduler.add(generation("far", adapter="digest-c"))
    scheduler.add(generation("near", adapter="digest-a"))
    assert scheduler.wanted_adapters() == ["digest-c", "digest-a"]
    assert lengths(step(scheduler)[0]) == {"near": 5}
    assert scheduler.wanted_adapters() == ["digest-c"]
    assert scheduler.adapters_in_use() == (["digest-a"], ["digest-c"])
    [output] = scheduler.fail_adapter("digest-c", "is broken")
    assert (output.request_id, output.error) == ("far", "is broken")


def test_the_ranks_of_a_step_have_a_budget():
    scheduler = make_scheduler(max_step_rank=40)
    for name, adapter in (("a", "digest-a"), ("b", "digest-b"), ("c", "digest-a"), ("d", None)):
        scheduler.add(generation(name, adapter=adapter, max_tokens=2))
    assert set(lengths(step(scheduler)[0])) == {"a", "c", "d"}
    step(scheduler)
    assert set(lengths(step(scheduler)[0])) == {"b"}


def test_a_full_queue_refuses_the_tenant_that_filled_it():
    scheduler = make_scheduler(max_queued_requests=3, max_num_seqs=2)
    for name in ("runs", "runs-too"):
        assert scheduler.add(generation(name, tenant="flood", max_tokens=20)) == []
    step(scheduler)
    assert [scheduler.add(generation(name, tenant="flood")) for name in "abc"] == [[], [], []]
    [refused] = scheduler.add(generation("d", tenant="flood"))
    assert (refused.request_id, refused.error_kind) == ("d", "overloaded")
    assert refused.retry_after >= 1
    [refused] = scheduler.add(generation("e", tenant="small"))
    assert refused.request_id == "c"
    assert scheduler.num_overloaded == 2
    assert scheduler.num_preemptions == 0
    scheduler.check()
    assert scheduler.num_waiting == 3


def test_a_tenant_keeps_to_its_share_of_the_pool_while_others_wait():
    scheduler = make_scheduler(num_blocks=9, max_model_len=32, tenant_share=0.5)
    for name in "abc":
        scheduler.add(generation(name, num_prompt=7, tenant="big", max_tokens=20))
    step(scheduler)
    assert len(scheduler.running) == 3, "nobody else needs it"
    scheduler.add(generation("d", num_prompt=7, tenant="small", max_tokens=2))
    scheduler.add(generation("e", num_prompt=7, tenant="small", max_tokens=2))
    step(scheduler)
    tenants = [request.tenant for request in scheduler.running]
    assert tenants.count("small") == 2
    assert scheduler.num_preemptions == 1


def test_without_blocks_a_large_request_is_passed_until_it_is_overdue():
    scheduler = make_scheduler(num_blocks=9, max_model_len=40, max_overtake_cost=40, budget=16)
    scheduler.add(generation("runs", num_prompt=8, max_tokens=24))
    step(scheduler)
    scheduler.add(generation("large", num_prompt=28, max_tokens=1))
    for i in range(15):
        scheduler.add(generation(f"s{i}", num_prompt=3, max_tokens=1))
        step(scheduler)
        if not any(r.request_id == "large" for r in scheduler._requests.values()):
            break
    assert 2 < i < 20, "small ones went ahead, but not for ever"


def test_free_seats_do_not_count_as_a_queue():
    scheduler = make_scheduler(max_queued_requests=1, max_num_seqs=4)
    assert [scheduler.add(generation(name)) for name in "abcde"] == [[]] * 5
    [refused] = scheduler.add(generation("f"))
    assert refused.request_id == "f"


def test_of_many_who_wait_for_one_adapter_one_stands_in_line():
    """The others cost no step anything, and all start once it has come."""
    scheduler = make_scheduler(max_num_seqs=64)
    for i in range(15):
        scheduler.add(generation(f"far{i}", adapter="digest-c", tenant="cold", max_tokens=60))
    scheduler.add(generation("near", adapter="digest-a", tenant="warm", max_tokens=9))
    assert lengths(step(scheduler)[0]) == {"near": 5}
    assert len(list(scheduler._queue.candidates())) == 1
    assert scheduler.wanted_adapters() == ["digest-c"]
    scheduler.abort("far0")
    step(scheduler)
    assert scheduler.wanted_adapters() == ["digest-c"], "the next one asks for it"
    slots = scheduler._admission._slots
    slots.drop("digest-b")
    slots.start_load("digest-c")
    step(scheduler)
    slots.finish_load("digest-c")
    for _ in range(4):
        step(scheduler)
    assert [request.tenant for request in scheduler.running].count("cold") == 14
    scheduler.check()


def test_one_that_waits_for_a_slot_too_long_gets_one():
    scheduler = make_scheduler(max_overtake_cost=30)
    for name, adapter in (("a", "digest-a"), ("b", "digest-b"), ("b2", "digest-b")):
        scheduler.add(generation(name, adapter=adapter, max_tokens=60))
    step(scheduler)
    scheduler.add(generation("c", adapter="digest-c", tenant="other"))
    slots = scheduler._admission._slots
    num_steps = 0
    while not slots.evictable() and num_steps < 30:
        step(scheduler)
        num_steps += 1
    assert slots.evictable() == ["digest-a"], "the adapter with the fewest requests made way"
    assert num_steps > 3
    assert scheduler.num_preemptions == 1


def test_what_was_planned_and_dropped_is_not_paid_for():
    """The first one seated is planned first, and makes way for the other in the same step."""
    scheduler = make_scheduler(num_blocks=6, max_model_len=16)
    scheduler.add(generation("low", num_prompt=8, priority=1, tenant="one", max_tokens=8))
    step(scheduler)
    scheduler.add(generation("high", num_prompt=8, priority=0, tenant="two", max_tokens=8))
    served = 8.0
    for cost in (2 + 8, 2):  # the second plan drops the decode of ``low``
        plan, _ = step(scheduler)
        served += cost
        assert scheduler._queue._tenants.served == served
    assert lengths(plan) == {"high": 1}
    assert scheduler.num_preemptions == 1
    assert scheduler.num_computed_prompt_tokens == 16
