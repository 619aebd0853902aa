"""schemathesis over a real server's ``/openapi.json``: thousands of cases, no 5xx, no hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from api_fuzz import Seen, fuzz, operations
from server_process import ServerProcess, serve

from .conftest import SERVE_FLAGS, Models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CASES = 40
"""Of each operation that fit its description, and as many that don't."""

NUM_GENERATION_CASES = 150
SECONDS = 30.0
"""How long any answer may take; beyond it hangs."""

# An answer is as long as there is room for, so that no case takes for ever.
FLAGS = ("--max-model-len", "160", "--max-body-mb", "1", "--body-timeout", "5")


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root: Path = tmp_path_factory.mktemp("adapters")
    flags = (*SERVE_FLAGS, *FLAGS, "--adapter-root", str(root))
    with serve(models.model, *flags, lora=models.lora) as server:
        yield server


def test_no_case_gives_a_5xx_or_hangs(server: ServerProcess) -> None:
    schema: Any = schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")
    seen = Seen()
    failures: list[Exception] = []
    with requests.Session() as session:

        def send(case: schemathesis.Case) -> Any:
            return case.call(session=session, timeout=SECONDS)

        for operation in operations(schema):
            generates = operation.path.startswith("/v1/") and operation.method == "post"
            try:
                fuzz(operation, send, seen, NUM_GENERATION_CASES if generates else NUM_CASES)
            except Exception as error:
                failures.append(error)
    print(seen.report())
    if failures:
        raise ExceptionGroup(f"{len(failures)} operations", failures)
    assert seen.num_cases > 3000
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert seen.statuses[f"POST {path}"][200] > 20, "the cases get to the engine"
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("branchline:engine_failed_steps_total") == 0
    assert "Traceback" not in server.output()
    assert server.is_ready()
