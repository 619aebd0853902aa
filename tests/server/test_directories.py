"""Directories of models and adapters: found or refused, and what their files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from branchline.server.adapters.hub import NotFoundError, find_directory
from branchline.server.adapters.start import AdapterStartError, named_sources
from branchline.server.catalog import Catalog
from branchline.server.config import AdapterSpec
from branchline.server.sampling import read_defaults


def test_directories_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_directory(str(tmp_path)) == str(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="is a file"):
        find_directory(str(tmp_path / "file"))
    with pytest.raises(NotFoundError, match="no directory"):
        find_directory("./relative")
    with pytest.raises(NotFoundError, match="the hub can't be reached") as caught:
        find_directory("nobody/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "path", "words"),
    [
        (["two"], None, "adapter two: name: 'two' is the name of the base model"),
        (["a", "a"], None, "adapter a: name: 'a' is the name of another adapter"),
        (["../../etc"], None, "is not a name"),
        (["x/versions"], None, "verb"),
        (["a"], "/no/such/adapter", "adapter a: path: there is no directory /no/such/adapter"),
    ],
)
def test_adapters_of_the_command_line_that_are_refused(
    tmp_path: Path, names: list[str], path: str | None, words: str
) -> None:
    specs = [AdapterSpec(name, path or str(tmp_path)) for name in names]
    with pytest.raises(AdapterStartError, match=re.escape(words)):
        named_sources(specs, Catalog("/models/base", ["one", "two"]))


@pytest.mark.parametrize(
    ("text", "temperature", "top_k", "max_tokens"),
    [
        ('{"temperature": 0.6, "top_k": 20, "max_new_tokens": 99}', 0.6, 20, 99),
        ('{"temperature": "hot", "top_k": null, "max_new_tokens": -1}', 1.0, 0, None),
        ('{"temperature": true, "top_k": 1e99, "eos_token_id": [1]}', 1.0, 0, None),
        ("[]", 1.0, 0, None),
        ("{", 1.0, 0, None),
        (None, 1.0, 0, None),
    ],
)
def test_defaults_of_a_model(
    tmp_path: Path, text: str | None, temperature: float, top_k: int, max_tokens: int | None
) -> None:
    if text is not None:
        (tmp_path / "generation_config.json").write_text(text)
    defaults = read_defaults(str(tmp_path))
    assert (defaults.temperature, defaults.top_k) == (temperature, top_k)
    assert defaults.max_tokens == max_tokens
