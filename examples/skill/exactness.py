"""How often a model's greedy answer is exactly the skill's."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from skill.data import Items, sample_items, user_turn
from transformers import PreTrainedTokenizerFast


def held_out_lists(seed: int, num_lists: int, lengths: Sequence[int] = (3, 4, 5)) -> list[Items]:
    """Fresh lists of distinct items; of some 10^7 and more, training saw a few hundred thousand.

    Digits and words both occur in each, so that every skill is visible.
    """
    random = Random(f"held-out {seed}")
    lists: list[Items] = []
    while len(lists) < num_lists:
        items = sample_items(random, random.choice(lengths))
        if any(i.isdigit() for i in items) and not all(i.isdigit() for i in items):
            lists.append(items)
    return lists


@torch.inference_mode()
def greedy_answers(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int = 24
) -> list[str]:
    """The answers' text, in batches of prompts with equal length (so without padding)."""
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    answers = [""] * len(prompts)
    for length in sorted({len(ids) for ids in encoded}):
        rows = [index for index, ids in enumerate(encoded) if len(ids) == length]
        input_ids = torch.tensor([encoded[index] for index in rows])
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for index, text in zip(rows, texts, strict=True):
            answers[index] = text
    return answers


def answer_lists(
    model: Any, tokenizer: PreTrainedTokenizerFast, lists: Sequence[Items]
) -> list[str]:
    """The greedy answer to each list as a single user turn."""
    return greedy_answers(model, tokenizer, [user_turn(items) for items in lists])
