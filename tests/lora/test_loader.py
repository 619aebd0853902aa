"""load_adapter against PEFT itself: what is in the pages is the delta of the merged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from branchline.lora.adapter import AdapterConfig, digest_adapter
from branchline.lora.bank import AdapterBank
from branchline.lora.layers import StepLora, project
from branchline.lora.loader import load_adapter
from branchline.lora.mapping import build_mapping
from branchline.lora.shapes import ModuleShapes
from branchline.tests.support.tiny_adapters import make_adapter

HIDDEN, LAYERS = 64, 4

KINDS: dict[str, dict[str, Any]] = {
    "all linear": {"rank": 8},
    "list": {"rank": 16, "target_modules": ["q_proj", "v_proj"]},
    "full names": {
        "rank": 4,
        "target_modules": ["model.layers.2.mlp.up_proj", "layers.0.self_attn.o_proj"],
    },
    "regex": {"rank": 5, "target_modules": r".*layers\.[12]\.(self_attn|mlp)\.(k|down)_proj"},
    "layers_to_transform": {
        "rank": 8,
        "target_modules": ["q_proj", "gate_proj"],
        "layers_to_transform": [1, 3],
    },
    "layers_pattern": {
        "rank": 8,
        "target_modules": ["up_proj"],
        "layers_to_transform": 2,
        "layers_pattern": "layers",
    },
    "exclude_modules": {
        "rank": 8,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "exclude_modules": r".*layers\.0\..*",
    },
    "rslora": {"rank": 20, "use_rslora": True, "alpha": 10},
    "rank 64": {"rank": 64, "alpha": 16},
    "patterns": {
        "rank": 8,
        "rank_pattern": {"q_proj": 33, r"layers\.1\.mlp\.up_proj": 4, "up_proj": 2},
        "alpha_pattern": {r"^model.layers.0.self_attn.k_proj": 100, "mlp.*": 3.5, "v_proj": 1},
    },
    "patterns, rslora": {
        "rank": 8,
        "use_rslora": True,
        "rank_pattern": {"self_attn.*": 17},
        "alpha_pattern": {"o_proj": 5},
    },
    "fp16": {"rank": 8, "dtype": torch.float16},
    "bf16": {"rank": 8, "dtype": torch.bfloat16},
    "gaussian": {"rank": 8, "init_lora_weights": "gaussian", "lora_dropout": 0.3},
    "one matrix": {"rank": 1, "target_modules": ["model.layers.3.mlp.down_proj"]},
}
FUSED_KINDS: dict[str, dict[str, Any]] = {
    "all linear": {"rank": 8},
    "list": {"rank": 24, "target_modules": ["qkv_proj"]},
    "patterns": {"rank": 8, "rank_pattern": {"qkv_proj": 20}, "alpha_pattern": {"gate_up_proj": 3}},
}


def shapes_of(family: str) -> ModuleShapes:
    return ModuleShapes.for_decoder(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads={"llama32": 2, "phi3": 4}[family],
        head_dim={"llama32": 24, "phi3": 16}[family],
        fused=family == "phi3",
    )


def peft_deltas(model_dir: Path, adapter_dir: Path) -> dict[str, torch.Tensor]:
    """What merging the adapter changes, by module path."""
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload()
    after = merged.state_dict()
    assert after.keys() == before.keys()
    return {
        name.removesuffix(".weight"): after[name] - weight
        for name, weight in before.items()
        if name.endswith("_proj.weight")
    }


def our_deltas(adapter_dir: Path, shapes: ModuleShapes, layer: int, group: str) -> torch.Tensor:
    """The group's delta from the unit vectors through project() with a zero base, [K, N]."""
    weights = load_adapter(adapter_dir, AdapterConfig.from_directory(adapter_dir), shapes)
    bank = AdapterBank(shapes, shapes.num_layers, weights.num_pages, torch.float32, "cpu")
    bank.load(0, weights)
    shape = shapes.groups[group]
    mapping = build_mapping([0], [shape.in_features], bank)
    assert mapping is not None
    zero = torch.zeros(shape.out_features, shape.in_features)
    return project(torch.eye(shape.in_features), zero, None, layer, group, StepLora(bank, mapping))


