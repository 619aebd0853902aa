"""Whatever is taken in finds room, or fails and says so: nobody waits for what can't come."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.engine.adapters import EngineAdapters
from branchline.engine.errors import RequestError
from branchline.lora.bank import AdapterBank
from branchline.lora.errors import AdapterError
from branchline.lora.formatted import write_formatted
from branchline.lora.host_adapters import HostAdapters
from branchline.lora.shapes import ModuleShapes
from branchline.lora.slots import AdapterSlots
from branchline.lora.weights import AdapterWeights, DenseWeights
from branchline.tests.support.lora_reference import random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=64,
)
DENSE_BYTES, HOST_BYTES, DEADLINE = 32 << 10, 96 << 10, 30.0
# By digest: the rank, and the rows of a saved embedding of 8 features.
SIZES = {"a": (4, 320), "b": (4, 320), "c": (4, 640), "d": (40, 0), "e": (4, 900), "f": (16, 64)}


class Nobody:
    """There are no requests."""

    def num_requests_of(self, adapter: str) -> int:
        return 0


def make_adapters(num_slots: int) -> EngineAdapters:
    device = torch.device("cpu")
    bank = AdapterBank(SHAPES, 1, 4, torch.float32, device, num_slots, DENSE_BYTES)
    return EngineAdapters(bank, AdapterSlots(num_slots), HostAdapters(HOST_BYTES, device))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for digest, (rank, rows) in SIZES.items():
        plain = random_weights(SHAPES, {"qkv": rank}, torch.Generator().manual_seed(rows))
        table = DenseWeights(tables={"embed": torch.randn(rows, 8)}) if rows else None
        write_formatted(folder / digest, AdapterWeights(plain.groups, table), None, {})
    return folder


def settle(adapters: EngineAdapters, wanted: list[str]) -> dict[str, str]:
    """Go on until nothing is under way; why loads failed."""
    failures: dict[str, str] = {}
    started = time.monotonic()
    for _ in range(3):
        failures |= adapters.advance(wanted, Nobody()).failures
        while adapters.residency.num_loading:
            failures |= adapters.advance(wanted, Nobody()).failures
            assert time.monotonic() - started < DEADLINE
    adapters.check()
    return failures


def test_an_adapter_for_which_every_slot_is_pinned_is_refused(files):
    adapters = make_adapters(2)
    for digest in "af":
        adapters.add(digest, str(files / digest))
        adapters.pin(digest, digest, "device")
    with pytest.raises(AdapterError, match="every slot is pinned"):
        adapters.add("d", str(files / "d"))
    assert list(adapters.traits) == ["a", "f"]
    adapters.close()


def test_a_pin_in_the_midst_of_the_arena_fails_what_it_leaves_no_room_for(files):
    adapters = make_adapters(4)
    for digest in "ab":
        adapters.add(digest, str(files / digest))
        settle(adapters, [digest])
    adapters.pin("pin", "b", "device")
    settle(adapters, ["b"])
    adapters.evict("a", "device", Nobody())
    adapters.add("c", str(files / "c"))
    failures = settle(adapters, ["c"])
    assert failures == {"c": "what is pinned leaves no room for it in one piece"}
    assert settle(adapters, ["a"]) == {}
    assert adapters.tier("a") == "device", "others are not held up"
    adapters.close()


def test_nobody_is_evicted_in_vain(files):
    adapters = make_adapters(4)
    for digest in "abf":
        adapters.add(digest, str(files / digest))
        settle(adapters, [digest])
    lease = adapters.slots.acquire("b")
    assert lease is not None
    adapters.add("e", str(files / "e"))
    assert settle(adapters, ["e"]) == {}
    assert [adapters.tier(digest) for digest in "abf"] == ["device"] * 3
    lease.release()
    settle(adapters, ["e"])
    assert adapters.tier("e") == "device"
    adapters.close()


steps = st.lists(
    st.tuples(st.sampled_from(["want", "pin", "unpin", "evict"]), st.sampled_from(list(SIZES))),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(num_slots=st.integers(1, 4), order=st.permutations(list(SIZES)), done=steps)
def test_what_is_taken_in_and_wanted_alone_comes_or_fails(files, num_slots, order, done):
    adapters = make_adapters(num_slots)
    known = []
    for digest in order:
        try:
            adapters.add(digest, str(files / digest))
            known.append(digest)
        except AdapterError:
            assert digest not in adapters.traits
    for verb, digest in done:
        if digest not in known:
            continue
        with suppress(AdapterError, RequestError):
            if verb == "want":
                settle(adapters, [digest])
            elif verb == "evict":
                adapters.evict(digest, random.Random(verb).choice(["host", "device"]), Nobody())
            else:
                adapters.pin(verb, digest, "device" if verb == "pin" else None)
        settle(adapters, [])
    for digest in known:
        failures = settle(adapters, [digest])
        assert adapters.tier(digest) == "device" or digest in failures
        assert not failures or adapters.slots.pinned | adapters.host.pinned
    adapters.close()
