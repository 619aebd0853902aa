"""The bank: pages are conserved, adapters keep theirs, and nothing is padded to a maximum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.bank import NO_PAGE, AdapterBank
from branchline.lora.errors import AdapterError
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import AdapterWeights, pages_of_rank
from branchline.tests.support.lora_reference import random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=2, hidden_size=8, intermediate_size=12, num_heads=2, num_kv_heads=1, head_dim=4
)
GROUPS = tuple(SHAPES.groups)
NUM_SLOTS, NUM_PAGES = 5, 7


def make_weights(ranks: dict[str, int], seed: int = 0) -> AdapterWeights:
    return random_weights(SHAPES, ranks, torch.Generator().manual_seed(seed))


def make_bank(num_pages: int | dict[str, int] = NUM_PAGES) -> AdapterBank:
    return AdapterBank(SHAPES, 2, num_pages, torch.float32, "cpu", NUM_SLOTS)


def test_an_adapter_takes_pages_only_for_what_it_has() -> None:
    bank = make_bank()
    bank.load(0, make_weights({"qkv": 8, "o": 8}))
    bank.load(1, make_weights(dict.fromkeys(GROUPS, 64)))
    free = {name: pool.num_free for name, pool in bank.pools.items()}
    assert free == {"qkv": 2, "o": 2, "gate_up": 3, "down": 3}
    bank.unload(1)
    assert {pool.num_free for pool in bank.pools.values()} == {6, 7}
    bank.check()


def test_page_counts_by_group() -> None:
    bank = make_bank({"qkv": 3, "down": 1})
    assert [bank.pools[name].a.shape[1] for name in GROUPS] == [3, 0, 0, 1]
    bank.load(0, make_weights({"qkv": 48, "down": 16}))
    with pytest.raises(AdapterError, match="o: needs 1 pages of 16 ranks, 0 are free"):
        bank.load(1, make_weights({"o": 1}))
    bank.check()


def test_a_load_that_does_not_fit_takes_nothing() -> None:
    bank = make_bank()
    bank.load(0, make_weights({"down": 100}))
    before = {name: pool.num_free for name, pool in bank.pools.items()}
    with pytest.raises(AdapterError, match="down: needs 1 pages"):
        bank.load(1, make_weights(dict.fromkeys(GROUPS, 4)))
    assert {name: pool.num_free for name, pool in bank.pools.items()} == before
    bank.check()
    bank.unload(0)
    bank.load(1, make_weights(dict.fromkeys(GROUPS, 4)))
    bank.check()


def test_values_too_large_for_the_dtype_are_refused() -> None:
    bank = AdapterBank(SHAPES, 2, NUM_PAGES, torch.float16, "cpu", NUM_SLOTS)
    weights = make_weights({"o": 16})
    weights.groups["o"].b[1, 0, 3, 2] = 7e4
    with pytest.raises(AdapterError, match=r"o: holds 7e\+04, too large for torch.float16"):
        bank.load(0, weights)
    bank.check()
    assert bank.pools["o"].num_free == NUM_PAGES


def test_the_pools_never_move() -> None:
    bank = make_bank()
    before = {name: (p.a.data_ptr(), p.b.data_ptr()) for name, p in bank.pools.items()}
    bank.load(2, make_weights(dict.fromkeys(GROUPS, 40)))
    assert bank.pools["o"].page_table[2].tolist() == [0, 1, 2, *[NO_PAGE] * 4]
    bank.unload(2)
    assert (bank.pools["o"].page_table == NO_PAGE).all()
    after = {name: (p.a.data_ptr(), p.b.data_ptr()) for name, p in bank.pools.items()}
    assert after == before


def test_pages_lie_side_by_side_where_they_can() -> None:
    bank = make_bank()
    for slot in range(3):
        bank.load(slot, make_weights({"o": 16}))
    bank.unload(1)
    bank.load(3, make_weights({"o": 48}))
    assert bank.pools["o"].pages(3) == (3, 4, 5)
    bank.load(4, make_weights({"o": 32}))
    assert bank.pools["o"].pages(4) == (1, 6)


@pytest.mark.parametrize("damage", ["lost page", "page held twice", "table", "slot"])
def test_check_finds(damage: str) -> None:
    bank = make_bank()
    bank.load(0, make_weights({"o": 20}))
    pool = bank.pools["o"]
    if damage == "lost page":
        pool._free.pop()
    elif damage == "page held twice":
        pool._free.add(0)
    elif damage == "table":
        pool.page_table[0, 0] = 5
    else:
        bank._loaded.clear()
    with pytest.raises(AssertionError):
        bank.check()


ranks = st.dictionaries(st.sampled_from(GROUPS), st.sampled_from([1, 8, 16, 17, 33, 64]))


class BankMachine(RuleBasedStateMachine):
    """Loads and unloads in any order: every slot reads its own bytes, every page has one owner."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = make_bank()
        self.loaded: dict[int, AdapterWeights] = {}
        self.count = 0

    @precondition(lambda self: len(self.loaded) < NUM_SLOTS)
    @rule(wanted=ranks)
    def load(self, wanted: dict[str, int]) -> None:
        self.count += 1
        weights = make_weights(wanted, self.count)
        slot = min(set(range(NUM_SLOTS)) - self.loaded.keys())
        fits = all(
            pages_of_rank(rank) <= self.bank.pools[name].num_free for name, rank in wanted.items()
        )
        if fits:
            self.bank.load(slot, weights)
            self.loaded[slot] = weights
        else:
            with pytest.raises(AdapterError):
                self.bank.load(slot, weights)

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.loaded)))
        self.bank.unload(slot)
        del self.loaded[slot]

    @invariant()
    def conserved(self) -> None:
        self.bank.check()
        for name, pool in self.bank.pools.items():
            held = sum(w.num_pages.get(name, 0) for w in self.loaded.values())
            assert pool.num_free + held == NUM_PAGES
            for slot, weights in self.loaded.items():
                pages = list(pool.pages(slot))
                assert len(pages) == weights.num_pages.get(name, 0)
                if pages:
                    assert torch.equal(pool.a[:, pages], weights.groups[name].a)
                    assert torch.equal(pool.b[:, pages], weights.groups[name].b)

    def teardown(self) -> None:
        for slot in list(self.loaded):
            self.bank.unload(slot)
        assert {pool.num_free for pool in self.bank.pools.values()} == {NUM_PAGES}


TestBankMachine = BankMachine.TestCase
TestBankMachine.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
