"""A tenant whose adapter brings tokens, an end and a template of its own, beside the base."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from adapter_texts import save_text
from fake_engine import FakeEngine, engine_info
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from branchline.engine.types import SamplingParams
from branchline.server.adapters.text import TextStore
from branchline.server.answer import Answer, collect
from branchline.server.catalog import Catalog, ServedModel
from branchline.server.chat import ChatWriter
from branchline.server.completion_writer import CompletionWriter
from branchline.server.config import Limits
from branchline.server.errors import ApiError
from branchline.server.generation import Generator, expand_choices
from branchline.server.metrics import ServerMetrics
from branchline.server.openai import ChatRequest, CompletionRequest
from branchline.server.prompt import Prompt, PromptReader
from branchline.server.sampling import SamplingContext, fit_max_tokens, sampling_params, with_seed
from branchline.server.text.template_runner import InlineTemplates, TemplateProcesses, Templates
from branchline.server.text.tokenizer import Tokenizer

from .conftest import Harness

TEMPLATE = "{% for m in messages %}<tool>{{ m['content'] }}{{ eos_token }}{% endfor %}"
TOOL, END, IM_END = 260, 261, 258
BASE = ServedModel("base", "/models/base")
LIMITS = Limits()
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def own(
    tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> ServedModel:
    """An adapter of 262 tokens: ``<tool>`` and the end ``<end>`` are its own."""
    directory = tmp_path_factory.mktemp("own")
    save_text(tokenizer_dir, directory, added=["<tool>", "<end>"], eos="<end>", template=TEMPLATE)
    text = TextStore(str(tokenizer_dir), tokenizer).read(directory)
    assert text is not None
    return ServedModel("own", str(directory), "digest", text.chat_template, text.tokenizer, 1, 262)


class House:
    """The way of a request, from a checked body to a whole answer."""

    def __init__(
        self, tokenizer: Tokenizer, script: Sequence[int], templates: Templates | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.engine = FakeEngine(lambda request: script, engine_info())
        self.prompts = PromptReader(tokenizer, 260, LIMITS, templates or InlineTemplates())
        self.context = SamplingContext(LIMITS, 260, 512, SamplingParams(max_tokens=None))
        metrics = ServerMetrics(Catalog("/models/base", ["base"]), lambda: self.engine.stats)
        self.generator = Generator(self.engine.generate, tokenizer, metrics)

    async def chat(self, model: ServedModel, **fields: Any) -> dict[str, Any]:
        body = ChatRequest.model_validate(BODY | fields)
        prompt = await self.prompts.chat(body, model)
        return await self._answer(body, prompt, model)

    async def complete(self, model: ServedModel, **fields: Any) -> dict[str, Any]:
        body = CompletionRequest.model_validate({"max_tokens": 9} | fields)
        [prompt] = await self.prompts.completion(body.prompt, True, model)
        return await self._answer(body, prompt, model)

    async def _answer(
        self, body: ChatRequest | CompletionRequest, prompt: Prompt, model: ServedModel
    ) -> dict[str, Any]:
        params = with_seed(sampling_params(body, self.context.of(model)))
        params = fit_max_tokens(params, len(prompt.token_ids), 512)
        choices = expand_choices([(prompt.token_ids, params)], model.digest)
        answer = Answer.open("id", body, model, [prompt], choices)
        tokenizer = model.tokenizer or self.tokenizer
        writer: ChatWriter | CompletionWriter
        if isinstance(body, ChatRequest):
            writer = ChatWriter(answer, tokenizer)
        else:
            writer = CompletionWriter(answer, tokenizer, body)
        whole = await collect(self.generator.run(choices, model, 0.0), writer)
        [choice] = msgspec.json.decode(whole)["choices"]
        assert isinstance(choice, dict)
        return choice


async def test_a_chat_through_its_own_template_and_tokens(
    tokenizer: Tokenizer, own: ServedModel
) -> None:
    house = House(tokenizer, [TOOL, *b"ok", END])
    choice = await house.chat(own, skip_special_tokens=False, return_token_ids=True)
    [request] = house.engine.requests
    assert request.prompt_token_ids == [TOOL, *b"hi", END]
    assert choice["message"]["content"] == "<tool>ok"
    assert choice["token_ids"] == [TOOL, *b"ok", END]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)


async def test_the_base_beside_it_is_as_ever(tokenizer: Tokenizer) -> None:
    house = House(tokenizer, [*b"ok", IM_END])
    choice = await house.chat(BASE)
    [request] = house.engine.requests
    assert request.prompt_token_ids == tokenizer.encode(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )
    assert request.params.stop_token_ids == ()
    assert (choice["message"]["content"], choice["stop_reason"]) == ("ok", None)


async def test_the_base_s_template_over_its_tokens(tokenizer: Tokenizer, own: ServedModel) -> None:
    house = House(tokenizer, [END])
    plain = ServedModel("plain", own.root, "digest", None, own.tokenizer, 1, 262)
    await house.chat(plain, messages=[{"role": "user", "content": "<tool>"}])
    [request] = house.engine.requests
    assert request.prompt_token_ids == [257, *b"user\n", TOOL, 258, *b"\n", 257, *b"assistant\n"]


async def test_both_ends_end_an_answer(tokenizer: Tokenizer, own: ServedModel) -> None:
    for end in (END, IM_END):
        choice = await House(tokenizer, [*b"ok", end]).complete(own, prompt="hi")
        assert (choice["text"], choice["finish_reason"]) == ("ok", "stop")
        assert choice["stop_reason"] is None


async def test_ends_can_be_ignored_and_named(tokenizer: Tokenizer, own: ServedModel) -> None:
    house = House(tokenizer, [*b"ok", END, *b"more!!"])
    choice = await house.complete(own, prompt="hi", ignore_eos=True, skip_special_tokens=False)
    assert choice["text"] == "ok<end>more!!"
    assert choice["finish_reason"] == "length"
    choice = await house.complete(own, prompt="hi", ignore_eos=True, stop_token_ids=[END])
    assert (choice["text"], choice["stop_reason"]) == ("ok", END)
    choice = await house.complete(own, prompt="hi", stop_token_ids=[END])
    assert (choice["text"], choice["stop_reason"]) == ("ok", None), "an end, whoever names it"
    choice = await house.complete(own, prompt="hi", stop_token_ids=[ord("k")])
    assert (choice["text"], choice["stop_reason"]) == ("o", ord("k"))


async def test_stop_strings_echo_and_logprobs_in_its_words(
    tokenizer: Tokenizer, own: ServedModel
) -> None:
    house = House(tokenizer, [*b"go", TOOL, *b"x", END])
    shown: dict[str, Any] = {"skip_special_tokens": False}
    choice = await house.complete(own, prompt="hi", stop="o<tool>", **shown)
    assert (choice["text"], choice["stop_reason"]) == ("g", "o<tool>")
    choice = await house.complete(own, prompt=[TOOL, 97], echo=True, **shown)
    assert choice["text"] == "<tool>ago<tool>x"
    choice = await house.complete(own, prompt="hi", logprobs=1, **shown)
    assert choice["logprobs"]["tokens"] == ["g", "o", "<tool>", "x", "<end>"]
    choice = await house.chat(own, logprobs=True, **shown)
    entry = choice["logprobs"]["content"][2]
    assert (entry["token"], bytes(entry["bytes"])) == ("<tool>", b"<tool>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 261]}, "prompt"),
        ({"prompt": "a", "stop_token_ids": [261]}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {"261": 1}}, "logit_bias"),
    ],
)
async def test_token_ids_are_checked_against_the_model_asked_for(
    tokenizer: Tokenizer, own: ServedModel, fields: dict[str, Any], param: str
) -> None:
    house = House(tokenizer, [END, IM_END])
    with pytest.raises(ApiError, match="vocabulary of 260 tokens") as caught:
        await house.complete(BASE, **fields)
    assert caught.value.param == param
    assert (await house.complete(own, **fields))["finish_reason"] == "stop"
    beyond = msgspec.json.decode(msgspec.json.encode(fields).replace(b"261", b"262"))
    with pytest.raises(ApiError, match="vocabulary of 262 tokens"):
        await house.complete(own, **beyond)


async def test_a_template_that_hangs_is_the_request_s_own_affair(
    tokenizer: Tokenizer, own: ServedModel
) -> None:
    """What a client sends decides; the limits are those of a process."""
    template = "{{ 9 ** (messages[0].content | int) }}{{ 'x' * (messages[0].content | int) }}"
    model = ServedModel("slow", own.root, "digest", template)
    templates = TemplateProcesses()
    house = House(tokenizer, [IM_END], templates)
    said = {"role": "user", "content": "2"}
    assert (await house.chat(model, messages=[said]))["finish_reason"] == "stop"
    assert house.engine.requests[-1].prompt_token_ids == [*b"81xx"]
    with pytest.raises(ApiError, match="longer than 2 s") as caught:
        await house.chat(model, messages=[said | {"content": "999999999"}])
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")
    assert (await house.chat(own))["finish_reason"] == "stop"
    await templates.close()


async def test_a_tokenizer_that_can_t_take_a_text(tokenizer: Tokenizer, own: ServedModel) -> None:
    backend = RustTokenizer(models.WordLevel({"one": 0}, "<unk>"))
    picky = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    model = ServedModel("picky", own.root, "digest", None, picky)
    with pytest.raises(ApiError, match="tokenizer does not take it") as caught:
        await House(tokenizer, [IM_END]).complete(model, prompt="two")
    assert (caught.value.status, caught.value.param) == (400, "prompt")


class Panic(BaseException):
    """As pyo3 has it: no Exception."""


async def test_a_tokenizer_that_panics_is_the_request_s_own_affair(
    tokenizer: Tokenizer, own: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an adapter's own is never heard on the event loop, however short the text."""
    threads: list[str] = []

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        threads.append(threading.current_thread().name)
        raise Panic("retry-limit-in-match over")

    assert own.tokenizer is not None
    monkeypatch.setattr(own.tokenizer, "encode", encode)
    with pytest.raises(ApiError, match="does not take it: retry-limit") as caught:
        await House(tokenizer, [IM_END]).complete(own, prompt="hi")
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    assert threads[0].startswith("tokenizer"), "beside disks and archives, which have their own"


