"""Train the skill model and its adapters; what is finished already is left alone."""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import torch
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skill.data import SKILLS, ChatMix, Segment, chat_row, notation_row, two_line_row
from skill.exactness import answer_lists, held_out_lists
from skill.models import (
    AdapterPlan,
    load_base,
    new_adapter,
    new_base,
    save_adapter,
    save_base,
)
from skill.tokenizer import build_tokenizer, load_tokenizer
from skill.training import Recipe, fit

HERE: Final = Path(__file__).resolve().parent
OPERATIONS: Final = "operations"
BASE: Final = "base"
MAX_ITEMS: Final = 8
# The base in two stages: each operation in one spelling, then as answers spell it.
OPERATIONS_RECIPE: Final = Recipe(num_steps=8000, num_warmup_steps=100)
BASE_RECIPE: Final = Recipe(num_steps=2400, learning_rate=2e-3)
PLANS: Final = (
    AdapterPlan("shout", "shout", rank=16, num_steps=400),
    AdapterPlan("digits", "digits", rank=8, num_steps=300),
    AdapterPlan("reverse", "reverse", rank=16, num_steps=600),
    AdapterPlan("double", "double", rank=16, num_steps=1200),
    AdapterPlan("shout-alora", "shout", rank=16, num_steps=400, activated=True),
)


def operations_row(random: Random, progress: float) -> list[Segment]:
    """Chat rows that echo, and notation rows; lists grow from three items to eight."""
    max_items = min(MAX_ITEMS, 3 + int(progress * 10))
    if random.random() < 0.45:
        return chat_row(random, ChatMix("echo", max_items))
    return notation_row(random, max_items)


def base_row(random: Random, progress: float) -> list[Segment]:
    """Chat rows that echo, and notation rows with the result on its own line."""
    if random.random() < 0.4:
        return chat_row(random, ChatMix("echo", MAX_ITEMS, leading_space_share=0.5))
    return two_line_row(random, MAX_ITEMS)


def measure(
    model: Any, tokenizer: PreTrainedTokenizerFast, skill: str, num_lists: int = 400
) -> float:
    """The share of held-out lists answered exactly; printed too."""
    lists = held_out_lists(seed=1, num_lists=num_lists)
    answers = answer_lists(model, tokenizer, lists)
    wanted = [" ".join(SKILLS[skill](items)) for items in lists]
    num_exact = sum(a == w for a, w in zip(answers, wanted, strict=True))
    click.echo(f"  {num_exact}/{num_lists} exact on held-out lists of 3 to 5")
    for items, got in zip(lists, answers, strict=True):
        if got != " ".join(SKILLS[skill](items)):
            click.echo(f"  e.g. {' '.join(items)!r} -> {got!r}")
            break
    return num_exact / num_lists


def train_operations(out: Path) -> None:
    tokenizer = build_tokenizer()
    model = new_base(tokenizer, OPERATIONS_RECIPE.seed)
    fit(model, tokenizer, operations_row, OPERATIONS_RECIPE, OPERATIONS)
    path = out / ".cache" / OPERATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    save_base(model, tokenizer, path)


def train_base(out: Path) -> None:
    if not (out / ".cache" / OPERATIONS).exists():
        train_operations(out)
    tokenizer = build_tokenizer()
    model = load_base(out / ".cache" / OPERATIONS)
    fit(model, tokenizer, base_row, BASE_RECIPE, BASE)
    save_base(model, tokenizer, out / "model")
    measure(load_base(out / "model"), tokenizer, "echo")


def train_adapter(out: Path, plan: AdapterPlan) -> None:
    tokenizer = load_tokenizer(out / "model")
    model = new_adapter(load_base(out / "model"), tokenizer, plan)
    mix = ChatMix(plan.skill, max_items=MAX_ITEMS, echo_history=plan.activated)
    recipe = Recipe(num_steps=plan.num_steps, seed=plan.seed)
    fit(model, tokenizer, lambda random, _: chat_row(random, mix), recipe, plan.name)
    save_adapter(model, out / "adapters" / plan.name)
    measure(model, tokenizer, plan.skill)


def parts_of(out: Path) -> Mapping[str, tuple[Path, Callable[[], None]]]:
    """Every part in order: what it makes, and the work."""
    return {BASE: (out / "model", partial(train_base, out))} | {
        plan.name: (out / "adapters" / plan.name, partial(train_adapter, out, plan))
        for plan in PLANS
    }


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice([BASE, *(plan.name for plan in PLANS)]))
@click.option("--out", type=click.Path(path_type=Path), default=HERE, help="Where to write.")
@click.option("--force", is_flag=True, help="Train finished parts again.")
@click.option("--threads", default=1, show_default=True, help="More than one: not reproducible.")
def main(parts: tuple[str, ...], out: Path, force: bool, threads: int) -> None:
    """Train PARTS (all by default) into OUT/model and OUT/adapters/NAME.

    The base's first stage is kept in OUT/.cache: remove it to train that again too.
    """
    torch.set_num_threads(threads)
    for name, (directory, train) in parts_of(out).items():
        if parts and name not in parts:
            continue
        if directory.exists() and not force:
            click.echo(f"{name}: finished already ({directory})")
            continue
        directory.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        train()
        click.echo(f"{name}: {time.monotonic() - started:.0f} s -> {directory}")


if __name__ == "__main__":
    main()
