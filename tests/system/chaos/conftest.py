"""One fleet a module: chaos leaves it as it was, or has one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_cases import ADAPTER, BASE, SERVE_FLAGS, ChaosModels, chaos_cases
from gateway_process import Fleet, fleet
from stream_load import Case
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def chaos_models(tmp_path_factory: pytest.TempPathFactory) -> ChaosModels:
    root = tmp_path_factory.mktemp("chaos")
    model = make_tiny_model(root / "model", "llama", max_position_embeddings=4096)
    return ChaosModels(model, {ADAPTER: make_adapter(model, root / "voice", 8, seed=8)})


@pytest.fixture(scope="module")
def house(chaos_models: ChaosModels) -> Iterator[Fleet]:
    """Two replicas behind one gateway."""
    flags = SERVE_FLAGS
    with fleet(chaos_models.model, lora=chaos_models.lora, serve_flags=flags) as running:
        yield running


@pytest.fixture(scope="module")
def cases(house: Fleet) -> list[Case]:
    return chaos_cases(house.url, (BASE, ADAPTER))
