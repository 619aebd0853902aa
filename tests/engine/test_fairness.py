"""Who gets how much of a busy machine, and how soon: the real scheduler on a simulated one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fairness_simulation import Client, Machine, Simulation, percentile

from branchline.lora.traits import AdapterTraits

MACHINE = Machine()
FLOOD = Client(tenant="flood", concurrency=200)
WARM_UP, END = 8.0, 40.0
NINE = [f"tenant {i}" for i in range(9)]
LIMIT = 20_000


def simulate(machine, clients, seconds=END):
    simulation = Simulation(machine, clients)
    simulation.run(seconds)
    return simulation


def throughput(simulation, tenant=None):
    """Tokens a second, of one tenant or of all."""
    tokens = simulation.tokens_by_tenant(WARM_UP, END)
    return (sum(tokens.values()) if tenant is None else tokens[tenant]) / (END - WARM_UP)


# -- one floods, nine behave -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def nine():
    """Nine tenants that send seven tenths of what a tenth of the machine can do."""
    capacity = throughput(simulate(MACHINE, [FLOOD]))
    rate = 0.7 * capacity / 10 / 460  # tokens of a request, on average
    return [Client(tenant=tenant, rate=rate) for tenant in NINE]


@pytest.fixture(scope="module")
def alone(nine):
    return simulate(MACHINE, nine)


@pytest.fixture(scope="module")
def flooded(nine):
    return simulate(MACHINE, [*nine, FLOOD])


@pytest.fixture(scope="module")
def flooded_fcfs(nine):
    return simulate(replace(MACHINE, policy="fcfs"), [*nine, FLOOD])


def p99_ttft(simulation):
    ttfts = [ttft for tenant in NINE for ttft in simulation.ttfts(tenant, WARM_UP, END - 5)]
    assert len(ttfts) > 400
    return percentile(sorted(ttfts), 0.99)


def test_nine_that_behave_keep_their_throughput(alone, flooded):
    for tenant in NINE:
        assert throughput(flooded, tenant) >= 0.9 * throughput(alone, tenant)
    assert throughput(flooded, "flood") > 3 * throughput(flooded, NINE[0]), "it gets what is left"


def test_nine_that_behave_keep_their_time_to_first_token(alone, flooded, flooded_fcfs):
    assert p99_ttft(flooded) <= 2 * p99_ttft(alone)
    assert p99_ttft(flooded_fcfs) > 50 * p99_ttft(alone), "the flood is no flood"


def test_fairness_costs_little_throughput(flooded, flooded_fcfs):
    assert throughput(flooded) >= 0.95 * throughput(flooded_fcfs)


def test_it_costs_little_where_memory_is_short(nine):
    short = replace(MACHINE, num_blocks=800)
    fair, fcfs = (
        simulate(replace(short, policy=policy), [*nine, FLOOD]) for policy in ("fair", "fcfs")
    )
    assert fair.scheduler.num_preemptions > 100
    assert throughput(fair) >= 0.95 * throughput(fcfs)


def test_nine_that_want_more_than_their_share_get_it_beside_a_flood():
    clients = [Client(tenant=tenant, concurrency=10) for tenant in NINE]
    simulation = simulate(MACHINE, [*clients, FLOOD])
    for tenant in NINE:
        assert throughput(simulation, tenant) >= 0.9 * throughput(simulation) / 10


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_blocks", "tolerance"), [(4096, 0.05), (800, 0.1)])
def test_tokens_are_shared_by_weight(num_blocks, tolerance):
    """Less exactly where blocks run out all the time: what is computed again counts as well."""
    weights = {"one": 1.0, "two": 2.0, "four": 4.0}
    clients = [
        Client(tenant=tenant, concurrency=40, weight=weight) for tenant, weight in weights.items()
    ]
    simulation = simulate(replace(MACHINE, num_blocks=num_blocks), clients)
    for tenant, weight in weights.items():
        share = throughput(simulation, tenant) / throughput(simulation)
        assert share == pytest.approx(weight / 7, rel=tolerance)


def test_tenants_with_enough_to_do_leave_each_other_their_seats():
    clients = [Client(tenant=tenant, concurrency=40) for tenant in NINE]
    simulation = simulate(MACHINE, clients)
    assert simulation.scheduler.num_preemptions < len(simulation.records) / 100


def test_tokens_are_shared_by_weight_whatever_their_kind():
    """One sends long prompts, the other wants long answers: what is even is the cost."""
    readers = Client(tenant="reads", concurrency=60, prompt=(800, 1600), output=(1, 8))
    writers = Client(tenant="writes", concurrency=60, prompt=(10, 60), output=(100, 400))
    simulation = Simulation(MACHINE, [readers, writers])
    simulation.run(WARM_UP)
    before = dict(simulation.cost)
    simulation.run(END)
    cost = {tenant: simulation.cost[tenant] - before[tenant] for tenant in before}
    assert cost["reads"] / cost["writes"] == pytest.approx(1, rel=0.05)


# -- aging ---------------------------------------------------------------------------------------


def wait(machine, rival, patient):
    """How one request fares that comes when a flood of others is there."""
    simulation = Simulation(machine, [rival, replace(patient, count=1, concurrency=1, start=5)])
    simulation.run(200, lambda simulation: any(r.started for r in simulation.watched))
    [record] = simulation.watched
    assert record.started is not None
    return record


def seats_worth(machine, rival):
    """What those that have a seat may still cost, and one step that finds the limit reached."""
    return machine.max_num_seqs * (rival.prompt[1] + 2 * rival.output[1]) + (
        machine.max_num_batched_tokens
    )


RIVAL = Client(tenant="rival", concurrency=100)
ADAPTERS = {
    "digest-a": AdapterTraits(rank=16, num_bytes=1 << 20),
    "digest-b": AdapterTraits(rank=16, num_bytes=1 << 20),
}
CASES = {
    "low priority": (MACHINE, RIVAL, replace(RIVAL, priority=9)),
    "needs most blocks": (
        replace(MACHINE, num_blocks=1100),
        RIVAL,
        Client(tenant="large", prompt=(16000, 16000)),
    ),
    "needs most blocks, same tenant": (
        replace(MACHINE, num_blocks=1100),
        RIVAL,
        replace(RIVAL, prompt=(16000, 16000)),
    ),
    "adapter over the rank budget": (
        replace(MACHINE, adapters=ADAPTERS, max_step_rank=16),
        replace(RIVAL, adapter="digest-a"),
        Client(tenant="other", adapter="digest-b"),
    ),
    "adapter over the rank budget, same tenant": (
        replace(MACHINE, adapters=ADAPTERS, max_step_rank=16),
        replace(RIVAL, adapter="digest-a"),
        replace(RIVAL, adapter="digest-b"),
    ),
}


@pytest.mark.parametrize("policy", ["fair", "fcfs"])
@pytest.mark.parametrize("name", CASES)
def test_no_request_is_overtaken_without_bound(name, policy):
    """By the limit, and by what those that have a seat still cost."""
    machine, rival, patient = CASES[name]
    machine = replace(machine, policy=policy, max_overtake_cost=LIMIT)
    record, bound = wait(machine, rival, patient), LIMIT + seats_worth(machine, rival)
    if policy == "fair" and patient.tenant != rival.tenant:  # its turn comes at once
        assert LIMIT / 2 < record.waited_for <= bound
    else:
        assert LIMIT / 2 < record.overtaken <= bound


def test_without_aging_low_priority_would_wait_for_ever():
    machine, rival, patient = CASES["low priority"]
    machine = replace(machine, max_overtake_cost=10**9)
    simulation = Simulation(machine, [rival, replace(patient, count=1, concurrency=1)])
    simulation.run(30)
    [record] = simulation.watched
    assert record.started is None
    assert record.overtaken > 10 * LIMIT
