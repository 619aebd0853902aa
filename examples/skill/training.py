"""The training loop: short rows, loss on the answers only, cosine schedule."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from skill.data import Segment
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

RowMaker = Callable[[Random, float], list[Segment]]
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that sets a run apart, with the values that worked."""

    num_steps: int
    learning_rate: float = 3e-3
    num_rows: int = 48
    num_warmup_steps: int = 50
    seed: int = 0


def encode_rows(
    rows: Sequence[Sequence[Segment]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and labels, both [num_rows, longest]."""
    flat = [segment for row in rows for segment in row]
    encoded = iter(tokenizer([s.text for s in flat], add_special_tokens=False)["input_ids"])
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row in rows:
        pieces = [(segment.trained, next(encoded)) for segment in row]
        ids.append([token for _, piece in pieces for token in piece])
        labels.append([t if trained else IGNORED for trained, piece in pieces for t in piece])
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([row + [pad] * (longest - len(row)) for row in ids]),
        torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < recipe.num_warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.num_warmup_steps
    share = (step - recipe.num_warmup_steps) / max(1, recipe.num_steps - recipe.num_warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def fit(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    make_row: RowMaker,
    recipe: Recipe,
    title: str,
) -> None:
    """Train in place; `make_row` gets the share of the run done, for its curriculum."""
    random = Random(recipe.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    bar = tqdm(range(recipe.num_steps), desc=title, mininterval=10, dynamic_ncols=True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        rows = [make_row(random, step / recipe.num_steps) for _ in range(recipe.num_rows)]
        input_ids, labels = encode_rows(rows, tokenizer)
        # No attention mask: the padding is on the right and its labels are ignored.
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 49:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    model.eval()
