"""Prefix keys and blocks: each key is tied to the last full block that its text needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, make_tiny_tokenizer

from branchline.engine.block_keys import keys_of
from branchline.engine.cache_types import Namespace
from branchline.engine.prefix_key import PrefixKey
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.gateway.prefix_keys import (
    CHUNK_BYTES,
    PrefixHasher,
    PrefixNamespace,
    chat_text,
    message_head,
    prompt_text,
    token_text,
)
from branchline.server.fleet.keys_text import chat_places, find_messages, num_tokens_at, token_ends
from branchline.server.fleet.keys_ties import BlockNames, KeyedPrompt, TieMaker
from branchline.server.text.tokenizer import Tokenizer

HASHER = PrefixHasher(b"s" * 32)
NAMES = BlockNames("m", 16, True)
MAKER = TieMaker(HASHER, NAMES)
TENANT = PrefixNamespace(isolation="tenant", owner="acme")
OWN = Namespace("m", tenant="acme")
# A real byte pair encoding, with tokens of many lengths.
SKILL = Path(__file__).resolve().parents[2] / "examples" / "skill" / "model"

TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
SHOUTING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")


@pytest.fixture(scope="module", params=["bytes", "pairs"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "pairs":
        return Tokenizer.from_directory(str(SKILL), CHAT_TEMPLATE)
    return Tokenizer.from_directory(str(make_tiny_tokenizer(tmp_path_factory.mktemp("tokens"))))


def keyed(
    tokenizer: Tokenizer, messages: Any, text: str | None, ids: list[int], **fields: Any
) -> KeyedPrompt:
    generation = GenerationRequest(
        request_id="r",
        prompt_token_ids=ids,
        params=SamplingParams(),
        tenant="acme",
        **fields.pop("generation", {}),
    )
    return KeyedPrompt(
        **{"generation": generation, "tokenizer": tokenizer, "messages": messages, "text": text}
        | {"add_special_tokens": False, "variant": b"", **fields}
    )


def chat(tokenizer: Tokenizer, messages: Any, template: str = CHAT_TEMPLATE) -> KeyedPrompt:
    text = tokenizer.render_chat(messages, chat_template=template)
    return keyed(tokenizer, messages, text, tokenizer.encode(text, False))


def blocks_of(ids: list[int], namespace: Namespace = OWN) -> list[bytes]:
    key = PrefixKey(16, namespace)
    key.extend_to(ids)
    return keys_of(key)


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [
    say("system", "Du bist höflich — und kurz. " * 20),
    say("user", "It was a bright cold day in April, and the clocks were striking. " * 9),
    say("assistant", "日本語のテキスト。" * 30),
    say("user", "  Go on?  \n"),
]


def needed_tokens(prompt: KeyedPrompt, end: int) -> int:
    """Tokens that are needed for the canonical text up to ``end``, counted one by one."""
    assert prompt.messages is not None
    assert prompt.text is not None
    start = place = 0
    for message in prompt.messages:
        start += len(message_head(message["role"]))
        content = message["content"].encode()
        place = prompt.text.encode().index(content, place)
        if end <= start + len(content):
            break
        start, place = start + len(content), place + len(content)
    upto = place + max(0, end - start)
    held = b""
    for number, token_id in enumerate(prompt.generation.prompt_token_ids):
        if len(held) >= upto:
            return number
        held += prompt.tokenizer.token_bytes(token_id)
    return len(prompt.generation.prompt_token_ids)


def test_each_key_of_a_chat_is_tied_to_the_last_full_block_of_its_text(
    tokenizer: Tokenizer,
) -> None:
    prompt = chat(tokenizer, TALK)
    keys = HASHER.keys(TENANT, chat_text(TALK))
    blocks = blocks_of(prompt.generation.prompt_token_ids)
    assert len(keys) == 8
    expected = [
        (key, blocks[needed_tokens(prompt, (index + 1) * CHUNK_BYTES) // 16 - 1])
        for index, key in enumerate(keys)
    ]
    assert MAKER.of_prompt(prompt).ties == expected


def test_the_next_turn_has_the_ties_of_the_answer(tokenizer: Tokenizer) -> None:
    """If its text is tokenized as it was generated, they are the very same."""
    reply = "Four score and seven years ago, our fathers brought forth. " * 15
    prompt = chat(tokenizer, TALK)
    answer = tokenizer.encode(reply, False)
    tied = MAKER.of_prompt(prompt)
    ties = MAKER.of_answer(prompt, tied, reply, [*answer, answer[0]])
    later = chat(tokenizer, [*TALK, say("assistant", reply), say("user", "And then?")])
    full = MAKER.of_prompt(later).ties
    assert len(ties) > 2
    assert tied.ties + ties == full[: len(tied.ties) + len(ties)]
    assert len(full) - len(tied.ties) - len(ties) <= 1


def test_text_and_token_ids_have_exact_ties(tokenizer: Tokenizer) -> None:
    text = "".join(message["content"] for message in TALK)
    ids = tokenizer.encode(text, False)
    prompt = keyed(tokenizer, None, text, ids)
    tied = MAKER.of_prompt(prompt)
    assert [key for key, _ in tied.ties] == HASHER.keys(TENANT, prompt_text(text))
    more = "and so it goes on. " * 30
    ties = MAKER.of_answer(prompt, tied, more, tokenizer.encode(more, False))
    assert [key for key, _ in tied.ties + ties] == HASHER.keys(TENANT, prompt_text(text + more))
    by_ids = keyed(tokenizer, None, None, ids)
    tied = MAKER.of_prompt(by_ids)
    blocks = blocks_of(ids + ids)
    keys = HASHER.keys(TENANT, token_text(ids + ids))
    ties = tied.ties + MAKER.of_answer(by_ids, tied, "?", ids)
    # The first chunk holds 63 tokens: four bytes say what it is.
    assert ties == [(key, blocks[(63 + 64 * n) // 16 - 1]) for n, key in enumerate(keys)]


@pytest.mark.parametrize("template", [TRIMMING, SHOUTING])
def test_what_a_template_changes_comes_later_never_earlier(
    tokenizer: Tokenizer, template: str
) -> None:
    messages = [say(one["role"], f"  {one['content']} \n\n") for one in TALK]
    prompt = chat(tokenizer, messages, template)
    ids, canonical = prompt.generation.prompt_token_ids, chat_text(messages)
    blocks, ties = blocks_of(ids), MAKER.of_prompt(prompt).ties
    assert [key for key, _ in ties] == HASHER.keys(TENANT, canonical)
    for index, (_, block) in enumerate(ties):
        # What a block more would hold is not needed in full.
        covered = ids[: (blocks.index(block) + 1) * 16 + 15]
        shown = b"".join(map(tokenizer.token_bytes, covered))
        shown = re.sub(rb"<.im_start.>[a-z]*\n|<.im_end.>\n", b"", shown)
        said = re.sub(rb"\xff[^\xfd]*(\xfd|$)", b"", canonical[: (index + 1) * CHUNK_BYTES])
        assert num_letters(shown) >= num_letters(said)


def num_letters(text: bytes) -> int:
    return sum(map(str.isalnum, text.decode(errors="ignore")))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.data())
def test_places_are_found_however_alike_contents_are(contents: list[str], data: Any) -> None:
    messages = [say("user", content) for content in contents]
    rendered = b"".join(
        b"<u>" + m["content"].encode("utf-8", "replace") + b"</u>" for m in messages
    )
    length = len(rendered)
    ends = sorted(data.draw(st.lists(st.integers(1, len(chat_text(messages))), max_size=9)))
    places = list(chat_places(find_messages(messages, rendered), ends, length))
    assert places == sorted(places)
    assert all(0 <= place <= length for place in places)


def test_namespaces_of_keys_and_of_blocks(tokenizer: Tokenizer) -> None:
    ids = list(b"x" * 1000)
    cases: list[tuple[dict[str, Any], PrefixNamespace, Namespace]] = [
        ({}, TENANT, OWN),
        (
            {"generation": {"adapter": "d", "cache_salt": "s"}},
            PrefixNamespace(adapter="d", isolation="tenant", owner="acme", salt="s"),
            Namespace("m", "d", "acme", "s"),
        ),
        (
            {"generation": {"adapter": "d"}, "uses_base_prefix": True},
            TENANT,
            OWN,
        ),
        (
            {"generation": {"cache_group": "g"}, "variant": b"v"},
            PrefixNamespace(isolation="group", owner="g", variant=b"v"),
            Namespace("m", group="g"),
        ),
    ]
    for fields, namespace, own in cases:
        [first, *_] = MAKER.of_prompt(keyed(tokenizer, None, None, ids, **fields)).ties
        assert first[0] == HASHER.keys(namespace, token_text(ids))[0]
        assert first[1] in blocks_of(ids, own)
    shared = TieMaker(HASHER, BlockNames("m", 16, False))
    [first, *_] = shared.of_prompt(keyed(tokenizer, None, None, ids)).ties
    assert first[0] == HASHER.keys(TENANT, token_text(ids))[0]
    assert first[1] in blocks_of(ids, Namespace("m"))


def test_short_prompts_and_long_answers(tokenizer: Tokenizer) -> None:
    for num_tokens in (1, 15, 16, 17):
        prompt = keyed(tokenizer, None, None, [7] * num_tokens)
        tied = MAKER.of_prompt(prompt)
        assert tied.ties == []
        ties = MAKER.of_answer(prompt, tied, "", [8] * 200)
        keys = HASHER.keys(TENANT, token_text([7] * num_tokens + [8] * 200))
        blocks = blocks_of([7] * num_tokens + [8] * 200)
        assert ties == [(key, blocks[(63 + 64 * n) // 16 - 1]) for n, key in enumerate(keys)]


class Changing:
    """A tokenizer that changes a text before it takes it apart."""

    def __init__(self, ids: list[int], ends: list[int]) -> None:
        self._told = ids, ends

    def num_bytes(self, token_id: int) -> int:
        return 99

    def token_bytes(self, token_id: int) -> bytes:
        return b"?" * 99

    def is_special(self, token_id: int) -> bool:
        return False

    def character_ends(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        return self._told


def test_a_tokenizer_that_changes_the_text_is_asked_for_its_offsets():
    changing: Any = Changing([1, 2, 3], [1, 3, 0])
    assert list(token_ends(changing, "aéb", [1, 2, 3], False) or ()) == [1, 4, 4]
    assert list(token_ends(changing, "abc", [1, 2, 3], False) or ()) == [1, 3, 3]
    assert token_ends(changing, "abc", [1, 2, 4], False) is None


def test_special_tokens_around_a_text_are_not_of_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello there", False)
    around = [tokenizer.encode("<|im_start|>", False)[0], *ids]
    ends = token_ends(tokenizer, "hello there", around, True)
    assert ends is not None
    assert (ends[0], ends[-1]) == (0, 11)
    assert [num_tokens_at(ends, place) for place in (0, 11, 99)] == [0, len(around), len(around)]
