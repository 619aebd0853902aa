"""Fewer slots than adapters: who comes in, who gives way, and that nobody meets wrong weights."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
import torch

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.errors import AdapterError
from branchline.lora.layers import StepLora, project
from branchline.lora.mapping import build_mapping
from branchline.lora.slots import AdapterSlots, SlotLease
from branchline.tests.support.lora_reference import dense_project
from branchline.tests.support.residency_house import DIGESTS, SHAPES, House

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DEADLINE = 60.0


def test_a_wanted_adapter_is_ready_once_it_is_copied() -> None:
    house = House(2)
    assert house.residency.advance(["a"]) == []
    assert house.states() == {"a": "loading"}
    assert house.residency.advance(["a"]) == [], "it is not started twice"
    assert len(house.copies.jobs) == house.residency.num_loading == 1
    assert house.slots.acquire("a") is None
    house.copies.run()
    assert house.slots.acquire("a") is None, "the loop has not heard of it yet"
    assert house.residency.advance(["a"]) == ["a"]
    house.acquire("a")
    house.check()
    assert (house.residency.num_loads, house.residency.num_loading) == (1, 0)


def test_loads_start_in_the_order_wanted_while_slots_are_free() -> None:
    house = House(3)
    house.residency.advance(["e", "a", "e", "d", "b"])
    assert house.states() == dict.fromkeys("ade", "loading")
    house.copies.run(3)
    assert house.residency.advance([]) == ["e", "a", "d"]
    house.check()


def test_the_least_recently_used_gives_way() -> None:
    house = House(3)
    house.load("abc")
    house.acquire("a").release()
    house.residency.advance(["d"])
    assert house.states() == {"a": "ready", "c": "ready", "d": "loading"}
    house.residency.advance(["d", "e"])
    assert house.states() == {"a": "ready", "d": "loading", "e": "loading"}
    house.check()


def test_a_leased_adapter_stays_and_so_do_those_that_load() -> None:
    house = House(2)
    house.load("a")
    lease = house.acquire("a")
    house.residency.advance(["b"])
    house.residency.advance(["c", "d"])
    assert house.states() == {"a": "ready", "b": "loading"}
    house.copies.run()
    assert house.residency.advance(["c", "d"]) == ["b"]
    assert house.states() == {"a": "ready", "c": "loading"}, "b was wanted by nobody any more"
    lease.release()
    house.residency.advance(["c", "d"])
    assert house.states() == {"c": "loading", "d": "loading"}
    house.check()


def test_what_is_wanted_sooner_stays_and_what_is_wanted_last_goes_first() -> None:
    house = House(3)
    house.load("abc")
    for digest in "abc":
        house.acquire(digest).release()
    house.residency.advance(["b", "d", "a", "c"])
    assert house.states() == {"a": "ready", "b": "ready", "d": "loading"}
    house.residency.advance(["b", "d", "e", "a", "f"])
    assert house.states() == {"b": "ready", "d": "loading", "e": "loading"}
    house.residency.advance(["b", "d", "e", "a", "f"])
    assert house.states() == {"b": "ready", "d": "loading", "e": "loading"}
    house.check()


def test_unwanted_adapters_give_way_before_wanted_ones() -> None:
    house = House(3)
    house.load("abc")
    house.acquire("c").release()
    house.residency.advance(["d", "d", "a", "b"])
    assert house.states() == {"a": "ready", "b": "ready", "d": "loading"}


def test_what_was_loaded_and_not_used_gives_way_only_to_what_is_wanted_first() -> None:
    """Else those whose requests wait for something else too chase each other off the device."""
    house = House(2)
    house.load("ab")
    house.acquire("a").release()
    house.residency.advance(["a", "c", "b"])
    assert house.states() == {"a": "ready", "b": "ready"}
    house.residency.advance(["c", "a", "b"])
    assert house.states() == {"a": "ready", "c": "loading"}


def test_two_that_want_one_slot_take_turns() -> None:
    """What has become ready is not taken away before its request could lease it."""
    house = House(1)
    house.residency.advance(["a", "b"])
    house.copies.run()
    assert house.residency.advance(["b", "a"]) == ["a"]
    assert house.states() == {"a": "ready"}
    house.acquire("a").release()
    house.residency.advance(["b", "a"])
    assert house.states() == {"b": "loading"}
    house.check()


def test_a_failed_load_is_told_once_and_may_be_tried_again() -> None:
    house = House(2)
    house.residency.advance(["a", "b"])
    house.copies.fail()
    house.copies.run()
    assert house.residency.advance(["a"]) == ["b"]
    assert house.states() == {"b": "ready"}, "not again before it was told"
    house.check()
    assert house.residency.failures() == {"a": "OSError: the copy broke off"}
    assert house.residency.failures() == {}
    house.residency.advance(["a"])
    house.copies.run()
    assert house.residency.advance([]) == ["a"]
    house.check()
    assert house.residency.num_loads == 2


def test_an_unknown_adapter_is_a_failure_and_no_exception() -> None:
    house = House(1)
    house.load("a")
    house.residency.advance(["nobody", "a"])
    assert house.states() == {"a": "ready"}, "nothing gives way to what can't come"
    assert house.residency.failures() == {"nobody": "nobody is not registered"}
    house.residency.advance(["nobody", "b"])
    assert house.states() == {"b": "loading"}


def test_an_adapter_that_is_too_large_for_the_bank_is_refused_and_nothing_is_lost() -> None:
    house = House(2)
    header = house.tier._headers["c"]
    house.bank = AdapterBank(SHAPES, 2, 1, torch.float32, "cpu", 2)
    house.slots = AdapterSlots(2)
    house.wire()
    with pytest.raises(AdapterError, match=r"needs 4 pages of 16 ranks for qkv, at most 1 can be"):
        house.residency.register("c", header)
    assert "c" not in house.slots
    house.residency.register("a", house.tier._headers["a"])
    house.residency.advance(["a"])
    assert house.slots.state("a") == "loading"
    house.residency.check()


def test_closing_fails_what_has_not_begun() -> None:
    house = House(2)
    house.residency.advance(["a"])
    house.residency.close()
    assert house.residency.advance([]) == []
    assert house.residency.failures() == {"a": "the engine is stopping"}
    house.check()


@pytest.mark.parametrize("damage", ["slot", "pages", "load"])
def test_check_finds(damage: str) -> None:
    house = House(2)
    house.load("a")
    house.residency.advance(["b"])
    house.residency.check()
    if damage == "slot":
        house.slots.drop("a")
    elif damage == "pages":
        house.bank.unload(0)
        house.bank.load(0, house.host["c"])
    else:
        house.slots.finish_load("b")
    with pytest.raises(AssertionError):
        house.residency.check()


def test_a_step_beside_a_load_reads_nothing_of_it() -> None:
    """Tiles may span pages that are being written; whatever is in those reaches no row."""
    house = House(6)
    for slot in range(6):
        house.bank.load(slot, house.host["a"])
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(8, 8)

    def step() -> torch.Tensor:
        mapping = build_mapping([0, 1, 3, 4, 5], [1] * 5, house.bank)
        assert mapping is not None
        (tiles,) = mapping.groups["o"].tiles
        assert tiles.pages.of(house.bank.pools["o"].a_layers[0]).shape[0] == 6, "spans slot 2"
        return project(x, weight, None, 1, "o", StepLora(house.bank, mapping))

    before = step()
    for pool in house.bank.pools.values():
        pool.a[:, list(pool.pages(2))] = float("nan")
        pool.b[:, list(pool.pages(2))] = float("nan")
    assert before.abs().min() > 0
    assert torch.equal(step(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_six_adapters_on_two_slots_give_what_they_should(device: str, dtype: torch.dtype) -> None:
    """Steps of leased rows while a thread copies the next adapters in, and nobody starves."""
    copies = ops.CopyThread(torch.device(device), "test")
    house = House(2, dtype, device, copies)
    rng = random.Random(5)
    waiting = rng.choices(DIGESTS, [6, 5, 4, 3, 2, 1], k=80)
    running: list[SlotLease] = []
    started = time.monotonic()
    while waiting or running:
        assert time.monotonic() - started < DEADLINE, f"{waiting} still wait"
        house.residency.advance(waiting)
        for digest in waiting[:3]:
            lease = house.slots.acquire(digest)
            if lease is not None:
                running.append(lease)
                waiting.remove(digest)
        if running:
            check_step(house, running, device, dtype)
        for lease in [lease for lease in running if rng.random() < 0.4]:
            running.remove(lease)
            lease.release()
        house.residency.check()
    assert house.residency.failures() == {}
    assert house.residency.num_loads >= len(DIGESTS)
    house.residency.close()


def check_step(house: House, leases: Sequence[SlotLease], device: str, dtype: torch.dtype) -> None:
    mapping = build_mapping([lease.slot for lease in leases], [1] * len(leases), house.bank)
    assert mapping is not None
    lora = StepLora(house.bank, mapping)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for name, shape in SHAPES.groups.items():
        generator = torch.Generator().manual_seed(len(leases))
        x = torch.randn(len(leases), shape.in_features, generator=generator).to(dtype)
        weight = torch.randn(shape.out_features, shape.in_features, generator=generator).to(dtype)
        got = project(x.to(device), weight.to(device), None, 1, name, lora).cpu().double()
        carried = [house.host[lease.digest].groups.get(name) for lease in leases]
        expected = dense_project(x, weight, None, carried, 1, shape.slice_sizes)
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
