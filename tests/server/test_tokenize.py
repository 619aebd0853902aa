"""``/tokenize`` and ``/detokenize``: vLLM's shapes, adapters' own tokenizers, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, engine_info
from tiny_models import make_tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from branchline.server.app import create_app
from branchline.server.catalog import ServedModel
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, TEMPLATED, Harness, make_client, make_services

CHAT: list[Any] = [{"role": "user", "content": "hi"}]


async def tokenize(harness: Harness, **fields: Any) -> dict[str, Any]:
    response = await harness.post("/tokenize", {"model": BASE, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_a_text(harness: Harness) -> None:
    assert await tokenize(harness, prompt="hé") == {
        "count": 3,
        "max_model_len": 512,
        "tokens": list("hé".encode()),
        "token_strs": None,
    }
    assert (await tokenize(harness, prompt=""))["tokens"] == []


async def test_tokens_as_the_vocabulary_has_them(harness: Harness) -> None:
    found = await tokenize(harness, prompt="a b<|im_end|>", return_token_strs=True)
    assert found["token_strs"] == ["a", "Ġ", "b", "<|im_end|>"]


async def test_a_chat_is_what_a_completion_would_compute(harness: Harness) -> None:
    found = await tokenize(harness, messages=CHAT)
    await harness.chat("hi")
    assert found["tokens"] == harness.engine.requests[0].prompt_token_ids
    without = await tokenize(harness, messages=CHAT, add_generation_prompt=False)
    assert without["count"] < found["count"]
    turns = [*CHAT, {"role": "assistant", "content": "so"}]
    going_on = await tokenize(
        harness, messages=turns, continue_final_message=True, add_generation_prompt=False
    )
    text = harness.services.tokenizer.decode(going_on["tokens"])
    assert text.endswith("<|im_start|>assistant\nso")


async def test_an_adapters_template(harness: Harness) -> None:
    found = await tokenize(harness, model=TEMPLATED, messages=CHAT)
    assert bytes(found["tokens"]) == b"[user] hi\n"


async def test_longer_than_the_context_is_no_fault(harness: Harness) -> None:
    found = await tokenize(harness, prompt="x" * 5000)
    assert (found["count"], found["max_model_len"]) == (5000, 512)
    strings = await tokenize(harness, prompt="x" * 9000, return_token_strs=True)
    assert strings["token_strs"] == ["x"] * 9000


async def test_special_tokens_where_they_are_wanted(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(str(tmp_path))
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    app = create_app(make_services(tokenizer, FakeEngine()))
    async with make_client(app) as client:

        async def tokens(**fields: Any) -> list[int]:
            body = {"model": BASE, **fields}
            found: list[int] = (await client.post("/tokenize", json=body)).json()["tokens"]
            return found

        assert await tokens(prompt="a") == [256, 97]
        assert await tokens(prompt="a", add_special_tokens=False) == [97]
        assert await tokens(prompt="") == [256]
        assert (await tokens(messages=CHAT))[0] != 256
        assert (await tokens(messages=CHAT, add_special_tokens=True))[0] == 256


async def test_an_adapters_own_tokenizer(harness: Harness, tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    own = Tokenizer.from_directory(str(tmp_path))
    own.backend.add_tokens(["hello"])
    model = ServedModel("own", "/a", "digest-o", tokenizer=own, version=1, vocab_size=261)
    harness.services.catalog.put("own", {1: model}, 1)
    found = await tokenize(harness, model="own", prompt="hello", return_token_strs=True)
    assert found["token_strs"] == ["hello"]
    response = await harness.post("/detokenize", {"model": "own", "tokens": found["tokens"]})
    assert response.json() == {"prompt": "hello"}
    refused = await harness.post("/detokenize", {"model": BASE, "tokens": found["tokens"]})
    assert refused.status_code == 400


async def test_without_a_model_it_is_the_base(harness: Harness) -> None:
    response = await harness.post("/tokenize", {"prompt": "a"})
    assert response.json()["tokens"] == [97]
    response = await harness.post("/detokenize", {"tokens": [97, 98]})
    assert response.json() == {"prompt": "ab"}


async def test_text_comes_back(harness: Harness) -> None:
    words = "Ünïcode 🌱 and\n<|im_end|> more " * 700
    found = await tokenize(harness, prompt=words)
    response = await harness.post("/detokenize", {"model": BASE, "tokens": found["tokens"]})
    assert response.json() == {"prompt": words}
    empty = await harness.post("/detokenize", {"model": BASE, "tokens": []})
    assert empty.json() == {"prompt": ""}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
    ("/tokenize", {"prompt": ["a"]}, "prompt"),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": [{"role": "x", "content": ""}]}, "messages[0].role"),
    ("/tokenize", {"messages": CHAT * 9000}, "messages"),
    ("/tokenize", {"prompt": "a", "temperature": 1}, "temperature"),
    ("/tokenize", {"prompt": "a", "model": "nobody"}, "model"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "ab"}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [260]}, "tokens"),
    ("/detokenize", {"tokens": [True]}, "tokens[0]"),
    ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
    ("/detokenize", {"tokens": [97] * ((1 << 18) + 1)}, "tokens"),
    ("/detokenize", {"tokens": [1], "stream": True}, "stream"),
]


@pytest.mark.parametrize(("path", "fields", "field"), REFUSED)
async def test_a_refusal_names_the_field(
    harness: Harness, errors_of: Any, path: str, fields: dict[str, Any], field: str
) -> None:
    response = await harness.post(path, {"model": BASE, **fields})
    status = 404 if field == "model" else 400
    assert errors_of(response, status)["param"] == field


async def test_huge_ids_are_refused(harness: Harness, errors_of: Any) -> None:
    response = await harness.post("/detokenize", {"model": BASE, "tokens": [10**30]})
    assert errors_of(response, 400)["param"].startswith("tokens")


async def test_a_larger_vocabulary_of_the_model(tokenizer: Tokenizer) -> None:
    """Ids that the model has and its tokenizer does not say nothing."""
    app = create_app(make_services(tokenizer, FakeEngine(info=engine_info(vocab_size=300))))
    async with make_client(app) as client:
        body = {"model": BASE, "tokens": [97, 299]}
        assert (await client.post("/detokenize", json=body)).json() == {"prompt": "a"}
