"""Every honoured parameter of chats and text completions does something, or its row here fails.

A row sends a request with its field and without: what the engine is asked, or what comes back,
has to differ. The names beside it are the tests that look at what the field is for.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fake_engine import FakeEngine
from tiny_models import EOS_TOKEN_ID, make_tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from branchline.engine.types import GenerationRequest
from branchline.server.app import create_app
from branchline.server.config import Limits
from branchline.server.openai import ACCEPTED, NEUTRAL, ChatRequest, CompletionRequest
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, make_client, make_services

TESTS = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ word }}{{ reasoning_effort }}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}}
SAMPLING, BASIC = "system/test_openai_sampling.py", "system/test_openai_basic.py"
APP, LOAD = "server/test_app.py", "system/test_openai_load.py"
SDK, EXTRAS = "system/test_sdk_openai.py", "system/test_openai_extras.py"


@dataclasses.dataclass(frozen=True)
class Row:
    """A value of a field, what has to be beside it, and the tests of what it means."""

    value: Any
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    tests: tuple[str, ...] = ()


def in_file(path: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{path}::{name}" for name in names)


FOUR_WAYS = in_file(EXTRAS, "test_a_choice_a_regex_a_grammar_and_a_schema")

BOTH: dict[str, Row] = {
    "model": Row(ADAPTER, tests=in_file(BASIC, "test_adapters_change_the_answer")),
    "stream": Row(True, tests=in_file(BASIC, "test_a_stream_says_what_the_whole_answer_says")),
    "stream_options": Row(
        {"include_usage": True},
        {"stream": True},
        in_file(SAMPLING, "test_continuous_usage"),
    ),
    "n": Row(2, tests=in_file(SAMPLING, "test_n_choices_are_different_and_repeatable")),
    "max_tokens": Row(2, tests=in_file(SAMPLING, "test_max_tokens")),
    "min_tokens": Row(2, tests=in_file(SAMPLING, "test_min_tokens")),
    "temperature": Row(0.5, tests=in_file(SAMPLING, "test_temperature")),
    "top_p": Row(0.5, tests=in_file(SAMPLING, "test_filters_down_to_the_likeliest")),
    "top_k": Row(5, tests=in_file(SAMPLING, "test_top_k_lets_k_tokens_through")),
    "min_p": Row(0.1, tests=in_file(SAMPLING, "test_filters_down_to_the_likeliest")),
    "repetition_penalty": Row(1.5, tests=in_file(SAMPLING, "test_repetition_penalty")),
    "presence_penalty": Row(-1, tests=in_file(SAMPLING, "test_presence_penalty_does_not_grow")),
    "frequency_penalty": Row(1, tests=in_file(SAMPLING, "test_frequency_penalty_grows_with_use")),
    "logit_bias": Row({"5": 1.5}, tests=in_file(SAMPLING, "test_logit_bias_forces_and_bans")),
    "seed": Row(2, tests=in_file(SAMPLING, "test_seed")),
    "priority": Row(3, tests=in_file("system/test_queue.py", "test_priority_goes_first")),
    "cache_salt": Row(
        "pepper",
        tests=in_file(
            "system/test_prefix_and_tenants.py", "test_salts_tenants_and_adapters_keep_apart"
        ),
    ),
    "stop": Row("l", tests=in_file(SAMPLING, "test_stop_strings_over_token_boundaries")),
    "stop_token_ids": Row([108], tests=in_file(SAMPLING, "test_stop_token_ids")),
    "include_stop_str_in_output": Row(
        True, {"stop": "l"}, in_file(SAMPLING, "test_include_stop_str_in_output")
    ),
    "ignore_eos": Row(True, tests=in_file(SAMPLING, "test_ignore_eos")),
    "skip_special_tokens": Row(False, tests=in_file(SAMPLING, "test_skip_special_tokens")),
    "return_token_ids": Row(True, tests=in_file(BASIC, "test_token_ids_come_back")),
    "prompt_logprobs": Row(
        1, tests=in_file(EXTRAS, "test_prompt_logprobs_are_of_the_prompts_tokens")
    ),
    "truncate_prompt_tokens": Row(
        1, tests=in_file(EXTRAS, "test_a_truncated_prompt_keeps_its_end")
    ),
    "allowed_token_ids": Row(
        [104, 105], tests=in_file(EXTRAS, "test_allowed_token_ids_are_all_there_is")
    ),
    "bad_words": Row(["x"], tests=in_file(EXTRAS, "test_bad_words_are_never_said")),
    "use_beam_search": Row(
        True, {"n": 2, "temperature": 0}, in_file(EXTRAS, "test_beam_search_finds_what_is_likelier")
    ),
    "length_penalty": Row(
        2.0,
        {"n": 2, "temperature": 0, "use_beam_search": True},
        in_file(EXTRAS, "test_length_penalty_prefers_long_or_short_answers"),
    ),
    "response_format": Row(
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        tests=in_file(SDK, "test_an_answer_is_parsed_into_a_class"),
    ),
    "structured_outputs": Row({"choice": ["yes", "no"]}, tests=FOUR_WAYS),
    "guided_json": Row(SCHEMA, tests=FOUR_WAYS),
    "guided_regex": Row("[ab]+", tests=FOUR_WAYS),
    "guided_choice": Row(["yes", "no"], tests=FOUR_WAYS),
    "guided_grammar": Row('start: "yes" | "no"', tests=FOUR_WAYS),
}
CHAT: dict[str, Row] = {
    **BOTH,
    "messages": Row(
        [{"role": "user", "content": "ho"}],
        tests=in_file(BASIC, "test_messages_in_parts_and_turns"),
    ),
    "add_special_tokens": Row(True, tests=in_file(APP, "test_special_tokens_come_once")),
    "max_completion_tokens": Row(
        2, tests=in_file(APP, "test_a_chat_knows_both_names_of_its_limit")
    ),
    "logprobs": Row(True, tests=in_file(BASIC, "test_chat_logprobs")),
    "top_logprobs": Row(2, {"logprobs": True}, in_file(BASIC, "test_chat_logprobs")),
    "add_generation_prompt": Row(
        False, tests=in_file(BASIC, "test_the_final_message_can_be_continued")
    ),
    "continue_final_message": Row(
        True,
        {"add_generation_prompt": False},
        in_file(BASIC, "test_the_final_message_can_be_continued"),
    ),
    "echo": Row(
        True,
        {"continue_final_message": True, "add_generation_prompt": False},
        in_file(EXTRAS, "test_a_chat_that_goes_on_begins_with_what_was_there"),
    ),
    "chat_template_kwargs": Row(
        {"word": "yes"}, tests=in_file(APP, "test_template_variables_and_refusals")
    ),
    "tools": Row([TOOL], tests=in_file(SDK, "test_a_tool_is_called_and_its_result_answered")),
    "tool_choice": Row(
        "required",
        {"tools": [TOOL]},
        in_file(SDK, "test_a_tool_is_called_and_its_result_answered"),
    ),
    "parallel_tool_calls": Row(
        False,
        {"tools": [TOOL], "tool_choice": "required"},
        in_file(EXTRAS, "test_one_call_where_parallel_calls_are_off"),
    ),
    "reasoning_effort": Row(
        "low",
        tests=in_file("server/test_reasoning.py", "test_effort_and_thinking_reach_the_template"),
    ),
}
COMPLETION: dict[str, Row] = {
    **BOTH,
    "prompt": Row([1, 2], tests=in_file(BASIC, "test_prompts_as_text_ids_and_batches_agree")),
    "add_special_tokens": Row(False, tests=in_file(APP, "test_special_tokens_come_once")),
    "best_of": Row(
        3, {"temperature": 1}, in_file(EXTRAS, "test_best_of_gives_the_likeliest_of_several")
    ),
    "echo": Row(True, tests=in_file(BASIC, "test_echo_gives_the_prompt_back")),
    "logprobs": Row(1, tests=in_file(BASIC, "test_text_logprobs")),
}
ROWS = [
    *(("/v1/chat/completions", name, row) for name, row in CHAT.items()),
    *(("/v1/completions", name, row) for name, row in COMPLETION.items()),
]


@dataclasses.dataclass(frozen=True)
class House:
    """One application for all rows."""

    engine: FakeEngine
    client: httpx.AsyncClient

    async def seen(self, path: str, fields: dict[str, Any]) -> tuple[Any, Any]:
        """What the engine was asked, and what came back, less what is drawn for each request."""
        start: dict[str, Any] = {"model": BASE, "seed": 1, "max_tokens": 20}
        start |= {"messages": USER} if path.startswith("/v1/chat") else {"prompt": "hi"}
        if "max_completion_tokens" in fields:
            del start["max_tokens"]
        self.engine.requests.clear()
        response = await self.client.post(path, json=start | fields)
        assert response.status_code == 200, response.text
        asked = [dataclasses.replace(one, request_id="") for one in self.engine.requests]
        return asked, answer_of(response)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Its tokenizer writes a start token before texts, as Llama's does."""
    directory = make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer = Tokenizer.from_directory(str(directory), TEMPLATE)
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    engine = FakeEngine(speak)
    async with make_client(create_app(make_services(tokenizer, engine))) as client:
        yield House(engine, client)


