"""The adapters of a configuration: refused, loaded, or waiting for one of too few slots."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.adapter_setup import open_adapters
from branchline.engine.adapters import EngineAdapters
from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.loop import EngineLoop
from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.types import GenerationRequest, SamplingParams, TokenOutput
from branchline.engine.weights import load_decoder
from branchline.lora.adapter import digest_adapter
from branchline.lora.bank import AdapterBank
from branchline.lora.errors import AdapterError

RANKS = {"small": 8, "wide": 40, "attention": 16, "activated": 24, "last": 5}
INVOCATION = (201, 202)
DEADLINE = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory) -> dict[str, AdapterSource]:
    """Adapters of several sizes, one on attention alone, one activated, by name."""
    root = tmp_path_factory.mktemp("adapters")
    found = {}
    for seed, (name, rank) in enumerate(RANKS.items()):
        options = {}
        if name == "attention":
            options["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj"]
        if name == "activated":
            options["alora_invocation_tokens"] = list(INVOCATION)
        path = make_adapter(model, root / name, rank, seed=seed, **options)
        found[name] = AdapterSource(digest=digest_adapter(path), path=str(path))
    return found


def configure(model: Path, sources, **options) -> EngineConfig:
    room = {"kv_cache_gb": 0.01, "adapter_memory_gb": 0.05}
    options = {"dtype": "float32", "device": "cpu", **room, **options}
    return EngineConfig(model=str(model), adapters=tuple(sources), num_threads=1, **options)


def make_decoder(model: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(model, ModelConfig.from_directory(model), dtype, torch.device("cpu"), 512)


def load(config: EngineConfig, dtype: torch.dtype = torch.float32) -> EngineAdapters:
    return open_adapters(config, make_decoder(Path(config.model), dtype), lambda text: None)


def pages_of(adapters: EngineAdapters, digest: str) -> dict[str, torch.Tensor]:
    """All numbers of an adapter's pages, by group."""
    bank, slot = adapters.bank, adapters.slots.slot(digest)
    assert slot is not None
    found = {}
    for name, pool in bank.pools.items():
        pages = list(pool.pages(slot))
        found[name] = torch.cat([pool.a[:, pages].flatten(), pool.b[:, pages].flatten()])
    return found


def bring(adapters: EngineAdapters, digest: str) -> None:
    """Have an adapter loaded by the thread that loads them."""
    started = time.monotonic()
    while adapters.slots.state(digest) != "ready":
        adapters.residency.advance([digest])
        assert time.monotonic() - started < DEADLINE
    assert adapters.residency.failures() == {}


def test_without_adapters_there_is_room_for_some(model):
    adapters = load(configure(model, [], max_loras=4, adapter_memory_gb=0.01))
    assert (adapters.slots.num_slots, adapters.traits) == (4, {})
    assert adapters.bank.pools["qkv"].num_free > 4


@pytest.mark.parametrize("max_loras", [None, 5, 9])
def test_where_all_fit_all_are_ready(model, sources, max_loras):
    adapters = load(configure(model, sources.values(), max_loras=max_loras))
    assert {adapters.slots.state(s.digest) for s in sources.values()} == {"ready"}
    pool = adapters.bank.pools["qkv"]
    assert pool.num_pages - pool.num_free == 1 + 3 + 1 + 2 + 1
    adapters.check()


def test_memory_for_less_than_a_page_is_refused(model):
    with pytest.raises(EngineStartError, match=r"adapter_memory_gb: .* less than a page"):
        load(configure(model, [], adapter_memory_gb=1e-6))


def test_an_adapter_larger_than_the_memory_for_adapters_is_refused(model, sources):
    config = configure(model, sources.values(), adapter_memory_gb=0.0006)
    with pytest.raises(AdapterError, match=r"needs 3 pages .*--adapter-memory-gb"):
        load(config)


def test_two_names_of_one_version_are_loaded_once(model, sources):
    twin = replace(sources["small"], path=sources["small"].path + "/.")
    adapters = load(configure(model, [*sources.values(), twin], max_loras=5))
    assert adapters.slots.num_slots == len(adapters.slots.digests) == 5
    assert adapters.slots.num_ready == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_fewer_slots_each_adapter_comes_to_the_same_numbers(model, sources, dtype):
    everything = load(configure(model, sources.values()), dtype)
    few = load(configure(model, sources.values(), max_loras=2), dtype)
    digests = [source.digest for source in sources.values()]
    assert [few.slots.state(digest) for digest in digests] == ["ready"] * 2 + ["absent"] * 3
    assert few.slots.digests == digests
    assert few.bank.num_slots == 2
    for digest in [*digests, *reversed(digests)]:
        bring(few, digest)
        few.residency.check()
        got, expected = pages_of(few, digest), pages_of(everything, digest)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        assert all(numbers.dtype == dtype for numbers in got.values())
    few.residency.close()


