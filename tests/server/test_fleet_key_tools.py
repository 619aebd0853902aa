"""Prefix keys of chats with tools: calls and results, and what of an answer is sent back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny_models import make_tiny_tokenizer

from branchline.engine.cache_types import Namespace
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.gateway.prefix_keys import (
    CHUNK_BYTES,
    PrefixHasher,
    PrefixNamespace,
    chat_text,
)
from branchline.server.fleet.keys_text import find_messages
from branchline.server.fleet.keys_ties import BlockNames, KeyedPrompt, TieMaker
from branchline.server.text.tokenizer import Tokenizer

HASHER = PrefixHasher(b"s" * 32)
MAKER = TieMaker(HASHER, BlockNames("m", 16, True))
OWN = PrefixNamespace(isolation="tenant", owner="acme")

ARGUMENTS = '{"city": "' + "Llanfairpwllgwyngyll" * 20 + '"}'
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather there? " * 12},
    {
        "role": "assistant",
        "content": "I shall see.",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "get", "arguments": ARGUMENTS}}
        ],
    },
    {"role": "tool", "content": "It rains, and it will rain. " * 20},
]


def rendered(arguments: str) -> str:
    """As many templates write it."""
    call = f'<tool_call>\n{{"name": "get", "arguments": {arguments}}}\n</tool_call>'
    return (
        f"<|im_start|>user\n{TALK[0]['content']}<|im_end|>\n"
        f"<|im_start|>assistant\nI shall see.\n{call}<|im_end|>\n"
        f"<|im_start|>tool\n{TALK[2]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(str(make_tiny_tokenizer(tmp_path_factory.mktemp("tokens"))))


def keyed(tokenizer: Tokenizer, messages: list[Any], text: str, **fields: Any) -> KeyedPrompt:
    generation = GenerationRequest(
        request_id="r",
        prompt_token_ids=tokenizer.encode(text, False),
        params=SamplingParams(),
        tenant="acme",
    )
    return KeyedPrompt(
        generation=generation,
        tokenizer=tokenizer,
        messages=messages,
        text=text,
        add_special_tokens=False,
        variant=b"",
        **fields,
    )


def num_tokens_of(prompt: KeyedPrompt, block: bytes) -> int:
    ids = prompt.generation.prompt_token_ids
    blocks, _ = MAKER._names.chain(None, Namespace("m", tenant="acme"), ids)
    return (blocks.index(block) + 1) * 16


@pytest.mark.parametrize("arguments", [ARGUMENTS, ARGUMENTS.replace(": ", ":")])
def test_keys_go_on_through_calls_and_results(tokenizer: Tokenizer, arguments: str) -> None:
    """Also where a template writes the arguments with other blanks."""
    text = rendered(arguments)
    prompt = keyed(tokenizer, TALK, text)
    ties = MAKER.of_prompt(prompt).ties
    canonical = chat_text(TALK)
    assert [key for key, _ in ties] == HASHER.keys(OWN, canonical)
    for index, (_, block) in enumerate(ties):
        said = canonical[: (index + 1) * CHUNK_BYTES]
        # What a block more would hold is not needed in full.
        covered = prompt.generation.prompt_token_ids[: num_tokens_of(prompt, block) + 15]
        last = re.split(rb"[\xf9-\xff]", said)[-1][-16:]
        if arguments == ARGUMENTS or b"\xfftool\xfd" in said:
            assert last in b"".join(map(tokenizer.token_bytes, covered))
    places = find_messages(TALK, text.encode())
    assert len(places) == (4 if arguments == ARGUMENTS else 3)


def test_an_answer_is_sent_back_as_its_content(tokenizer: Tokenizer) -> None:
    """Neither as its reasoning, which is before it, nor as its calls, which are behind it."""
    content = "I shall look out of the window. " * 30
    raw = f'{content}<tool_call>{{"name": "get", "arguments": {{}}}}</tool_call>'
    messages = TALK[:1]
    text = f"<|im_start|>user\n{TALK[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    prompt = keyed(tokenizer, messages, text, shown=lambda text: text.partition("<tool_call>")[0])
    tied = MAKER.of_prompt(prompt)
    ties = tied.ties + MAKER.of_answer(prompt, tied, raw, tokenizer.encode(raw, False))
    call = {"id": "c", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    later = [*messages, {"role": "assistant", "content": content, "tool_calls": [call]}, TALK[2]]
    keys = HASHER.keys(OWN, chat_text(later))
    num_said = len(chat_text([*messages, {"role": "assistant", "content": content}]))
    assert [key for key, _ in ties] == keys[: num_said // CHUNK_BYTES]
    assert len(ties) >= 4

    thinking = keyed(tokenizer, messages, text, shown=lambda text: text.partition("</think>")[2])
    said = f"<think>{'hm ' * 300}</think>{content}"
    assert MAKER.of_answer(thinking, tied, said, tokenizer.encode(said, False)) == []
