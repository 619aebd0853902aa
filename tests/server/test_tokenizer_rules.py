"""What an adapter's tokenizer.json may say, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapter_texts import edit_json, save_text

from branchline.lora.errors import AdapterError
from branchline.server.adapters.text import TextStore
from branchline.server.text.tokenizer import Tokenizer

TEXT = {"Sequence": {"id": "A", "type_id": 0}}
END = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
LOWER = {"type": "Lowercase"}
REGEX = {
    "type": "Split",
    "pattern": {"Regex": "(?:a|a|a){11}c"},
    "behavior": "Isolated",
    "invert": False,
}
GROWING = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}] * 8,
}
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def frame(*single: Any, ids: tuple[int, ...] = (258,)) -> dict[str, Any]:
    token = {"id": "<|im_end|>", "ids": list(ids), "tokens": ["<|im_end|>"] * len(ids)}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": list(single),
        "pair": [TEXT, second],
        "special_tokens": {"<|im_end|>": token},
    }


def with_own_word(model: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary as large as the base's, with one word that it does not have."""
    words = model["vocab"]
    return model | {"vocab": {("own" if n == 7 else w): n for w, n in words.items()}}


@pytest.fixture
def file(tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A tokenizer.json beside the base's, with one token more."""
    return save_text(tokenizer_dir, tmp_path, added=["<tool>"]) / "tokenizer.json"


@pytest.fixture(scope="module")
def store(tokenizer_dir: Path, tokenizer: Tokenizer) -> TextStore:
    return TextStore(str(tokenizer_dir), tokenizer)


def encode(store: TextStore, file: Path, text: str) -> list[int]:
    found = store.read(file.parent)
    assert found is not None
    assert found.tokenizer is not None
    return found.tokenizer.encode(text, add_special_tokens=True)


@pytest.mark.parametrize("own_model", [False, True])
@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("normalizer", LOWER),
        ("normalizer", GROWING),
        ("pre_tokenizer", REGEX),
        ("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [REGEX, BYTE_LEVEL]}),
        ("pre_tokenizer", {k: v for k, v in BYTE_LEVEL.items() if k != "use_regex"}),
        ("decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        ("post_processor", {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
        ("post_processor", {"type": "Sequence", "processors": [frame(TEXT, END)] * 5}),
        ("post_processor", {"type": "Sequence", "processors": [{"type": "Sequence"}]}),
        ("post_processor", frame(TEXT, TEXT)),
        ("post_processor", frame(END)),
        ("post_processor", frame(TEXT, *[END] * 65)),
        ("post_processor", frame(TEXT, END, ids=(258,) * 65)),
    ],
)
def test_other_steps_are_refused(
    store: TextStore, file: Path, section: str, value: Any, own_model: bool
) -> None:
    before = json.loads(file.read_text())
    assert before[section] != value
    edit_json(file, **{section: value})
    if own_model:
        edit_json(file, model=with_own_word(before["model"]))
    with pytest.raises(AdapterError, match=f"its {section} ") as caught:
        store.read(file.parent)
    assert caught.value.field == "tokenizer.json"


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (frame(TEXT, END), [97, 258]),
        (frame(END, TEXT, END), [258, 97, 258]),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, frame(TEXT, END)]}, [97, 258]),
        (BYTE_LEVEL, [97]),
        (None, [97]),
    ],
)
@pytest.mark.parametrize("own_model", [False, True])
def test_tokens_around_a_text(
    store: TextStore, file: Path, value: Any, ids: list[int], own_model: bool
) -> None:
    content = json.loads(file.read_text()) | {"post_processor": value}
    if own_model:
        content["model"] = with_own_word(content["model"])
    file.write_text(json.dumps(content))
    assert encode(store, file, "a") == ids
    assert 260 in encode(store, file, "a<tool>")


def test_an_older_library_has_written_fewer_fields(
    store: TextStore, file: Path, tokenizer: Tokenizer
) -> None:
    step = json.loads(file.read_text())["decoder"]
    assert step.pop("use_regex"), "which is what is read where it is missing"
    edit_json(file, decoder=step)
    assert encode(store, file, "it's <tool>") == [*tokenizer.encode("it's ", True), 260]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dropout": 0.5}, "dropout is not"),
        ({"fuse_unk": True}, "fuse_unk is not"),
        ({"type": "WordLevel", "unk_token": "a"}, "is a WordLevel, the base's BPE"),
    ],
)
def test_another_kind_of_model_is_refused(
    store: TextStore, file: Path, fields: dict[str, Any], words: str
) -> None:
    model = json.loads(file.read_text())["model"]
    edit_json(file, model=model | fields)
    with pytest.raises(AdapterError, match=words):
        store.read(file.parent)


def test_added_tokens_have_the_ids_that_they_say(store: TextStore, file: Path) -> None:
    model = json.loads(file.read_text())["model"]
    edit_json(file, model=model | {"vocab": model["vocab"] | {"more": 260}})
    with pytest.raises(AdapterError, match="'<tool>' can't have id 260"):
        store.read(file.parent)


def test_added_tokens_have_bounds(store: TextStore, file: Path) -> None:
    added = json.loads(file.read_text())["added_tokens"]
    edit_json(file, added_tokens=[*added, added[-1] | {"id": 261, "content": "x" * (1 << 20)}])
    with pytest.raises(AdapterError, match="too many characters"):
        store.read(file.parent)


def test_a_regular_expression_is_not_even_compiled(
    store: TextStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(file, pre_tokenizer=REGEX)
    built: list[bytes] = []
    monkeypatch.setattr(
        "branchline.server.adapters.tokenizer.RustTokenizer",
        type("Counting", (), {"from_buffer": staticmethod(built.append)}),
    )
    with pytest.raises(AdapterError, match="its pre_tokenizer"):
        store.read(file.parent)
    assert built == []
