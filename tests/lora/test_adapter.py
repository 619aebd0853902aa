"""Configuration: what is refused and by which name; what the digest depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from branchline.lora.adapter import AdapterConfig, digest_adapter
from branchline.lora.errors import AdapterError, BranchlineError

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "task_type": "CAUSAL_LM",
}

REFUSED: list[tuple[str, Any, str]] = [
    ("peft_type", "ADALORA", "LORA"),
    ("peft_type", None, "LORA"),
    ("alora_invocation_tokens", "<|im_start|>", "list of token ids"),
    ("alora_invocation_tokens", 5, "list of token ids"),
    ("alora_invocation_tokens", [1, -1], "list of token ids"),
    ("alora_invocation_tokens", [1, 2.0], "list of token ids"),
    ("alora_invocation_tokens", [True], "list of token ids"),
    ("alora_invocation_tokens", [1] * 5000, "at most 4096"),
    ("use_dora", "yes", "true or false"),
    ("use_dora", 1, "true or false"),
    ("bias", "some", "one of none, all, lora_only"),
    ("bias", True, "one of none, all, lora_only"),
    ("lora_bias", "yes", "true or false"),
    ("ensure_weight_tying", 1, "true or false"),
    ("modules_to_save", "lm_head", "list of names"),
    ("modules_to_save", [""], "every module"),
    ("modules_to_save", ["("], "regular expression"),
    ("modules_to_save", [f"m{i}" for i in range(300)], "at most 256"),
    ("trainable_token_indices", 5, "token ids"),
    ("trainable_token_indices", [-1], "token ids"),
    ("trainable_token_indices", [1.0], "token ids"),
    ("trainable_token_indices", [True], "token ids"),
    ("trainable_token_indices", {"embed_tokens": 5}, "token ids"),
    ("trainable_token_indices", {"a": [1], "b": [1], "c": [1]}, "embed_tokens and lm_head"),
    ("trainable_token_indices", [3, 4, 3], "twice"),
    ("trainable_token_indices", list(range(70_000)), "at most 65536"),
    ("fan_in_fan_out", True, "false"),
    ("megatron_config", {"tensor_model_parallel_size": 2}, "Megatron"),
    ("layer_replication", [[0, 2], [1, 3]], "null"),
    ("target_parameters", ["mlp.experts.gate_up_proj"], "null"),
    ("use_qalora", True, "false"),
    ("use_bdlora", {"nblocks": 2}, "null"),
    ("arrow_config", {"top_k": 3}, "null"),
    ("kasa_config", {"beta": 0.1}, "null"),
    ("monteclora_config", {"num_samples": 8}, "null"),
    ("init_lora_weights", "pissa", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "pissa_niter_16", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "olora", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "OLoRA", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "corda", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "loftq", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "lora_ga", "path_initial_model_for_weight_conversion"),
    ("init_lora_weights", "voodoo", "unknown"),
    ("init_lora_weights", 3, "unknown"),
    ("use_next_years_lora", True, "unknown field"),
    ("next_years_config", {"a": 1}, "unknown field"),
    ("next_years_number", 0, "unknown field"),
    ("r", 0, "1 to 512"),
    ("r", -4, "1 to 512"),
    ("r", 513, "1 to 512"),
    ("r", 8.5, "1 to 512"),
    ("r", "8", "1 to 512"),
    ("r", True, "1 to 512"),
    ("lora_alpha", "16", "number"),
    ("lora_alpha", float("nan"), "number"),
    ("lora_alpha", float("inf"), "number"),
    ("lora_alpha", 10**400, "number"),
    ("lora_alpha", None, "number"),
    ("use_rslora", "yes", "true or false"),
    ("rank_pattern", {"q_proj": 0}, "1 to 512"),
    ("rank_pattern", {"(": 4}, "regular expression"),
    ("rank_pattern", ["q_proj"], "object"),
    ("alpha_pattern", {"q_proj": "x"}, "number"),
    ("target_modules", "(", "regular expression"),
    ("target_modules", [1], "list of names"),
    ("target_modules", {"q_proj": 1}, "list of names"),
    ("layers_to_transform", ["0"], "number"),
    ("layers_pattern", 3, "list of names"),
    ("layers_pattern", "(", "regular expression"),
    ("layers_pattern", ["layers", "(?P<idx>h)"], "regular expression"),
    ("rank_pattern", {"(?i)q_proj": 4}, "regular expression"),
    ("alpha_pattern", {"(?x)q_proj": 4}, "regular expression"),
]

SERVED: list[tuple[str, Any]] = [
    ("init_lora_weights", True),
    ("init_lora_weights", False),
    ("init_lora_weights", "gaussian"),
    ("init_lora_weights", "eva"),
    ("init_lora_weights", "orthogonal"),
    ("use_dora", True),
    ("use_dora", None),
    ("bias", "all"),
    ("bias", "lora_only"),
    ("lora_bias", True),
    ("ensure_weight_tying", True),
    ("modules_to_save", ["lm_head", "model.norm"]),
    ("trainable_token_indices", [5]),
    ("trainable_token_indices", {"embed_tokens": [5], "lm_head": [6, 5]}),
    ("trainable_token_indices", []),
    ("modules_to_save", None),
    ("modules_to_save", []),
    ("loftq_config", {}),
    ("eva_config", {"rho": 2.0}),
    ("velora_config", {"num_groups": 64}),
    ("megatron_core", "megatron.core"),
    ("qalora_group_size", 16),
    ("use_next_years_lora", False),
    ("next_years_config", None),
    ("target_modules", "all-linear"),
    ("layers_to_transform", 3),
    ("alora_invocation_tokens", None),
    ("alora_invocation_tokens", []),
    ("alora_invocation_tokens", [1, 1023, 201]),
    ("velora_config", None),
    ("init_lora_weights", "mica"),
]

WITHOUT_EFFECT: list[tuple[str, Any]] = [
    ("base_model_name_or_path", "elsewhere/base"),
    ("inference_mode", False),
    ("lora_dropout", 0.5),
    ("revision", "main"),
    ("peft_version", "0.1.0"),
    ("task_type", None),
    ("lora_alpha", 16.0),
    ("next_years_config", None),
    ("alora_invocation_tokens", []),
    ("use_dora", False),
    ("lora_bias", None),
    ("bias", "none"),
    ("modules_to_save", []),
    ("trainable_token_indices", None),
    ("ensure_weight_tying", True),
]
WITH_EFFECT: list[tuple[str, Any]] = [
    ("r", 4),
    ("lora_alpha", 17),
    ("use_rslora", True),
    ("rank_pattern", {"q_proj": 4}),
    ("alpha_pattern", {"q_proj": 4}),
    ("alora_invocation_tokens", [1, 2]),
    ("use_dora", True),
    ("lora_bias", True),
    ("bias", "all"),
    ("modules_to_save", ["lm_head"]),
    ("trainable_token_indices", [1, 2]),
]


def with_field(field: str, value: Any) -> dict[str, Any]:
    return {**PLAIN, field: value}


@pytest.mark.parametrize(("field", "value", "said"), REFUSED)
def test_refuses_by_name(field: str, value: Any, said: str) -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_fields(with_field(field, value))
    assert caught.value.field.partition("[")[0] == field
    assert said in caught.value.message
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, BranchlineError)


@pytest.mark.parametrize(("field", "value"), SERVED)
def test_takes(field: str, value: Any) -> None:
    AdapterConfig.from_fields(with_field(field, value))


def test_every_field_that_peft_writes_by_default_is_taken() -> None:
    from peft import LoraConfig

    fields = LoraConfig(target_modules=["q_proj"]).to_dict()
    fields["peft_type"], fields["target_modules"] = "LORA", list(fields["target_modules"])
    config = AdapterConfig.from_fields(fields)
    assert (config.rank, config.alpha, config.target_modules) == (8, 8.0, ("q_proj",))


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "adapter"
    directory.mkdir()
    write_config(directory, PLAIN)
    (directory / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    return directory


def write_config(directory: Path, fields: dict[str, Any]) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(("field", "value"), WITHOUT_EFFECT)
def test_digest_ignores_what_changes_nothing(adapter_dir: Path, field: str, value: Any) -> None:
    before = digest_adapter(adapter_dir)
    write_config(adapter_dir, with_field(field, value))
    assert digest_adapter(adapter_dir) == before


@pytest.mark.parametrize(("field", "value"), WITH_EFFECT)
def test_digest_sees_what_changes_the_output(adapter_dir: Path, field: str, value: Any) -> None:
    before = digest_adapter(adapter_dir)
    write_config(adapter_dir, with_field(field, value))
    assert digest_adapter(adapter_dir) != before


def test_digest_sees_every_invocation_token_and_their_order(adapter_dir: Path) -> None:
    digests = set()
    for invocation in ([1, 2], [2, 1], [1, 2, 2], [12]):
        write_config(adapter_dir, with_field("alora_invocation_tokens", invocation))
        digests.add(digest_adapter(adapter_dir))
    assert len(digests) == 4


def test_digests_of_plain_lora_stay_what_they_were(adapter_dir: Path) -> None:
    """They are names of cached KV and of files in stores, so no release may change them."""
    assert digest_adapter(adapter_dir) == (
        "a1e380c9408f725b845f82edd84a7864b9bfaa3a1b436b2654c521bf4a6cc71c"
    )
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}
    write_config(adapter_dir, {**PLAIN, "use_rslora": True, **patterns})
    assert digest_adapter(adapter_dir) == (
        "eacd2c1d05396130ed11baf6981706be3f94caca515a9e2701ad86532e6d0176"
    )


def test_digest_is_of_content_not_of_names_or_key_order(adapter_dir: Path, tmp_path: Path) -> None:
    before = digest_adapter(adapter_dir)
    assert len(before) == 64
    copy = shutil.copytree(adapter_dir, tmp_path / "another name")
    write_config(copy, dict(reversed(PLAIN.items())))
    (copy / "README.md").write_text("words")
    assert digest_adapter(copy) == before
    (copy / "adapter_model.safetensors").write_bytes(b"weights" * 999 + b"Weights")
    assert digest_adapter(copy) != before


def test_digest_sees_the_order_of_patterns(adapter_dir: Path) -> None:
    """The first match wins, so another order is another adapter."""
    digests = []
    for pattern in ({"q_proj": 2, ".*": 4}, {".*": 4, "q_proj": 2}):
        write_config(adapter_dir, with_field("rank_pattern", pattern))
        digests.append(digest_adapter(adapter_dir))
    assert digests[0] != digests[1]


def test_digest_sees_which_rows_of_which_table_are_trained(adapter_dir: Path) -> None:
    digests = set()
    for rows in ([1, 2], [2, 1], {"lm_head": [1, 2]}, {"embed_tokens": [1], "lm_head": [2]}):
        write_config(adapter_dir, with_field("trainable_token_indices", rows))
        digests.add(digest_adapter(adapter_dir))
    assert len(digests) == 4


def test_config_and_weights_cannot_trade_bytes(adapter_dir: Path) -> None:
    """No config can be continued in the weights: the length of the config is hashed."""
    before = digest_adapter(adapter_dir)
    weights = adapter_dir / "adapter_model.safetensors"
    weights.write_bytes(b" " + weights.read_bytes())
    assert digest_adapter(adapter_dir) != before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff\xfe", "[" * 100_000])
def test_refuses_what_is_no_json_object(adapter_dir: Path, text: str) -> None:
    (adapter_dir / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        AdapterConfig.from_directory(adapter_dir)


def test_refuses_a_field_that_is_there_twice(adapter_dir: Path) -> None:
    """Whichever wins, someone may have read the other."""
    text = json.dumps(PLAIN)[:-1] + ', "r": 16}'
    (adapter_dir / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: .*'r' is there twice"):
        AdapterConfig.from_directory(adapter_dir)


def test_refuses_a_huge_config(adapter_dir: Path) -> None:
    (adapter_dir / "adapter_config.json").write_text(" " * ((1 << 20) + 1))
    with pytest.raises(AdapterError, match=r"adapter_config.json: has 1048577 bytes, at most"):
        AdapterConfig.from_directory(adapter_dir)


def test_refuses_what_is_not_there(tmp_path: Path, adapter_dir: Path) -> None:
    with pytest.raises(AdapterError, match=r"path: .* is not a directory"):
        AdapterConfig.from_directory(tmp_path / "nowhere")
    (adapter_dir / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: is missing"):
        digest_adapter(adapter_dir)
    (adapter_dir / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin: a pickle"):
        digest_adapter(adapter_dir)
    (adapter_dir / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json: is missing"):
        AdapterConfig.from_directory(adapter_dir)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_refuses_a_link_out_of_the_directory(adapter_dir: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (adapter_dir / name).rename(outside)
    (adapter_dir / name).symlink_to(outside)
    with pytest.raises(AdapterError, match=f"{name}: is a link that leads out"):
        digest_adapter(adapter_dir)


def test_takes_links_inside_and_the_hub_caches_blobs(adapter_dir: Path, tmp_path: Path) -> None:
    digest = digest_adapter(adapter_dir)
    config = adapter_dir / "adapter_config.json"
    config.rename(adapter_dir / "real.json")
    config.symlink_to("real.json")
    assert digest_adapter(adapter_dir) == digest
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        shutil.copy(adapter_dir / name, repository / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert digest_adapter(snapshot) == digest


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_refuses_what_is_no_regular_file(adapter_dir: Path, name: str) -> None:
    (adapter_dir / name).unlink()
    (adapter_dir / name).mkdir()
    with pytest.raises(AdapterError, match=f"{name}: is not a regular file"):
        digest_adapter(adapter_dir)
