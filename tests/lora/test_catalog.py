"""The catalog: which names are names, and what is behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from branchline.lora.catalog import AdapterCatalog
from branchline.lora.errors import AdapterError


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    config = {
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {"q_proj": 6},
        "target_modules": ["v", "q"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_register_and_get(adapter_dir: Path) -> None:
    catalog = AdapterCatalog("base")
    entry = catalog.register("org/legal-v2", adapter_dir)
    assert catalog.get("org/legal-v2") == entry
    assert (entry.rank, entry.target_modules) == (6, ("q", "v"))
    assert entry.path == str(adapter_dir)
    other = catalog.register("alias", adapter_dir)
    assert other.digest == entry.digest
    assert catalog.names() == ["org/legal-v2", "alias"]
    assert catalog.entries() == [entry, other]
    assert catalog.get("nobody") is None
    assert "alias" in catalog
    assert "nobody" not in catalog


@pytest.mark.parametrize("name", ["a", "A9", "org/model", "v1.2_x-y", "a:b", "a@b", "a" * 128])
def test_good_names(name: str, adapter_dir: Path) -> None:
    AdapterCatalog("base").register(name, adapter_dir)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "../../etc", "a/../b", "/a", "a/", "a//b", ".hidden", "-flag", "a\n", "ä",
     "a" * 129, "a,b", "a=b", 'a"b', "a\0b", "a/.b", "x" * 10_000],
)  # fmt: skip
def test_bad_names(name: str, adapter_dir: Path) -> None:
    with pytest.raises(AdapterError, match="is not a name: 1 to 128") as caught:
        AdapterCatalog("base").register(name, adapter_dir)
    assert caught.value.field == "name"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_taken_names(adapter_dir: Path) -> None:
    catalog = AdapterCatalog("org/base")
    with pytest.raises(AdapterError, match="name: 'org/base' is the base model's name"):
        catalog.register("org/base", adapter_dir)
    catalog.register("shout", adapter_dir)
    with pytest.raises(AdapterError, match="name: 'shout' is already registered"):
        catalog.register("shout", adapter_dir)


def test_a_refused_adapter_leaves_no_name(adapter_dir: Path) -> None:
    catalog = AdapterCatalog("base")
    (adapter_dir / "adapter_config.json").write_text('{"peft_type": "LORA", "use_qalora": true}')
    with pytest.raises(AdapterError, match="use_qalora"):
        catalog.register("shout", adapter_dir)
    assert catalog.names() == []


def test_it_comes_up_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import branchline.lora.catalog, branchline.lora.slots, branchline.lora.shapes\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
