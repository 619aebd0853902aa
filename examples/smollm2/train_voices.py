"""Train the voices: LoRA adapters that make SmolLM2 talk like a public-domain text."""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smollm2.chats import VOICES, Voice, chats_of
from smollm2.prepare import PrepareError, prepare
from smollm2.texts import TextMissingError
from smollm2.training import (
    ADAPTER_NAME,
    VoiceRecipe,
    encode_chat,
    fit,
    load_model,
    new_voice,
    perplexity,
)

HERE: Final = Path(__file__).resolve().parent
SAMPLE_QUESTION: Final = "What is friendship?"

README: Final = """# {name}

A LoRA adapter (rank {rank}, all seven linears, bfloat16) for SmolLM2-135M-Instruct that answers
in the voice of a text in the public domain, taken from the Debian package `{package}`:
{source}.

Trained by `python examples/smollm2/train_voices.py {name}`: {num_steps} steps of {num_rows} chats,
{seconds:.0f} s. Perplexity of the answers of {num_held_out} held-out chats:

| before | after |
| --- | --- |
| {before:.1f} | {after:.1f} |

Asked "{question}", it answered (greedy):

> {sample}
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured."""

    before: float
    after: float
    seconds: float
    sample: str


@torch.inference_mode()
def sample_answer(model: PeftModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the voice says to the sample question."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": SAMPLE_QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=60)
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    return text.removesuffix(tokenizer.eos_token).strip()


def train_voice(
    voice: Voice, model_path: Path, text: Path | None, recipe: VoiceRecipe, out: Path
) -> None:
    """Train one voice into OUT/NAME."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rows = [encode_chat(chat, tokenizer) for chat in chats_of(voice, text)]
    held_out, training = rows[: recipe.num_held_out], rows[recipe.num_held_out :]
    model = new_voice(load_model(model_path), recipe)
    pad = tokenizer.pad_token_id
    before = perplexity(model, held_out, pad)
    started = time.monotonic()
    fit(model, training, pad, recipe, voice.name)
    seconds = time.monotonic() - started
    after = perplexity(model, held_out, pad)
    outcome = Outcome(before, after, seconds, sample_answer(model, tokenizer))
    click.echo(f"{voice.name}: held-out perplexity {before:.1f} -> {after:.1f}, {seconds:.0f} s")
    click.echo(f"  {SAMPLE_QUESTION} -> {outcome.sample}")
    save_voice(model, voice, recipe, outcome, out / voice.name)


def save_voice(
    model: PeftModel, voice: Voice, recipe: VoiceRecipe, outcome: Outcome, path: Path
) -> None:
    """Write the PEFT directory in bfloat16 with its README, all or nothing."""
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(str(unfinished))
    saved = unfinished / ADAPTER_NAME
    weights = saved / "adapter_model.safetensors"
    tensors = {name: t.to(torch.bfloat16) for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it its owner's alone
    config = json.loads((saved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    # A set in PEFT: its order on disk would change from run to run.
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (saved / "adapter_config.json").write_text(text)
    (saved / "README.md").write_text(readme(voice, recipe, outcome))
    shutil.rmtree(path, ignore_errors=True)
    saved.rename(path)
    shutil.rmtree(unfinished)


def readme(voice: Voice, recipe: VoiceRecipe, outcome: Outcome) -> str:
    """What the adapter is and what was measured, as Markdown."""
    return README.format(
        name=voice.name,
        source=voice.source,
        package=voice.package,
        rank=recipe.rank,
        num_steps=recipe.num_steps,
        num_rows=recipe.num_rows,
        num_held_out=recipe.num_held_out,
        seconds=outcome.seconds,
        before=outcome.before,
        after=outcome.after,
        question=SAMPLE_QUESTION,
        sample=outcome.sample,
    )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([voice.name for voice in VOICES]))
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "voices")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where SmolLM2 is converted.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file in place of the Debian package's text; for one voice at a time.",
)
@click.option("--steps", default=VoiceRecipe().num_steps, show_default=True)
@click.option("--force", is_flag=True, help="Train finished voices again.")
@click.option("--threads", default=1, show_default=True, help="More than one: not reproducible.")
def main(
    names: tuple[str, ...],
    out: Path,
    cache_dir: Path | None,
    text: Path | None,
    steps: int,
    force: bool,
    threads: int,
) -> None:
    """Train the voices NAMES (all by default) into OUT/NAME."""
    if text is not None and len(names) != 1:
        raise click.UsageError("--text goes with exactly one voice")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    try:
        model_path = prepare(cache_dir)
        for voice in VOICES:
            if names and voice.name not in names:
                continue
            if (out / voice.name).exists() and not force:
                click.echo(f"{voice.name}: finished already ({out / voice.name})")
                continue
            train_voice(voice, model_path, text, VoiceRecipe(num_steps=steps), out)
    except (PrepareError, TextMissingError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
