"""An adapter's own tokenizer and template: read, shared, refused."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_texts import edit_json, save_text
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from branchline.lora.errors import AdapterError
from branchline.server.adapters.text import (
    TEXT_FILES,
    AdapterText,
    TextStore,
    check_vocabulary,
    copy_text,
)
from branchline.server.text.template_runner import TemplateProcesses
from branchline.server.text.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}<tool>{{ m['content'] }}{{ eos_token }}{% endfor %}"
TEXTS = ("hello <tool> world", "<tool>", "é😀 <|im_end|><tool>x", " spaces  and\nlines ")


@pytest.fixture(scope="module")
def store(tokenizer_dir: Path, tokenizer: Tokenizer) -> TextStore:
    return TextStore(str(tokenizer_dir), tokenizer)


@pytest.fixture
def own(tokenizer_dir: Path, tmp_path: Path) -> Path:
    return save_text(tokenizer_dir, tmp_path / "own", added=["<tool>", "<end>"], eos="<end>")


def read(store: TextStore, directory: Path) -> AdapterText:
    text = store.read(directory)
    assert text is not None
    return text


def read_tokenizer(store: TextStore, directory: Path) -> Tokenizer:
    tokenizer = read(store, directory).tokenizer
    assert tokenizer is not None
    return tokenizer


def test_what_says_the_same_as_the_base_is_none(
    store: TextStore, tokenizer_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert store.read(tmp_path / "empty") is None
    copy_text(tokenizer_dir, tmp_path / "copy")
    assert store.read(tmp_path / "copy") is None
    saved = save_text(tokenizer_dir, tmp_path / "saved")
    assert store.read(saved) is None
    file = saved / "tokenizer.json"
    raw = json.loads(file.read_text())
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_id": 259}
    file.write_text(json.dumps(raw | {"padding": padding}, indent=1))
    edit_json(saved / "tokenizer_config.json", model_max_length=99, auto_map={"AutoTokenizer": "x"})
    assert store.read(saved) is None, "how it is written and how a trainer pads says nothing"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_what_transformers_makes_of_them(
    store: TextStore, own: Path, text: str, special: bool
) -> None:
    reference = AutoTokenizer.from_pretrained(own)
    tokenizer = read_tokenizer(store, own)
    ids = tokenizer.encode(text, add_special_tokens=special)
    assert ids == reference.encode(text, add_special_tokens=special)
    assert tokenizer.decode(ids) == reference.decode(ids)
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == reference.decode(ids, skip_special_tokens=True)


def test_added_tokens_have_their_bytes_and_ids(store: TextStore, own: Path) -> None:
    tokenizer = read_tokenizer(store, own)
    assert tokenizer.encode("<tool><end>", add_special_tokens=False) == [260, 261]
    assert tokenizer.token_bytes(260) == b"<tool>"
    assert tokenizer.is_special(261)
    assert tokenizer.num_ids == 262
    assert tokenizer.end_token_ids == {261}


def test_the_base_keeps_its_own(store: TextStore, own: Path, tokenizer: Tokenizer) -> None:
    read(store, own)
    assert 260 not in tokenizer.encode("<tool>", add_special_tokens=False)
    assert tokenizer.num_ids == 260
    assert tokenizer.end_token_ids == frozenset()


def test_another_end_alone_makes_another_tokenizer(
    store: TextStore, tokenizer_dir: Path, tmp_path: Path
) -> None:
    edit_json(tmp_path / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
    tokenizer = read_tokenizer(store, tmp_path)
    assert tokenizer.end_token_ids == {256}
    assert tokenizer.encode("a<|im_end|>", add_special_tokens=False) == [97, 258]


def test_a_vocabulary_of_its_own(
    store: TextStore, tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_text(tokenizer_dir, tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert "ab" not in model["vocab"]
    model["vocab"]["ab"] = 999
    edit_json(tmp_path / "tokenizer.json", model=model | {"merges": [["a", "b"]]})
    own = read_tokenizer(store, tmp_path)
    assert own.encode("aba", add_special_tokens=False) == [999, 97]
    assert own.num_ids == 1000
    assert tokenizer.encode("ab", add_special_tokens=False) == [97, 98]


def test_equal_tokenizers_are_one_and_go_with_the_last(
    store: TextStore, tokenizer_dir: Path, tmp_path: Path
) -> None:
    one = save_text(tokenizer_dir, tmp_path / "one", added=["<a>"])
    two = save_text(tokenizer_dir, tmp_path / "two", added=["<a>"], template=TEMPLATE)
    first, second = read(store, one), read(store, two)
    assert first.tokenizer is second.tokenizer
    assert first.text_digest != second.text_digest
    assert first.chat_template is None, "the base's own, shipped once more"
    assert second.chat_template == TEMPLATE
    alive = weakref.ref(first.tokenizer)
    del first
    gc.collect()
    assert alive() is not None
    del second
    gc.collect()
    assert alive() is None


def test_the_vocabulary_is_shared_with_the_base(
    store: TextStore, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added tokens never load a vocabulary again: that takes time from every stream."""
    loaded: list[int] = []
    from_buffer = RustTokenizer.from_buffer

    def counting(data: bytes) -> RustTokenizer:
        loaded.append(len(data))
        return from_buffer(data)

    read(store, own)
    edit_json(own / "tokenizer_config.json", eos_token="<tool>")
    monkeypatch.setattr("branchline.server.adapters.tokenizer.RustTokenizer", _Counting(counting))
    assert read_tokenizer(store, own).end_token_ids == {260}
    assert max(loaded) < 2000 < (own / "tokenizer.json").stat().st_size