@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("llama32", kind) for kind in KINDS), *(("phi3", kind) for kind in FUSED_KINDS)],
)
def test_deltas_are_those_of_peft(
    family: str, kind: str, model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = (FUSED_KINDS if family == "phi3" else KINDS)[kind]
    adapter = make_adapter(model_dir(family), tmp_path / "adapter", seed=3, **arguments)
    expected = peft_deltas(model_dir(family), adapter)
    shapes = shapes_of(family)
    changed = 0
    for layer in range(LAYERS):
        for group, shape in shapes.groups.items():
            owner = "self_attn" if group in ("qkv", "o") else "mlp"
            names = [shape.fused_name] if shape.fused_name else [name for name, _ in shape.slices]
            deltas = [expected.pop(f"model.layers.{layer}.{owner}.{name}") for name in names]
            wanted = torch.cat(deltas).t()
            ours = our_deltas(adapter, shapes, layer, group)
            torch.testing.assert_close(ours, wanted, atol=3e-6, rtol=1e-4)
            changed += int(wanted.abs().max() > 0.01)
    assert not expected
    assert changed >= 1


def test_groups_that_the_adapter_leaves_alone_take_no_pages(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(
        model_dir("llama32"), tmp_path, 17, target_modules=["k_proj", "down_proj"]
    )
    weights = load_adapter(adapter, AdapterConfig.from_directory(adapter), shapes_of("llama32"))
    assert weights.num_pages == {"qkv": 2, "down": 2}
    by_slice = weights.groups["qkv"].b.split([96, 48, 48], dim=-1)
    assert [bool(part.any()) for part in by_slice] == [False, True, False]
    assert not weights.groups["qkv"].b[:, 1, 1:].any()


def test_an_activated_lora_is_stored_as_a_plain_one(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT marks it in the configuration alone."""
    plain, activated = (
        make_adapter(model_dir("llama32"), tmp_path / str(i), 8, seed=5, **fields)
        for i, fields in enumerate(({}, {"alora_invocation_tokens": [1, 2]}))
    )
    config = AdapterConfig.from_directory(activated)
    assert config.invocation_tokens == (1, 2)
    assert AdapterConfig.from_directory(plain).invocation_tokens is None
    ours = load_adapter(activated, config, shapes_of("llama32"))
    theirs = load_adapter(plain, AdapterConfig.from_directory(plain), shapes_of("llama32"))
    assert ours.num_pages == theirs.num_pages
    for name, group in ours.groups.items():
        assert torch.equal(group.a, theirs.groups[name].a)
        assert torch.equal(group.b, theirs.groups[name].b)
    assert digest_adapter(activated) != digest_adapter(plain)


def test_adapters_change_greedy_outputs(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """What tests of mixed batches rest on: the base and two adapters all answer differently."""
    base = AutoModelForCausalLM.from_pretrained(model_dir("llama32"), dtype=torch.float32)
    prompt = torch.arange(1, 13)[None]
    with torch.inference_mode():
        answers = [base.generate(prompt, max_new_tokens=8, do_sample=False)]
    for seed in (1, 2):
        adapter = make_adapter(model_dir("llama32"), tmp_path / str(seed), 8, seed=seed)
        fresh = AutoModelForCausalLM.from_pretrained(model_dir("llama32"), dtype=torch.float32)
        tuned = PeftModel.from_pretrained(fresh, str(adapter))
        with torch.inference_mode():
            answers.append(tuned.generate(input_ids=prompt, max_new_tokens=8, do_sample=False))
    assert len({tuple(answer[0].tolist()) for answer in answers}) == 3
