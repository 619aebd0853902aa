"""Any order of what can happen to a prefix cache with a host tier."""

from __future__ import annotations

from cache_house import BASE, LORA, CacheHouse
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

SIZE = 2
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=12)
owners = st.sampled_from(["base", "lora", "activated", "other tenant"])


class CacheMachine(RuleBasedStateMachine):
    """In the end all leases are over and all is forgotten, and every block is free again."""

    @initialize(
        num_usable=st.sampled_from([6, 9, 20]),
        num_host_blocks=st.sampled_from([0, 2, 7, 40]),
        num_polls=st.integers(1, 3),
        tenant_share=st.sampled_from([0.3, 1.0]),
    )
    def start(
        self, num_usable: int, num_host_blocks: int, num_polls: int, tenant_share: float
    ) -> None:
        self.house = CacheHouse(num_usable, num_host_blocks, SIZE, num_polls, tenant_share)
        self.prepare()

    def prepare(self) -> None:
        """What a test does with a new house."""

    @rule(tokens=tokens, owner=owners, activation=st.integers(0, 8), tenant=st.sampled_from("ab"))
    def begin(self, tokens: list[int], owner: str, activation: int, tenant: str) -> None:
        house = self.house
        if owner == "base":
            key = house.key(tokens)
        elif owner == "lora":
            key = house.key(tokens, LORA)
        elif owner == "activated":
            own = LORA._replace(activation=activation)
            key = house.key(tokens, own, base=BASE, start=activation)
        else:
            key = house.key(tokens, BASE._replace(tenant=tenant))
        house.begin(tokens, key, tenant)

    @precondition(lambda self: self.house.live)
    @rule(data=st.data(), num_tokens=st.integers(1, 12))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.house.live))
        if sequence.num_computed < len(sequence.tokens):
            self.house.compute(sequence, num_tokens)

    @precondition(lambda self: self.house.live)
    @rule(data=st.data(), tokens=tokens)
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.house.live))
        if sequence.num_computed == len(sequence.tokens) < 24:
            self.house.extend(sequence, tokens)

    @precondition(lambda self: self.house.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.house.end(data.draw(st.sampled_from(self.house.live)))

    @rule(count=st.integers(1, 6))
    def advance(self, count: int) -> None:
        for _ in range(count):
            self.house.cache.advance()

    @rule(num_blocks=st.integers(1, 6))
    def evict(self, num_blocks: int) -> None:
        self.house.cache.blocks.make_room(num_blocks, "nobody")

    @rule()
    def next_copy_fails(self) -> None:
        self.house.copier.fails_next = True

    @rule()
    def reset(self) -> None:
        self.house.cache.blocks.reset()

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "house"):
            self.house.check()

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        house = self.house
        for sequence in list(house.live):
            house.end(sequence)
        house.settle()
        house.check()
        blocks = house.cache.blocks
        assert blocks.num_available == house.cache.pool.num_usable
        assert blocks.num_private == 0
        blocks.reset()
        house.settle()
        assert house.cache.pool.num_free == house.cache.pool.num_usable
        assert blocks.host.num_free == blocks.host.num_blocks
