"""What replicas must have in common, and what they need not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import engine_info
from tiny_models import make_tiny_model

from branchline.engine.config import EngineConfig
from branchline.server.fleet import fingerprint as fingerprint_module
from branchline.server.fleet.fingerprint import fingerprint_model

INFO = engine_info()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama", max_shard_size="100KB")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same model elsewhere, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(params=["whole", "sampled"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files read whole, as small ones are, or in samples, as large ones."""
    if request.param == "sampled":
        monkeypatch.setattr(fingerprint_module, "MAX_WHOLE_FILE_BYTES", 0)


def of(directory: Path, template: str | None = "T", **options: object) -> str:
    return fingerprint_model(EngineConfig(model=str(directory), **options), INFO, template)


@pytest.mark.usefixtures("reading")
def test_where_a_model_lies_does_not_matter(model: Path, copy: Path) -> None:
    (copy / "README.md").write_text("a word about it")
    assert of(copy) == of(model)
    assert len(of(model)) == 32
    assert set(of(model)) <= set("0123456789abcdef")


def change_byte(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def weights_of(directory: Path) -> Path:
    first, *others = sorted(directory.glob("*.safetensors"))
    assert others
    return first


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize(
    "change",
    [
        lambda copy: change_byte(weights_of(copy), weights_of(copy).stat().st_size - 1),
        lambda copy: change_byte(weights_of(copy), 2048),
        lambda copy: weights_of(copy).unlink(),
        lambda copy: weights_of(copy).rename(copy / "model-0.safetensors"),
        lambda copy: (copy / "config.json").write_text("{}"),
        lambda copy: (copy / "tokenizer.json").write_text("{}"),
        lambda copy: (copy / "chat_template.jinja").write_text("other"),
    ],
)
def test_a_file_that_differs_shows(
    model: Path, copy: Path, change: Callable[[Path], object]
) -> None:
    change(copy)
    assert of(copy) != of(model)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("stray", [b"", b"x" * 100, b"\xff" * 8, (2).to_bytes(8, "little") + b"[]"])
def test_a_stray_file_stops_nothing(copy: Path, stray: bytes) -> None:
    (copy / "stray.safetensors").write_bytes(stray)
    assert of(copy) == of(copy)


def test_a_sample_sees_every_tensor(
    model: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint_module, "MAX_WHOLE_FILE_BYTES", 0)
    monkeypatch.setattr(fingerprint_module, "SAMPLE_BYTES", 4)
    expected, path = of(model), weights_of(copy)
    with path.open("rb") as file:
        header = fingerprint_module._read_header(file)
    for first, last in fingerprint_module._extents(header):
        for position in (first, last - 1):
            change_byte(path, 8 + len(header) + position)
            assert of(copy) != expected
            change_byte(path, 8 + len(header) + position)
    assert of(copy) == expected


@pytest.mark.parametrize(
    "options", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"template": None}]
)
def test_settings_that_decide_show(model: Path, options: dict[str, object]) -> None:
    assert of(model, **options) != of(model)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "bfloat16"}, {"adapter_dtype": "fp8"}, {"eos_token_ids": [1]}, {"vocab_size": 9}],
)
def test_what_the_engine_made_of_them_shows(model: Path, change: dict[str, object]) -> None:
    config = EngineConfig(model=str(model))
    given = fingerprint_model(config, replace(INFO, **change), None)
    assert given != fingerprint_model(config, INFO, None)


def test_settings_of_speed_do_not(model: Path) -> None:
    assert of(model, max_num_seqs=2, block_size=4, kv_cache_gb=1.0, max_model_len=99) == of(model)
