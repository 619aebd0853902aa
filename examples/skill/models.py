"""The base and its adapters on disk: made, saved, loaded."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from skill.tokenizer import GENERATION_PROMPT
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LINEARS: Final = [
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
]
# Never the skill's own name: PEFT keys an nn.ModuleDict by it, which refuses `double`.
ADAPTER_NAME: Final = "skill"


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """An adapter to train: what it does, its size, and how long it takes."""

    name: str
    skill: str
    rank: int
    num_steps: int
    activated: bool = False
    seed: int = 0


def new_base(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of about 0.8 M parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write the model in bfloat16, with its tokenizer and stop tokens, all or nothing."""
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / "model.safetensors").chmod(0o644)  # safetensors makes it its owner's alone
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)


def load_base(path: Path) -> LlamaForCausalLM:
    """The saved base, computed in float32."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


def new_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: AdapterPlan
) -> PeftModel:
    """The base with fresh LoRA weights on all seven linears."""
    torch.manual_seed(plan.seed)
    invocation = tokenizer.encode(GENERATION_PROMPT, add_special_tokens=False)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        lora_dropout=0.0,
        target_modules=LINEARS,
        task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation if plan.activated else None,
    )
    return get_peft_model(base, config, adapter_name=ADAPTER_NAME)


def save_adapter(model: PeftModel, path: Path) -> None:
    """Write the PEFT directory, without the name of a directory on this machine."""
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(str(unfinished), selected_adapters=[ADAPTER_NAME])
    saved = unfinished / ADAPTER_NAME
    config_path = saved / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = "examples/skill/model"
    # A set in PEFT: its order on disk would change from run to run.
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (saved / "README.md").unlink(missing_ok=True)
    (saved / "adapter_model.safetensors").chmod(0o644)
    shutil.rmtree(path, ignore_errors=True)
    saved.rename(path)
    shutil.rmtree(unfinished)


def load_adapter(base: Any, path: Path) -> PeftModel:
    """The base with a saved adapter over it; `.unload()` gives the base back."""
    return PeftModel.from_pretrained(base, path, adapter_name=ADAPTER_NAME).eval()
