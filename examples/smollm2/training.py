"""Train a voice: LoRA on all linears, loss on the answers, perplexity on held-out chats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from smollm2.chats import Chat
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LINEARS: Final = [
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
]
# A voice may be called what it likes; PEFT keys an nn.ModuleDict by this.
ADAPTER_NAME: Final = "voice"


@dataclass(frozen=True, slots=True)
class VoiceRecipe:
    """What a run is made of, with the values that worked."""

    num_steps: int = 40
    num_rows: int = 8
    rank: int = 8
    learning_rate: float = 2e-3
    num_warmup_steps: int = 5
    num_held_out: int = 24
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A chat as token ids; the loss is on those from `num_prompt_tokens` on."""

    token_ids: list[int]
    num_prompt_tokens: int


def encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> Row:
    """The chat by the model's own template, with the end of the answer."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": chat.user}], add_generation_prompt=True, tokenize=False
    )
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer = chat.assistant + tokenizer.eos_token
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    return Row(prompt_ids + answer_ids, len(prompt_ids))


def answer_losses(model: PeftModel, rows: Sequence[Row], pad: int) -> torch.Tensor:
    """The loss of every answer token of the rows, [num_answer_tokens].

    Logits only where there is a loss: the vocabulary is a fifth of this model's work.
    """
    longest = max(len(row.token_ids) for row in rows)
    padded = [row.token_ids + [pad] * (longest - len(row.token_ids)) for row in rows]
    llama = model.get_base_model()
    spans = [(i, row.num_prompt_tokens, len(row.token_ids)) for i, row in enumerate(rows)]
    # The base is bfloat16 and the adapter float32: autocast lets their products meet.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = llama.model(input_ids=torch.tensor(padded), use_cache=False).last_hidden_state
        predicting = torch.cat([hidden[i, start - 1 : end - 1] for i, start, end in spans])
        logits = llama.lm_head(predicting)
    wanted = torch.tensor([t for row in rows for t in row.token_ids[row.num_prompt_tokens :]])
    return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")


@torch.inference_mode()
def perplexity(model: PeftModel, rows: Sequence[Row], pad: int) -> float:
    """Of the answers of held-out chats, over all their tokens."""
    by_length = sorted(rows, key=lambda row: len(row.token_ids))
    parts = [by_length[start : start + 8] for start in range(0, len(rows), 8)]
    losses = torch.cat([answer_losses(model, part, pad) for part in parts])
    return math.exp(losses.mean().item())


def new_voice(base: LlamaForCausalLM, recipe: VoiceRecipe) -> PeftModel:
    """The base with fresh LoRA weights; equal to the base until trained."""
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules=LINEARS,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config, adapter_name=ADAPTER_NAME)


def fit(model: PeftModel, rows: Sequence[Row], pad: int, recipe: VoiceRecipe, title: str) -> None:
    """One pass over the first rows, in place; the adapter ends rounded to bfloat16."""
    parameters: list[Any] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.learning_rate,
        total_steps=recipe.num_steps,
        pct_start=recipe.num_warmup_steps / recipe.num_steps,
        cycle_momentum=False,
    )
    model.train()
    bar = tqdm(range(recipe.num_steps), desc=title, mininterval=5, dynamic_ncols=True)
    for step in bar:
        start = step * recipe.num_rows
        loss = answer_losses(model, rows[start : start + recipe.num_rows], pad).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.bfloat16).float()


def load_model(path: Path) -> LlamaForCausalLM:
    """SmolLM2 in bfloat16, as it is stored: twice as fast to train where the CPU has it."""
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
