"""Which names are names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from branchline.lora.errors import AdapterError
from branchline.lora.names import check_name


@pytest.mark.parametrize("name", ["a", "A9", "org/model", "v1.2_x-y", "a:b", "a@b", "a" * 128])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "../../etc", "a/../b", "/a", "a/", "a//b", ".hidden", "-flag", "a\n", "ä",
     "a" * 129, "a,b", "a=b", 'a"b', "a\0b", "a/.b", "x" * 10_000],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(AdapterError, match="is not a name: 1 to 128") as caught:
        check_name(name)
    assert caught.value.field == "name"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_it_comes_up_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import branchline.lora.names, branchline.lora.slots, branchline.lora.shapes\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
