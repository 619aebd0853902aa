"""One small model, three adapters and one server for all tests that speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from server_process import ServerProcess, serve
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

BASE = "base"
API_KEY = "sk-test"

# The KV pool is small enough for tests to see blocks come and go, and large enough for 64.
SERVE_FLAGS = (
    *("--served-model-name", BASE, "--dtype", "float32", "--device", "cpu"),
    *("--num-threads", "1", "--kv-cache-gb", "0.05", "--max-num-seqs", "64"),
    *("--adapter-memory-gb", "0.05"),
)


@dataclass(frozen=True)
class Models:
    """What lies on disk."""

    model: Path
    lora: dict[str, Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    model = make_tiny_model(root / "model", "llama", max_position_embeddings=4096)
    lora = {
        f"tenant-{rank}": make_adapter(model, root / f"r{rank}", rank, seed=rank)
        for rank in (4, 8, 16)
    }
    return Models(model, lora)


@pytest.fixture(scope="session")
def openai_server(models: Models) -> Iterator[ServerProcess]:
    with serve(models.model, *SERVE_FLAGS, "--api-key", API_KEY, lora=models.lora) as server:
        yield server


@pytest.fixture(scope="session")
def client(openai_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=openai_server.api_url, api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(openai_server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=openai_server.api_url, api_key=API_KEY, max_retries=0)
    async with client:
        yield client
