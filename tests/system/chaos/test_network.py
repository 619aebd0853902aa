"""A network that drops what is sent, or cuts: before the first byte and after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from chaos_cases import ADAPTER, BASE, SERVE_FLAGS, ChaosModels, chaos_cases
from dropping_proxy import DroppingProxy, dropping_proxy
from gateway_process import Fleet, fleet
from stream_load import Case, streaming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass(frozen=True)
class FarHouse:
    """A fleet of which one replica is reached over a bad network."""

    house: Fleet
    proxy: DroppingProxy


@pytest.fixture(scope="module")
def far(chaos_models: ChaosModels) -> Iterator[FarHouse]:
    lora, flags = chaos_models.lora, SERVE_FLAGS
    with (
        dropping_proxy() as proxy,
        fleet(chaos_models.model, replicas=1, lora=lora, serve_flags=flags) as house,
    ):
        server = house.start_replica("far", "--advertise-url", proxy.url)
        server.wait_until_ready(120)
        proxy.target = ("127.0.0.1", int(server.base_url.rsplit(":", 1)[1]))
        house.wait_until_up(["replica-1", "far"])
        yield FarHouse(house, proxy)


@pytest.fixture(scope="module")
def far_cases(far: FarHouse) -> list[Case]:
    return chaos_cases(far.house.url, (BASE, ADAPTER))


def test_connections_are_cut(far: FarHouse, far_cases: list[Case]) -> None:
    with streaming([far.house.url], far_cases) as load:
        for _ in range(5):
            load.wait_for_more(5)
            far.proxy.cut()
        far.house.wait_until_up(["replica-1", "far"])
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=25)


def test_what_is_sent_vanishes(far: FarHouse, far_cases: list[Case]) -> None:
    """Streams under way fall silent, and new requests get no first byte."""
    with streaming([far.house.url], far_cases) as load:
        for _ in range(2):
            load.wait_for_more(6)
            before = far.proxy.num_connections
            far.proxy.dropping = True
            load.wait_for_more(8)
            far.proxy.cut()
            far.proxy.dropping = False
            far.house.wait_until_up(["replica-1", "far"])
            assert before > 0
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=28)
