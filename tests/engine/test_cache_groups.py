"""Sharing groups: whose KV a request may use, and that a group is nobody's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from activated import Served, generate, serve, start, words
from cache_house import CacheHouse
from tiny_adapters import make_adapter

from branchline.engine.cache_types import PrefixTarget
from branchline.engine.intake import Intake
from branchline.engine.loop import EngineLoop
from branchline.engine.pins import Pins
from branchline.engine.types import GenerationRequest, SamplingParams

PROMPT = words(40, 3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(Path(tmp_path_factory.mktemp("groups")), "llama")


@pytest.fixture
def loop(served: Served) -> EngineLoop:
    return start(served, isolate_tenants=True)


def cached(
    loop: EngineLoop,
    tenant: str,
    group: str | None = None,
    salt: str | None = None,
    adapter: str | None = None,
    ending: Sequence[int] = (1,),
) -> int:
    """How much of the prompt such a request finds; afterwards it is there for the next."""
    request = GenerationRequest(
        request_id="r",
        prompt_token_ids=[*PROMPT, *ending],
        params=SamplingParams(temperature=0, seed=0, max_tokens=1),
        adapter=adapter,
        tenant=tenant,
        cache_salt=salt,
        cache_group=group,
    )
    return next(iter(generate(loop, [request]).values())).num_cached_tokens


def test_tenants_of_one_group_share(loop: EngineLoop) -> None:
    assert cached(loop, "acme", "pool") == 0
    assert cached(loop, "beta", "pool") >= 32


def test_without_a_group_nobody_shares(loop: EngineLoop) -> None:
    assert cached(loop, "acme") == 0
    assert cached(loop, "beta") == 0
    assert cached(loop, "acme", "pool") == 0
    assert cached(loop, "acme") >= 32


def test_a_group_is_not_the_tenant_of_that_name(loop: EngineLoop) -> None:
    assert cached(loop, "acme") == 0
    assert cached(loop, "beta", "acme") == 0
    assert cached(loop, "beta", "other") == 0
    assert cached(loop, "gamma", "acme") >= 32


def test_salts_tell_requests_of_a_group_apart(loop: EngineLoop) -> None:
    assert cached(loop, "acme", "pool", "one") == 0
    assert cached(loop, "beta", "pool", "two") == 0
    assert cached(loop, "beta", "pool", "one") >= 32


def test_where_all_share_groups_do_not_matter(served: Served) -> None:
    loop = start(served, isolate_tenants=False)
    assert cached(loop, "acme", "pool") == 0
    assert cached(loop, "beta") >= 32


def test_ten_activated_adapters_of_ten_tenants_share_one_system_prompt(
    tmp_path: Path, served: Served
) -> None:
    invocations = {f"tenant-{number}": [201, 202, 203 + number] for number in range(10)}
    adapters = {
        name: make_adapter(
            served.model, tmp_path / name, rank=8, seed=seed, alora_invocation_tokens=tokens
        )
        for seed, (name, tokens) in enumerate(invocations.items())
    }
    loop = start(replace(served, adapters=adapters), isolate_tenants=True)
    found = {
        name: cached(loop, name, "pool", adapter=name, ending=tokens)
        for name, tokens in invocations.items()
    }
    assert found.pop("tenant-0") == 0
    assert min(found.values()) >= 32
    stranger = "tenant-3"
    assert cached(loop, stranger, adapter=stranger, ending=invocations[stranger]) == 0
    report = loop.report_cache(4)
    [base] = [n for n in report.namespaces if n.cache_group == "pool" and n.adapter is None]
    assert base.tenant is None
    assert base.num_hit_tokens >= 9 * 32


def test_a_groups_prefix_is_pinned_as_the_groups() -> None:
    house = CacheHouse()
    intake = Intake(house.cache, {}, 100, True)
    group = PrefixTarget(prompt_token_ids=list(range(100, 117)), cache_group="pool")
    house.run(group.prompt_token_ids, own=intake.key_of(group).own)
    report = Pins(house.cache, intake, 12, lambda: 0.0).add(group, 10)
    assert (report.num_blocks, report.cache_group, report.tenant) == (4, "pool", None)