class _Counting:
    def __init__(self, from_buffer: Callable[[bytes], RustTokenizer]) -> None:
        self.from_buffer = from_buffer

    def __call__(self, model: Any) -> RustTokenizer:
        return RustTokenizer(model)


def test_a_copy_takes_no_more_than_is_read(store: TextStore, own: Path, tmp_path: Path) -> None:
    with (own / "tokenizer_config.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(AdapterError, match="larger than 8 MiB") as caught:
        copy_text(own, tmp_path / "copy")
    assert caught.value.field == "tokenizer_config.json"


def test_a_copy_says_the_same(store: TextStore, own: Path, tmp_path: Path) -> None:
    (own / "chat_template.jinja").write_text(TEMPLATE)
    (own / "adapter_config.json").write_text("{}")
    copy_text(own, tmp_path / "copy")
    assert {file.name for file in (tmp_path / "copy").iterdir()} <= set(TEXT_FILES)
    assert read(store, tmp_path / "copy") == read(store, own)


def test_a_template_in_the_config(store: TextStore, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    for template in (TEMPLATE, named):
        edit_json(file, chat_template=template, eos_token="<|im_end|>", pad_token="<|pad|>")
        text = read(store, tmp_path)
        assert (text.chat_template, text.tokenizer) == (TEMPLATE, None)


def test_the_vocabulary_has_every_id(store: TextStore, own: Path) -> None:
    text = read(store, own)
    check_vocabulary(None, 1)
    check_vocabulary(text, 262)
    with pytest.raises(
        AdapterError, match=r"ids up to 261, .* has 260 ids.*embed_tokens"
    ) as caught:
        check_vocabulary(text, 260)
    assert caught.value.field == "tokenizer.json"


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)


def _config(**fields: Any) -> Callable[[Path], object]:
    return lambda directory: edit_json(directory / "tokenizer_config.json", **fields)


def _tokenizer(**fields: Any) -> Callable[[Path], object]:
    return lambda directory: edit_json(directory / "tokenizer.json", **fields)


_FAR = {"content": "<far>", "single_word": False, "lstrip": False, "rstrip": False}
_FAR |= {"normalized": False, "special": True}

BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no JSON": (_write("tokenizer.json", "{"), "tokenizer.json", "no JSON"),
    "a list": (_write("tokenizer.json", "[]"), "tokenizer.json", "no JSON object"),
    "deep": (_write("tokenizer.json", '{"model":' + "[" * 99_999), "tokenizer.json", ""),
    "no model": (_tokenizer(model=None), "tokenizer.json", "has no model"),
    "odd model": (_tokenizer(model={"type": "Odd"}), "tokenizer.json", "makes no tokenizer"),
    "odd step": (_tokenizer(decoder={"type": "Odd"}), "tokenizer.json", "its decoder is not"),
    "far id": (_tokenizer(added_tokens=[_FAR | {"id": 7000}]), "tokenizer.json", "'<far>'"),
    "large": (_write("tokenizer.json", b" " * (64 << 20) + b"{}"), "tokenizer.json", "64 MiB"),
    "config list": (_write("tokenizer_config.json", "[]"), "tokenizer_config.json", "object"),
    "config text": (_write("tokenizer_config.json", "{,"), "tokenizer_config.json", "no JSON"),
    "odd extras": (_config(extra_special_tokens=5), "tokenizer_config.json", ""),
    "lost token": (
        _config(added_tokens_decoder={"300": {"content": "<lost>"}}),
        "tokenizer.json",
        "'<lost>' is to have the id 300",
    ),
    "slow tokens": (
        _write("added_tokens.json", '{"<slow>": 260}'),
        "tokenizer.json",
        "save the fast tokenizer",
    ),
    "template": (
        _write("chat_template.jinja", "{% for m in messages %}"),
        "chat_template.jinja",
        "endfor",
    ),
    "template filter": (
        _config(chat_template="{{ messages | nothing }}"),
        "tokenizer_config.json",
        "nothing",
    ),
    "template bytes": (_write("chat_template.jinja", b"\xff"), "chat_template.jinja", "UTF-8"),
    "template size": (
        _write("chat_template.jinja", b"x" * (1 << 20) + b"x"),
        "chat_template.jinja",
        "1 MiB",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_refused(
    store: TextStore, tokenizer_dir: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    break_it, field, reason = BROKEN[kind]
    break_it(tmp_path)
    with pytest.raises(AdapterError) as caught:
        store.read(tmp_path)
    assert caught.value.field == field
    assert reason in caught.value.message
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert store.read(tokenizer_dir) is None


async def test_a_template_that_takes_too_much_is_refused(
    tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """By a process of its own, while the event loop goes on."""
    templates = TemplateProcesses()
    store = TextStore(str(tokenizer_dir), tokenizer, templates)
    file = tmp_path / "chat_template.jinja"
    for template, reason in {
        "{% set x = 9**(9**9) %}": "took longer than 2 s",
        "{{ 'a' * 10**10 }}": "more memory than it may",
        "{{ 'a' * 2**25 }}": "gave 33554432 characters",
        "{% for m in messages %}": "endfor",
    }.items():
        file.write_text(template)
        with pytest.raises(AdapterError, match=reason) as caught:
            await asyncio.to_thread(store.read, tmp_path)
        assert caught.value.field == "chat_template.jinja"
    file.write_text("{{ raise_exception('not this chat') }}")
    assert await asyncio.to_thread(store.read, tmp_path) is not None
    await templates.close()


def test_code_in_a_directory_is_never_run(store: TextStore, own: Path) -> None:
    (own / "evil.py").write_text("raise SystemExit('ran')")
    edit_json(
        own / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        tokenizer_class="EvilTokenizer",
        vocab_file="/etc/passwd",
        init_inputs=["x"],
    )
    assert read_tokenizer(store, own).num_ids == 262
