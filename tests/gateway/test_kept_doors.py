"""Who is asked for what is kept: with a Redis one replica, without one each of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest
from gateway_house import House, gateway_house
from mock_replica import Fault

from branchline.gateway import kept_api
from branchline.gateway.adapters import names
from branchline.gateway.estimates import TokenEstimates
from branchline.gateway.fleet.kept_picking import FoundItems
from branchline.gateway.fleet.kept_responses import KeptResponse
from branchline.gateway.kept_api import USAGE_LABEL

PATH = "/v1/responses"
NOT_KEPT = "previous_response_not_found"
AWAY = "response_store_unavailable"


class NothingKept:
    """Stands in for a Redis without responses."""

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        return None

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        return None


@pytest.fixture
async def shared() -> AsyncIterator[House]:
    async with gateway_house(3, kept=NothingKept()) as house:
        yield house


@pytest.fixture
async def apart() -> AsyncIterator[House]:
    async with gateway_house(3) as house:
        yield house


async def go_on(house: House, **fields: Any) -> tuple[int, str | None]:
    body = {"model": "base", "input": "and?", "previous_response_id": "resp_9", **fields}
    async with house.post(PATH, json=body) as response:
        return response.status, ((await response.json()).get("error") or {}).get("code")


def num_asked(house: House) -> int:
    return sum(len(replica.bodies) for replica in house.replicas)


async def test_with_redis_one_replica_says_that_it_is_not_kept(shared: House) -> None:
    assert await go_on(shared) == (400, NOT_KEPT)
    assert num_asked(shared) == 1
    assert shared.last_log()["retries"] == 0


async def test_without_redis_all_are_asked(apart: House) -> None:
    assert await go_on(apart) == (400, NOT_KEPT)
    assert num_asked(apart) == 3


async def test_who_cannot_ask_its_redis_has_not_the_last_word(shared: House) -> None:
    for replica in shared.replicas[:2]:
        replica.has_no_redis = True
    for _ in range(3):  # in turn each one is the first
        assert await go_on(shared) == (400, NOT_KEPT)
    shared.replicas[2].has_no_redis = True
    assert await go_on(shared) == (503, AWAY)


async def test_items_that_others_may_keep(apart: House, shared: House) -> None:
    for house, num in ((apart, 3), (shared, 1)):
        for replica in house.replicas:
            replica.always = Fault("status", status=400, code="item_not_found")
        item = {"type": "item_reference", "id": "msg_1"}
        assert await go_on(house, input=[item], previous_response_id=None) == (
            400,
            "item_not_found",
        )
        assert num_asked(house) == num


async def test_other_refusals_are_the_last_word_everywhere(apart: House) -> None:
    for replica in apart.replicas:
        replica.always = Fault("status", status=400, code="unknown_parameter")
    assert await go_on(apart) == (400, "unknown_parameter")
    assert num_asked(apart) == 1


async def tell(house: House, method: str = "GET") -> tuple[int, str]:
    async with house.session.request(method, f"{house.url}{PATH}/resp_9") as response:
        if response.status == 503:
            assert response.headers["retry-after"] == "1"
        return response.status, (await response.json())["error"]["code"]


def num_unknown(house: House) -> int:
    return sum(replica.num_unknown for replica in house.replicas)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_one_word_of_a_fleets_redis_is_enough(
    shared: House, apart: House, method: str
) -> None:
    assert await tell(shared, method) == (404, "response_not_found")
    assert num_unknown(shared) == 1
    assert await tell(apart, method) == (404, "response_not_found")
    assert num_unknown(apart) == 3


async def test_a_503_of_one_is_told_where_none_knows_better(shared: House) -> None:
    for replica in shared.replicas[:2]:
        replica.has_no_redis = True
    for _ in range(8):
        assert await tell(shared) == (404, "response_not_found")
    shared.replicas[2].has_no_redis = True
    assert await tell(shared) == (503, AWAY)


async def test_they_count_under_no_models_name(shared: House) -> None:
    await tell(shared)
    assert shared.limiter.labels == [USAGE_LABEL]
    assert not re.match(names._NAME, USAGE_LABEL)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("num_bytes", [0, 10])
async def test_what_was_deleted_by_a_replica_that_is_lost_is_deleted(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool, num_bytes: int
) -> None:
    monkeypatch.setattr(kept_api.random, "shuffle", lambda replicas: None)
    async with gateway_house(3, kept=NothingKept() if is_shared else None) as house:
        lost = house.replicas[0]
        lost.kept["resp_9"], lost.cuts_kept_after = "default", num_bytes
        async with house.session.delete(f"{house.url}{PATH}/resp_9?x=1") as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            told = await response.json()
        assert told == {"id": "resp_9", "object": "response", "deleted": True}
        assert num_unknown(house) == (1 if is_shared else 2)
        assert await tell(house) == (404, "response_not_found"), "only deletes can have come true"
        for replica in house.replicas[1:]:
            replica.has_no_redis = True
        assert await tell(house, "DELETE") == (503, AWAY)


@pytest.mark.parametrize("house_of", [None, NothingKept()])
async def test_what_is_read_alone_is_not_learnt_from(
    monkeypatch: pytest.MonkeyPatch, house_of: NothingKept | None
) -> None:
    learnt: list[object] = []
    monkeypatch.setattr(TokenEstimates, "learn", lambda *given: learnt.append(given))
    async with gateway_house(kept=house_of) as house:
        house.replicas[0].kept["resp_9"] = house.replicas[1].kept["resp_9"] = "default"
        assert await go_on(house) == (200, None)
        for item in ({"id": "msg_1"}, {"type": None, "id": "msg_1"}):
            assert await go_on(house, input=[item], previous_response_id=None) == (200, None)
        assert not learnt
        assert await go_on(house, previous_response_id=None) == (200, None)
    assert len(learnt) == 1
