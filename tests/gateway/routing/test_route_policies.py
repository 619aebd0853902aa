"""Each policy by example, and what all of them hold to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from fleet_values import ADAPTER, BASE, fleet, route, view
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.fleet.records import AdapterPlace, ReplicaLoad
from branchline.gateway.routing.cost import CostPolicy
from branchline.gateway.routing.router import POLICIES, Router, policy_named
from branchline.gateway.types import Decision, FleetSnapshot, RouteRequest, Target


def chosen(request: RouteRequest, snapshot: FleetSnapshot, policy: str = "cost") -> Decision:
    decision = Router(policy_named(policy), seed=1).choose(request, snapshot)
    assert decision is not None
    return decision


def test_a_request_goes_where_its_prefix_is() -> None:
    decision = chosen(route(1000, {"b": 900}), fleet(view("a"), view("b"), view("c")))
    assert (decision.replica_id, decision.url, decision.reason) == ("b", "http://b", "prefix")
    assert (decision.num_matched_tokens, decision.num_uncached_tokens) == (900, 100)


def test_a_queue_longer_than_recomputing_outweighs_the_prefix() -> None:
    """Hysteresis: 900 tokens saved are worth a queue of 4 x 900 tokens and no more."""
    request = route(1000, {"b": 900})
    before = fleet(view("a"), view("b", num_queued_prefill_tokens=3400))
    behind = fleet(view("a"), view("b", num_queued_prefill_tokens=3800))
    assert chosen(request, before).replica_id == "b"
    assert (chosen(request, behind).replica_id, chosen(request, behind).reason) == ("a", "load")


def test_a_hot_prefix_spreads_before_its_first_replica_drowns() -> None:
    """Requests of one long prefix, faster than one replica takes them, none finished."""
    matched, queued, router = {"a": 950}, Counter[str](), Router(seed=1)
    for _ in range(600):
        views = [view(name, num_queued_prefill_tokens=queued[name]) for name in "abcd"]
        decision = router.choose(route(1000, dict(matched)), fleet(*views))
        assert decision is not None
        queued[decision.replica_id] += decision.num_uncached_tokens
        matched[decision.replica_id] = 950
    assert set(matched) == set("abcd")
    # Once all hold it, they share it; none ever waited much longer than the next to hold it.
    assert max(queued.values()) - min(queued.values()) <= 1000


def test_what_other_gateways_have_on_the_way_counts_as_queued() -> None:
    busy = ReplicaLoad(num_requests=3, num_prefill_tokens=3000)
    assert chosen(route(), fleet(view("a", load=busy), view("b"))).replica_id == "b"


def test_faster_replicas_take_longer_queues() -> None:
    fast = view("a", num_queued_prefill_tokens=2000, prefill_tokens_per_second=8000.0)
    assert chosen(route(), fleet(fast, view("b", num_queued_prefill_tokens=500))).replica_id == "a"


def test_an_unknown_speed_is_taken_for_the_typical_one() -> None:
    new = view("b", prefill_tokens_per_second=0.0)
    views = [view("a"), new, view("c", prefill_tokens_per_second=3000.0)]
    costs = CostPolicy().costs(route(1000), views)
    assert costs[1].prefill == pytest.approx(4 * 1000 / 2000)
    (alone,) = CostPolicy(default_prefill_rate=500.0).costs(route(1000), [new])
    assert alone.prefill == pytest.approx(8)


def test_running_requests_cost_their_decodes() -> None:
    cost = CostPolicy(decode_seconds=0.02).costs(
        route(0), [view(num_running=3, num_waiting=1, load=ReplicaLoad(num_requests=1))]
    )
    assert cost[0].decode == cost[0].total == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("nearer", "farther"), [("device", "host"), ("host", "disk"), ("disk", None)]
)
def test_an_adapter_draws_its_requests(nearer: str, farther: str | None) -> None:
    views = [view("a", {"fleet/1": farther} if farther else {}), view("b", {"fleet/1": nearer})]
    decision = chosen(route(target=ADAPTER), fleet(*views))
    assert (decision.replica_id, decision.reason) == ("b", "adapter")


def test_measured_load_times_of_adapters_are_used() -> None:
    tiers = {"fleet/1": "host"}
    timed = view("a", tiers, adapter_host_seconds=0.2, adapter_cold_seconds=3.0)
    request = route(target=ADAPTER)
    policy = CostPolicy(adapter_weight=2.0, absent_factor=2.0)
    assert policy.costs(request, [timed])[0].adapter == pytest.approx(0.4)
    cold = view("b", {"fleet/1": "disk"}, adapter_cold_seconds=3.0)
    absent = view("c", adapter_cold_seconds=3.0)
    assert [one.adapter for one in policy.costs(request, [cold, absent])] == [6.0, 12.0]


def test_a_prefix_is_worth_more_than_an_adapter_only_if_it_is_long() -> None:
    views = fleet(view("a", {"fleet/1": "device"}), view("b", {"fleet/1": "disk"}))
    short, long = {"b": 50}, {"b": 3000}
    assert chosen(route(4000, short, target=ADAPTER), views).replica_id == "a"
    assert chosen(route(4000, long, target=ADAPTER), views).replica_id == "b"


def test_only_replicas_that_have_it_serve_what_is_not_in_the_registry() -> None:
    own = Target(name="own", wire_name="own", digest="d2")
    snapshot = fleet(view("a"), view("b", {"own": "disk"}, num_queued_prefill_tokens=9000))
    decision = chosen(route(target=own), snapshot)
    assert (decision.replica_id, decision.reason) == ("b", "only")
    assert Router().choose(route(target=own), fleet(view("a"))) is None


def test_a_replica_that_could_not_load_the_adapter_is_asked_last() -> None:
    broken = AdapterPlace(name="fleet/1", digest="d1", error="no room")
    bad = replace(view("a"), places={"fleet/1": broken})
    sound = view("b", num_queued_prefill_tokens=9000)
    assert chosen(route(target=ADAPTER), fleet(bad, sound)).replica_id == "b"
    assert chosen(route(target=ADAPTER), fleet(bad)).replica_id == "a"


def test_a_base_goes_only_to_replicas_that_serve_it() -> None:
    snapshot = fleet(view("a", models=["other"]), view("b", models=["m", "alias"]))
    assert chosen(route(), snapshot).replica_id == "b"


def test_one_that_came_back_gets_little_at_first() -> None:
    snapshot = fleet(view("a", warmth=0.1), view("b", num_queued_prefill_tokens=1000))
    assert chosen(route(1000), snapshot).replica_id == "b"
    counts = Counter(
        chosen(route(100), fleet(view("a", warmth=0.1), view("b", num_running=n))).replica_id
        for n in range(0, 500, 10)
    )
    assert counts["a"] > 0


def test_ties_are_spread_and_the_less_busy_of_two_wins() -> None:
    router = Router(seed=3)
    views = fleet(*(view(name) for name in "abcd"))
    counts = Counter(router.choose(route(), views).replica_id for _ in range(400))  # type: ignore[union-attr]
    assert set(counts) == set("abcd")
    assert max(counts.values()) < 160


def test_round_robin_takes_turns_and_passes_those_that_are_out() -> None:
    router, views = Router(policy_named("round-robin")), [view(name) for name in "abc"]
    order = [router.choose(route(), fleet(*views)) for _ in range(4)]
    assert [one.replica_id for one in order if one] == ["a", "b", "c", "a"]
    out = fleet(views[0], replace(views[1], out_reason="lease"), views[2])
    order = [router.choose(route(), out) for _ in range(2)]
    assert [one.replica_id for one in order if one] == ["c", "a"]


def test_least_loaded_counts_requests() -> None:
    views = [view("a", num_running=2), view("b", num_waiting=1), view("c", num_running=1)]
    busy = replace(views[2], load=ReplicaLoad(num_requests=1))
    assert chosen(route(), fleet(views[0], views[1], busy), "least-loaded").replica_id == "b"


def test_consistent_hashing_keeps_an_affinity_until_its_replica_is_full() -> None:
    idle = [view(name) for name in "abcd"]
    request = route(affinity=b"tenant 7")
    home = chosen(request, fleet(*idle), "consistent-hash")
    assert home.reason == "hash"
    full = [
        replace(one, load=ReplicaLoad(num_requests=10))
        if one.replica_id == home.replica_id
        else one
        for one in idle
    ]
    other = chosen(request, fleet(*full), "consistent-hash")
    assert other.replica_id != home.replica_id
    assert other.reason == "load"
    # One that goes moves only what it had.
    gone = next(one for one in idle if one.replica_id not in (home.replica_id, other.replica_id))
    rest = fleet(*(one for one in idle if one is not gone))
    assert chosen(request, rest, "consistent-hash").replica_id == home.replica_id


@pytest.mark.parametrize("policy", POLICIES)
def test_an_explanation_has_every_candidate(policy: str) -> None:
    snapshot = fleet(view("a"), view("b", num_running=9), view("c", out_reason="lease"))
    router = Router(policy_named(policy), seed=1)
    plain = router.choose(route(1000, {"b": 10}), snapshot)
    explained = router.choose(route(1000, {"b": 10}), snapshot, explain=True)
    assert plain is not None
    assert explained is not None
    assert plain.candidates == ()
    by_id = {one.replica_id: one for one in explained.candidates}
    assert set(by_id) == {"a", "b"}
    assert by_id["b"].num_matched_tokens == 10
    assert by_id["b"].cost > by_id["a"].cost


def test_an_unknown_policy_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="policy: 'best' is none of cost, round-robin"):
        policy_named("best")


counts = st.integers(0, 50)
replicas = st.builds(
    lambda name, running, queued, rate, tier, reason, load: replace(
        view(
            name,
            {"fleet/1": tier} if tier else {},
            num_running=running,
            num_queued_prefill_tokens=queued,
            prefill_tokens_per_second=rate,
        ),
        out_reason=reason,
        load=ReplicaLoad(num_requests=load, num_prefill_tokens=100 * load),
    ),
    st.sampled_from("abcdefgh"),
    counts,
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1.0, 5000.0]),
    st.sampled_from([None, "device", "host", "disk"]),
    st.sampled_from([None, None, "lease", "draining"]),
    counts,
)
snapshots = st.lists(replicas, max_size=8, unique_by=lambda one: one.replica_id).map(
    lambda views: fleet(*views)
)


@given(
    snapshots,
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from([BASE, ADAPTER, replace(ADAPTER, in_registry=False)]),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5000)),
    st.frozensets(st.sampled_from("abcdefgh"), max_size=4),
    st.binary(max_size=4),
)
def test_every_policy_chooses_one_that_may_or_says_that_there_is_none(
    snapshot: FleetSnapshot,
    policy: str,
    target: Target,
    matched: dict[str, int],
    excluded: frozenset[str],
    affinity: bytes,
) -> None:
    request = route(1000, matched, target=target, excluded=excluded, affinity=affinity)
    allowed = {
        one.replica_id
        for one in snapshot.replicas
        if one.is_up and one.replica_id not in excluded
        if target.in_registry or target.digest is None or "fleet/1" in one.places
    }
    decision = Router(policy_named(policy), seed=5).choose(request, snapshot)
    assert (decision is None) == (not allowed)
    if decision is not None:
        assert decision.replica_id in allowed
        assert (decision.reason == "only") == (len(allowed) == 1)
        assert decision.num_matched_tokens + decision.num_uncached_tokens == 1000
        assert decision == Router(policy_named(policy), seed=5).choose(request, snapshot)


@given(snapshots, st.randoms(use_true_random=False))
def test_more_of_anything_bad_never_makes_a_replica_cheaper(
    snapshot: FleetSnapshot, generator: random.Random
) -> None:
    policy = CostPolicy()
    for one in snapshot.replicas:
        worse = replace(one, warmth=generator.uniform(0.1, 1.0))
        matched = generator.randrange(1000)
        before = policy.costs(route(1000, {one.replica_id: matched}), [one])[0].total
        assert policy.costs(route(1000, {one.replica_id: matched}), [worse])[0].total >= before
        assert policy.costs(route(1000, {}), [one])[0].total >= before
        assert before >= 0
