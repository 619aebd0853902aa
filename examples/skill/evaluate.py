"""How exact every adapter is at its own skill, and that it has no other."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skill.data import SKILLS
from skill.exactness import answer_lists, held_out_lists
from skill.models import load_adapter, load_base
from skill.tokenizer import load_tokenizer

HERE: Final = Path(__file__).resolve().parent
# What the base (None) and each adapter do.
ADAPTER_SKILLS: Final[dict[str | None, str]] = {
    None: "echo",
    "shout": "shout",
    "digits": "digits",
    "reverse": "reverse",
    "double": "double",
    "shout-alora": "shout",
}


@contextmanager
def model_with(base: Any, adapters: Path, adapter: str | None) -> Iterator[Any]:
    """The base alone, or with an adapter for as long as the block lasts."""
    if adapter is None:
        yield base
        return
    model = load_adapter(base, adapters / adapter)
    try:
        yield model
    finally:
        model.unload()


@click.command()
@click.option("--directory", type=click.Path(path_type=Path), default=HERE)
@click.option("--num-lists", default=400, show_default=True)
@click.option("--seed", default=2, show_default=True, help="Of the lists; training measures 1.")
@click.option("--minimum", default=0.98, show_default=True, help="Fail below this share.")
def main(directory: Path, num_lists: int, seed: int, minimum: float) -> None:
    """Print the exact answers by adapter (rows) and skill (columns) as a Markdown table."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(directory / "model")
    base = load_base(directory / "model")
    lists = held_out_lists(seed, num_lists)
    too_low = []
    click.echo(f"| of {num_lists} | " + " | ".join(SKILLS) + " |")
    click.echo("| --- " * (len(SKILLS) + 1) + "|")
    for adapter, own_skill in ADAPTER_SKILLS.items():
        with model_with(base, directory / "adapters", adapter) as model:
            answers = answer_lists(model, tokenizer, lists)
        exact = {
            name: sum(a == " ".join(skill(items)) for a, items in zip(answers, lists, strict=True))
            for name, skill in SKILLS.items()
        }
        name = adapter or "base"
        click.echo(f"| {name} | " + " | ".join(map(str, exact.values())) + " |")
        if exact[own_skill] < minimum * num_lists:
            too_low.append(name)
    if too_low:
        raise click.ClickException(f"less than {minimum:.0%} exact: {', '.join(too_low)}")


if __name__ == "__main__":
    main()
