"""``/v1/models/{id}`` through OpenAI's SDK: names that a path has to be told with care."""

from __future__ import annotations

import httpx
import openai
import pytest

from branchline.server.catalog import ServedModel

from .conftest import BASE, Harness

NAMES = [
    "org/model",
    "org/model:v1.5@2",
    "with space",
    "Ünïcode-名",
    "50%",
    "what?",
    "a#b",
    "a%2Fb",
    "a&b=c+d",
    "a/../b",
    "trailing/",
    "models",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
async def test_every_name_is_found(harness: Harness, name: str) -> None:
    catalog = harness.services.catalog
    catalog.put(name, {1: ServedModel(name, "/adapters/odd", "digest-odd", version=1)}, 1)
    transport = httpx.ASGITransport(harness.app, raise_app_exceptions=False)
    client = openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key="x",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    )
    async with client:
        assert name in [model.id async for model in client.models.list()]
        found = await client.models.retrieve(name)
        assert (found.id, found.parent) == (name, BASE)  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve(f"{name}-not")
        assert caught.value.code == "model_not_found"