def speak(request: GenerationRequest) -> list[int]:
    """Say hello, the end and more, behind what is given."""
    given = list(request.output_token_ids)
    return [*given, *[*b"hello", EOS_TOKEN_ID, *b"x" * 100][len(given) :]]


def answer_of(response: httpx.Response) -> list[str]:
    """The body or its events, without ids and times."""
    kind = response.headers["content-type"]
    if not kind.startswith("text/event-stream"):
        body = response.json()
        return [kind, str({name: body[name] for name in body if name not in ("id", "created")})]
    events = [line for line in response.text.split("\n\n") if line]
    return [kind, *(line.partition('"model"')[2] for line in events)]


@pytest.mark.parametrize(
    ("path", "name", "row"), ROWS, ids=[f"{path.split('/')[2]}-{name}" for path, name, _ in ROWS]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_parameter_does_something(house: House, path: str, name: str, row: Row) -> None:
    without = await house.seen(path, row.beside)
    assert without == await house.seen(path, row.beside), "nothing else differs"
    assert without != await house.seen(path, {**row.beside, name: row.value})


@pytest.mark.parametrize(("body", "rows"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
def test_every_parameter_has_its_row(body: Any, rows: dict[str, Row]) -> None:
    assert set(rows) == set(body.model_fields)


def test_the_tests_named_are_there() -> None:
    assert all(row.tests for _, _, row in ROWS), "each has one"
    named = {test for _, _, row in ROWS for test in row.tests}
    files = {test.partition("::")[0] for test in named}
    assert named <= {f"{file}::{name}" for file in files for name in functions(TESTS / file)}


def test_the_documentation_names_every_parameter_and_limit() -> None:
    text = (TESTS.parent / "docs" / "api.md").read_text()
    limits = {field.name for field in dataclasses.fields(Limits)}
    named = {*CHAT, *COMPLETION, *ACCEPTED, *NEUTRAL, *limits}
    assert {name for name in named if f"`{name}`" not in text} == set()


def functions(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
