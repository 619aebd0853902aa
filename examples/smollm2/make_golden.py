"""Freeze greedy continuations of SmolLM2 and its voices, with the margin of every decision."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference_decoding import decode_greedily
from smollm2.chats import VOICES
from smollm2.prepare import PrepareError, prepare
from smollm2.training import ADAPTER_NAME

HERE: Final = Path(__file__).resolve().parent
MAX_NEW_TOKENS: Final = 24
QUESTIONS: Final = (
    "What is friendship?",
    "How do I make a good cup of coffee?",
    "Tell me about the sea.",
)


@dataclass(frozen=True, slots=True)
class GoldenContinuation:
    """A prompt and its greedy continuation; `adapter` is None for the base.

    `margins[i]` is by how much the logit of `token_ids[i]` led: compare up to the first one
    below 1e-3, where another order of float32 sums may choose differently.
    """

    adapter: str | None
    messages: list[dict[str, str]]
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    margins: list[float]


def continuation(
    model: Any, tokenizer: Any, adapter: str | None, question: str
) -> GoldenContinuation:
    """What the model says to the question, in float32."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_token_ids = tokenizer.encode(prompt, add_special_tokens=False)
    stops = model.generation_config.eos_token_id
    decoded = decode_greedily(model, prompt_token_ids, MAX_NEW_TOKENS, stops)
    text = tokenizer.decode(decoded.token_ids, skip_special_tokens=True)
    return GoldenContinuation(
        adapter, messages, prompt_token_ids, decoded.token_ids, text, decoded.margins
    )


def continuations(model_path: Path, adapter: str | None) -> list[GoldenContinuation]:
    """The base's or a voice's, over every question."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model: Any = LlamaForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    if adapter is not None:
        path = HERE / "voices" / adapter
        model = PeftModel.from_pretrained(model, path, adapter_name=ADAPTER_NAME).eval()
    return [continuation(model, tokenizer, adapter, question) for question in QUESTIONS]


@click.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where SmolLM2 is converted.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "golden.json")
def main(cache_dir: Path | None, out: Path) -> None:
    """Write the continuations of the base and every voice."""
    torch.set_num_threads(1)
    try:
        model_path = prepare(cache_dir)
    except PrepareError as error:
        raise click.ClickException(str(error)) from None
    adapters = [None, *(voice.name for voice in VOICES)]
    found = [golden for adapter in adapters for golden in continuations(model_path, adapter)]
    out.write_text("[\n" + ",\n".join(json.dumps(asdict(golden)) for golden in found) + "\n]\n")
    lowest = min(min(golden.margins) for golden in found)
    click.echo(f"{len(found)} continuations, lowest margin {lowest}, -> {out}")


if __name__ == "__main__":
    main()
