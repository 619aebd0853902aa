"""The golden answers of the skill model: right, and with no decision near a tie."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import torch
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference_decoding import decode_greedily
from skill.data import SKILLS, Items, sample_items
from skill.evaluate import ADAPTER_SKILLS, model_with
from skill.models import load_base
from skill.tokenizer import load_tokenizer

HERE: Final = Path(__file__).resolve().parent
MIN_MARGIN: Final = 0.5
NUM_PROMPTS: Final = 24
MAX_NEW_TOKENS: Final = 24


@dataclass(frozen=True, slots=True)
class Golden:
    """One prompt and its answer; `adapter` is None for the base.

    `token_ids` ends with the token that ends the message, `text` is without it.
    """

    adapter: str | None
    messages: list[dict[str, str]]
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    min_margin: float


def answer_of(
    model: Any, tokenizer: PreTrainedTokenizerFast, adapter: str | None, items: Items
) -> Golden:
    """What the model says to the list."""
    messages = [{"role": "user", "content": " ".join(items)}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_token_ids = tokenizer.encode(prompt, add_special_tokens=False)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    decoded = decode_greedily(model, prompt_token_ids, MAX_NEW_TOKENS, stops)
    text = tokenizer.decode(decoded.token_ids, skip_special_tokens=True)
    return Golden(
        adapter, messages, prompt_token_ids, decoded.token_ids, text, min(decoded.margins)
    )


def golden_answers(adapter: str | None) -> list[Golden]:
    """The base's or an adapter's golden prompts: the first that qualify."""
    tokenizer = load_tokenizer(HERE / "model")
    skill = SKILLS[ADAPTER_SKILLS[adapter]]
    random = Random(f"golden {adapter}")
    found: list[Golden] = []
    with model_with(load_base(HERE / "model"), HERE / "adapters", adapter) as model:
        while len(found) < NUM_PROMPTS:
            items = sample_items(random, random.choice([3, 4, 5]))
            if not any(i.isdigit() for i in items) or all(i.isdigit() for i in items):
                continue
            answer = answer_of(model, tokenizer, adapter, items)
            if answer.text == " ".join(skill(items)) and answer.min_margin >= MIN_MARGIN:
                found.append(answer)
    return found


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "golden.json")
def main(out: Path) -> None:
    """Freeze the golden prompts and answers of the base and every adapter."""
    torch.set_num_threads(1)
    answers = [answer for adapter in ADAPTER_SKILLS for answer in golden_answers(adapter)]
    lines = ",\n".join(json.dumps(asdict(answer)) for answer in answers)
    out.write_text(f"[\n{lines}\n]\n")
    click.echo(f"{len(answers)} answers, margins >= {MIN_MARGIN}, -> {out}")


if __name__ == "__main__":
    main()