def test_traits_say_what_the_scheduler_needs(model, sources):
    adapters = load(configure(model, sources.values(), max_loras=2))
    for name, source in sources.items():
        traits = adapters.traits[source.digest]
        assert traits.rank == -(-RANKS[name] // 16) * 16
        assert traits.invocation_tokens == (INVOCATION if name == "activated" else None)
        assert traits.num_bytes == adapters.report(source.digest).device_bytes


def damaged(source: AdapterSource, directory: Path, weights=None, **fields) -> AdapterSource:
    """A copy of an adapter with other fields, or with its weights changed in place."""
    original = Path(source.path)
    config = json.loads((original / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    tensors = load_file(original / "adapter_model.safetensors")
    if weights is not None:
        weights(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    return AdapterSource(digest=digest_adapter(directory), path=str(directory))


def test_a_value_too_large_for_the_dtype_is_refused_by_its_adapter(model, sources, tmp_path):
    def enlarge(tensors):
        next(t for name, t in tensors.items() if "down_proj.lora_A" in name)[0, 0] = 7e4

    config = configure(model, [damaged(sources["small"], tmp_path, enlarge)])
    load(config)
    with pytest.raises(AdapterError, match=rf"adapter {tmp_path}: down: holds 7e\+04, too large"):
        load(config, torch.float16)


def test_an_invocation_that_no_prompt_can_hold_is_refused(model, sources, tmp_path):
    bad = damaged(sources["activated"], tmp_path, alora_invocation_tokens=[201, 10**6])
    with pytest.raises(AdapterError, match=rf"adapter {tmp_path}: .* token 1000000 is not in"):
        load(configure(model, [*sources.values(), bad]))


def requests(sources, count: int) -> list[GenerationRequest]:
    """Requests for the base and all adapters in turn; every other round has the invocation."""
    adapters = [None, *(source.digest for source in sources.values())]
    return [
        GenerationRequest(
            request_id=f"r{i}",
            prompt_token_ids=[
                *range(i, 3 * i + 4),
                *(() if i // len(adapters) % 2 else INVOCATION),
                7,
            ],
            params=SamplingParams(temperature=0, seed=i, max_tokens=6, ignore_eos=True),
            adapter=adapters[i % len(adapters)],
        )
        for i in range(count)
    ]


def run(loop: EngineLoop, wanted: list[GenerationRequest]) -> dict[str, list[TokenOutput]]:
    for generation in wanted:
        assert loop.add(generation) == []
    outputs: dict[str, list[TokenOutput]] = {generation.request_id: [] for generation in wanted}
    started = time.monotonic()
    while loop.has_work:
        for output in loop.step():
            outputs[output.request_id].append(output)
        loop.check()
        assert time.monotonic() - started < DEADLINE
    return outputs


def tokens(outputs: dict[str, list[TokenOutput]]) -> dict[str, list[int]]:
    return {name: [t for o in found for t in o.token_ids] for name, found in outputs.items()}


@pytest.mark.parametrize(("max_loras", "max_num_seqs"), [(1, 4), (2, 4), (3, 2)])
def test_fewer_slots_than_adapters_give_the_same_answers(model, sources, max_loras, max_num_seqs):
    wanted = requests(sources, 24)
    expected = tokens(run(build_engine(configure(model, sources.values())), wanted))
    assert len({tuple(answer) for answer in expected.values()}) > 12, "adapters make a difference"
    config = configure(
        model, sources.values(), max_loras=max_loras, max_num_seqs=max_num_seqs, block_size=4
    )
    loop = build_engine(config)
    assert tokens(run(loop, wanted)) == expected
    assert loop.stats().num_adapter_loads >= len(sources) - max_loras


def test_a_load_that_fails_ends_the_requests_of_its_adapter_alone(model, sources, monkeypatch):
    wanted = requests(sources, 18)
    expected = tokens(run(build_engine(configure(model, sources.values())), wanted))
    loop = build_engine(configure(model, sources.values(), max_loras=2))
    write = AdapterBank.write

    def fail(bank, slot, weights):
        if weights.num_pages["qkv"] == 2:
            raise OSError("the copy broke off")
        return write(bank, slot, weights)

    monkeypatch.setattr(AdapterBank, "write", fail)
    outputs = run(loop, wanted)
    digest = sources["activated"].digest
    broken_ones = [g for g in wanted if g.adapter == digest and INVOCATION[0] in g.prompt_token_ids]
    assert len(broken_ones) == 2
    for generation in wanted:
        last = outputs[generation.request_id][-1]
        if generation in broken_ones:
            assert last.finish_reason == "error"
            assert last.error == "its adapter can't be loaded: OSError: the copy broke off"
        else:
            assert tokens(outputs)[generation.request_id] == expected[generation.request_id]
    monkeypatch.undo()
    again = {g.request_id: expected[g.request_id] for g in broken_ones}
    assert tokens(run(loop, broken_ones)) == again
