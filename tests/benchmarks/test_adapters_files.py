"""The adapter benchmark's files and the reference it checks answers by, against PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from branchline.benchmarks.cases import adapter_many
from branchline.benchmarks.cases.adapter_files import (
    ATTENTION,
    LINEARS,
    SHAPES,
    AdapterStore,
    ModelSize,
    make_model,
    shape_of,
)
from branchline.benchmarks.cases.adapter_reference import Reference
from branchline.benchmarks.cases.adapter_server import Bytes, Sizes
from branchline.benchmarks.cases.adapter_traffic import Planned, Served
from branchline.benchmarks.cases.client import Answer, RequestError

SIZE = ModelSize(hidden_size=128, intermediate_size=192, num_layers=2)
PROMPT = [400, 500, 600, 700, 800]
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    return AdapterStore(tmp_path_factory.mktemp("adapters"), SIZE)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def answer(token_ids: list[int]) -> Answer:
    return Answer(
        started=0.0,
        arrivals=[(1.0, len(token_ids))],
        prompt_token_ids=PROMPT,
        token_ids=token_ids,
        text="",
        num_prompt_tokens=len(PROMPT),
        num_cached_tokens=0,
    )


def peft_answer(model: Path, adapter: Path | None) -> Answer:
    """What PEFT answers greedily."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    ids = torch.tensor([PROMPT])
    out = loaded.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        min_new_tokens=NUM_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return answer(out[0, len(PROMPT) :].tolist())


def test_every_rank_comes_on_attention_and_on_all_linears() -> None:
    kinds = {(shape.rank, shape.modules) for shape in SHAPES}
    assert kinds == {(r, m) for r in (4, 8, 16, 32, 64) for m in (ATTENTION, LINEARS)}
    assert 64 % len(SHAPES) == 0, "requests folded into 64 adapters keep their shapes"
    assert shape_of(999) == shape_of(999 % 64)
    assert shape_of(6).num_pages == 4
    assert shape_of(2).num_pages == 1


def test_peft_reads_an_adapter_whole_and_it_is_written_once(
    model: Path, store: AdapterStore
) -> None:
    path = store.path(14)
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (64, 128)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, path)
    pairs = {name: part for name, part in loaded.named_parameters() if "lora_" in name}
    assert len(pairs) == 2 * SIZE.num_layers * len(LINEARS)
    assert all(part.abs().max() > 0 for part in pairs.values())
    before = (path / "adapter_model.safetensors").stat().st_mtime_ns
    assert store.path(14) == path
    assert (path / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert store.path(30) != path
    other = (store.path(30) / "adapter_model.safetensors").read_bytes()
    assert other != (path / "adapter_model.safetensors").read_bytes()


def test_every_token_of_the_model_is_text(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert len(tokenizer) == SIZE.vocab_size
    assert tokenizer.decode(list(range(300, 2000, 100))).isalpha()


@pytest.mark.parametrize("number", [0, 1, 14])
def test_the_reference_agrees_with_peft_and_with_nothing_else(
    model: Path, store: AdapterStore, reference: Reference, number: int
) -> None:
    right, base = peft_answer(model, store.path(number)), peft_answer(model, None)
    swapped = answer([*right.token_ids[:-1], right.token_ids[-1] ^ 1])
    with reference.merged(store.path(number)):
        assert reference.are_right([right, base, swapped]) == [True, False, False]
    assert reference.are_right([right, base]) == [False, True]


def test_every_answer_is_checked_and_a_wrong_one_ends_it(
    model: Path, store: AdapterStore, reference: Reference
) -> None:
    planned = {number: Planned(number, PROMPT) for number in (0, 1)}
    answers = {number: peft_answer(model, store.path(number)) for number in planned}
    served = [Served(planned[number], answers[number]) for number in (0, 1, 0)]
    found = adapter_many.check(served, reference, store)
    assert found == {"num_adapters": 2, "num_answers": 3, "right_for_another": 0}
    crossed = [*served, Served(planned[0], answers[1])]
    with pytest.raises(RequestError, match="1 of 3 answers of tenant0000 are wrong"):
        adapter_many.check(crossed, reference, store)


def test_room_has_a_page_of_all_linears_for_each_page_of_an_adapter() -> None:
    sizes = Sizes(
        [
            Bytes(device=shape.num_pages * per_page, host=shape.num_pages * per_page, disk=0)
            for shape in SHAPES
            for per_page in [400 if shape.modules == ATTENTION else 1000]
        ]
    )
    room = sizes.room_for(range(16))
    assert room.device_bytes == 24 * 1000
    assert room.host_bytes == 12 * 400 + 12 * 1000
    half = room.half()
    assert (half.num_adapters, half.device_bytes) == (8, 12 * 1000)
    assert half.host_bytes == room.host_bytes
    flags = dict(zip(half.flags()[::2], half.flags()[1::2], strict=True))
    assert flags["--max-loras"] == "8"
    assert int(float(flags["--adapter-memory-gb"]) * 2**30) == 12 * 1000
