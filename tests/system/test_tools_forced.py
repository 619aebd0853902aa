"""A model of random weights calls tools where it has to: the grammar leaves it nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import tool_templates
from jsonschema import Draft202012Validator
from server_process import serve
from tiny_models import make_tiny_model

BASE = "base"
pytestmark = pytest.mark.slow

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Bonn", "Köln"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "where": {"$ref": "#/$defs/Side"},
    },
    "required": ["city", "days", "where"],
    "additionalProperties": False,
    "$defs": {"Side": {"enum": ["left", "right"]}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]
MESSAGES: Any = [{"role": "user", "content": "Weather?"}]
FLAGS = (
    *("--served-model-name", BASE, "--dtype", "float32", "--device", "cpu"),
    *("--num-threads", "1", "--kv-cache-gb", "0.05", "--adapter-memory-gb", "0.05"),
)


def test_forced_calls_fit_their_schemas(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", "llama", max_position_embeddings=4096)
    for name in ("HERMES", "LLAMA3"):
        template = tmp_path / f"{name}.jinja"
        template.write_text(getattr(tool_templates, name))
        with serve(model, *FLAGS, "--chat-template", str(template)) as server:
            client = openai.OpenAI(base_url=server.api_url, api_key="x", max_retries=0)
            for seed in range(2):
                check_calls(client, "required", seed)
                named = {"type": "function", "function": {"name": "get_weather"}}
                assert check_calls(client, named, seed) == "get_weather"


def check_calls(client: openai.OpenAI, choice: Any, seed: int) -> str:
    """Whole and streamed answers are the same call, and it fits; returns its name."""
    options: dict[str, Any] = {
        "model": BASE,
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 600,
        "seed": seed,
    }
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        Draft202012Validator(SCHEMA).validate(arguments)
    else:
        assert arguments == {}
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion().choices[0]
    [streamed] = final.message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
    return call.function.name
