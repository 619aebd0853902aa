import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# The examples are scripts, not part of the package: they import each other from here.
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture(scope="session")
def golden_file(examples: Path) -> Callable[[str], list[dict[str, Any]]]:
    return lambda name: json.loads((examples / name / "golden.json").read_text())


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted model, if its package is installed here."""
    from smollm2.prepare import PrepareError, prepare

    try:
        return prepare()
    except PrepareError as error:
        pytest.skip(str(error))
