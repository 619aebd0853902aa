"""The requests of the chaos suite: long enough to be cut, and of every kind that is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from stream_load import Case

BASE, ADAPTER = "base", "voice"
NUM_TOKENS = 160

# One engine thread each; the pool holds all that runs, so that nothing but chaos disturbs.
SERVE_FLAGS = (
    *("--served-model-name", BASE, "--dtype", "float32", "--device", "cpu"),
    *("--num-threads", "1", "--kv-cache-gb", "0.05", "--max-num-seqs", "32"),
    *("--adapter-memory-gb", "0.05"),
)


@dataclass(frozen=True)
class ChaosModels:
    """What lies on disk."""

    model: Path
    lora: dict[str, Path]


def body(model: str, text: str, **fields: Any) -> dict[str, Any]:
    """A chat of ``NUM_TOKENS`` tokens of answer."""
    extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
    messages = [{"role": "user", "content": text}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "extra_body": extra,
        **fields,
    }


def chaos_cases(url: str, models: tuple[str, ...]) -> list[Case]:
    """Greedy, sampled, with penalties, stop strings, logprobs and two choices, in turn."""
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"temperature": 1.0, "seed": 11},
        "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4, "temperature": 0.8},
        "logprobs": {"logprobs": True, "top_logprobs": 3, "temperature": 0.9, "seed": 5},
        "two": {"n": 2, "temperature": 1.0, "seed": 23},
        "repetition": {"extra_body": {"repetition_penalty": 1.2, "min_tokens": 9}, "seed": 2},
    }
    kinds["penalties"]["seed"] = 3
    cases = [
        Case(f"{name} by {model}", body(model, f"Tell {model} of {name}, at length.", **fields))
        for model in models
        for name, fields in kinds.items()
    ]
    return [*cases, _stopped(url, models[0])]


def _stopped(url: str, model: str) -> Case:
    """A stop string that comes late in the answer, over a border of tokens."""
    asked = body(model, "Go on until you stop.", temperature=1.0, seed=77)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        text = client.chat.completions.create(**asked).choices[0].message.content
    assert text
    place = next(
        at for at in range(len(text) // 2, len(text)) if text.index(text[at : at + 3]) == at
    )
    return Case("stop string", {**asked, "stop": [text[place : place + 3]]})