async def test_long_prompts_do_not_wait_for_archives(tokenizer: Tokenizer) -> None:
    """Those fill asyncio's own threads."""
    go = threading.Event()
    num_threads = min(32, (os.cpu_count() or 1) + 4)
    unpacking = [asyncio.create_task(asyncio.to_thread(go.wait)) for _ in range(num_threads)]
    try:
        async with asyncio.timeout(10):
            reader = House(tokenizer, [IM_END]).prompts
            [prompt] = await reader.completion("a" * 4000, True, BASE)
        assert len(prompt.token_ids) == 4000
    finally:
        go.set()
        await asyncio.gather(*unpacking)


async def test_over_http_beside_the_base(harness: Harness, own: ServedModel) -> None:
    harness.services.catalog.put("own", {1: own}, 1)
    harness.engine.script = lambda request: [*b"ok", END if request.adapter else IM_END]
    mine, theirs = await asyncio.gather(
        harness.chat(model="own", return_token_ids=True), harness.chat(return_token_ids=True)
    )
    answer = mine.json()
    assert answer["prompt_token_ids"] == [TOOL, *b"hi", END]
    assert answer["choices"][0]["message"]["content"] == "ok"
    assert answer["choices"][0]["token_ids"] == [*b"ok", END]
    assert TOOL not in theirs.json()["prompt_token_ids"]
    assert theirs.json()["choices"][0]["message"]["content"] == "ok"
    refused = await harness.complete([END], model="base")
    assert refused.status_code == 400
    assert (await harness.complete([END], model="own")).status_code == 200
