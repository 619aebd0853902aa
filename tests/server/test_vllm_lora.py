"""vLLM's two endpoints for adapters: its bodies and answers, and right refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from branchline.lora.errors import AdapterError
from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import USER, adapter_house

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADDED = "Success: LoRA adapter 'sql' added successfully."
REMOVED = "Success: LoRA adapter 'sql' removed successfully."


async def test_load_and_unload_as_vllm_answers(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        body = {"lora_name": "sql", "lora_path": house.source("one")}
        loaded = await house.client.post(LOAD, json=body)
        assert (loaded.status_code, loaded.text) == (200, ADDED)
        assert loaded.headers["content-type"].startswith("text/plain")
        models = (await house.client.get("/v1/models", headers=USER)).json()["data"]
        [card] = [model for model in models if model["id"] == "sql"]
        assert (card["root"], card["parent"]) == (house.source("one"), "base")
        unloaded = await house.client.post(UNLOAD, json={"lora_name": "sql", "lora_int_id": 7})
        assert (unloaded.status_code, unloaded.text) == (200, REMOVED)
        models = (await house.client.get("/v1/models", headers=USER)).json()["data"]
        assert "sql" not in [model["id"] for model in models]


async def test_load_inplace_replaces(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        first = {"lora_name": "sql", "lora_path": house.source("one")}
        second = {"lora_name": "sql", "lora_path": house.source("two")}
        await house.client.post(LOAD, json=first)
        for again in (first, second, second | {"load_inplace": False}):
            error = errors_of(await house.client.post(LOAD, json=again), 400)
            assert (error["param"], error["code"]) == ("lora_name", "adapter_exists")
            assert "set 'load_inplace' to True" in error["message"]
        replaced = await house.client.post(LOAD, json=second | {"load_inplace": True})
        assert (replaced.status_code, replaced.text) == (200, ADDED)
        assert [v.number for v in house.adapters.versions("sql")] == [1, 2]


async def test_of_two_loads_at_once_one_finds_the_other(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        bodies = [{"lora_name": "sql", "lora_path": house.source(s)} for s in ("one", "two")]
        responses = await asyncio.gather(*(house.client.post(LOAD, json=b) for b in bodies))
        assert sorted(response.status_code for response in responses) == [200, 400]


async def test_json_for_who_takes_nothing_else(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        body = {"lora_name": "sql", "lora_path": house.source("one")}
        headers = {"accept": "application/json"}
        loaded = await house.client.post(LOAD, json=body, headers=headers)
        assert loaded.json() == {
            "message": ADDED,
            "lora_name": "sql",
            "changed": True,
            "done": None,
        }
        both = {"accept": "application/json, text/plain"}
        house.adapters.num_requests["sql"] = 2
        url = f"{UNLOAD}?wait=0.5"
        unloaded = await house.client.post(url, json={"lora_name": "sql"}, headers=headers)
        assert (unloaded.status_code, unloaded.json()["done"]) == (202, False)
        assert house.adapters.waits == [0.5]
        again = await house.client.post(LOAD, json=body, headers=both)
        assert again.text == ADDED


async def test_fields_of_others_of_vllms_versions(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        body = {
            "lora_name": "sql",
            "lora_path": house.source("one"),
            "base_model_name": "whatever/it-says",
            "is_3d_lora_weight": False,
            "load_inplace": None,
        }
        assert (await house.client.post(LOAD, json=body)).text == ADDED
        of_experts = body | {"lora_name": "moe", "is_3d_lora_weight": True}
        error = errors_of(await house.client.post(LOAD, json=of_experts), 400)
        assert error["param"] == "is_3d_lora_weight"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "lora_name"),
        ({"lora_name": "", "lora_path": "/x"}, "lora_name"),
        ({"lora_path": "/x"}, "lora_name"),
        ({"lora_name": "sql"}, "lora_path"),
        ({"lora_name": "sql", "lora_path": ""}, "lora_path"),
        ({"lora_name": 5, "lora_path": "/x"}, "lora_name"),
        ({"lora_name": "sql", "lora_path": "/etc"}, "lora_path"),
        ({"lora_name": "sql", "lora_path": "../../etc"}, "lora_path"),
        ({"lora_name": "sql", "lora_path": "http://169.254.169.254/x"}, "lora_path"),
        ({"lora_name": "sql", "lora_path": "/x", "lora_rank": 8}, "lora_rank"),
    ],
)
async def test_what_is_not_loaded(
    tokenizer: Tokenizer, errors_of: Any, body: dict[str, Any], param: str
) -> None:
    async with adapter_house(tokenizer) as house:
        assert errors_of(await house.client.post(LOAD, json=body), 400)["param"] == param
        assert (await house.client.get("/admin/adapters")).json()["adapters"] == []


async def test_a_bad_adapter_is_a_400_that_names_its_field(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    async with adapter_house(tokenizer) as house:
        house.adapters.refuse[house.source("one")] = AdapterError("r", "0 is no rank")
        body = {"lora_name": "sql", "lora_path": house.source("one")}
        error = errors_of(await house.client.post(LOAD, json=body), 400)
        assert (error["param"], error["code"]) == ("r", "adapter_refused")


async def test_what_is_not_unloaded(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        unknown = errors_of(await house.client.post(UNLOAD, json={"lora_name": "sql"}), 404)
        assert (unknown["param"], unknown["code"]) == ("lora_name", "adapter_not_found")
        nameless = errors_of(await house.client.post(UNLOAD, json={"lora_int_id": 1}), 400)
        assert nameless["param"] == "lora_name"
        for response in (
            await house.client.post(LOAD, content=b"not json"),
            await house.client.post(UNLOAD, content=b""),
        ):
            assert "not valid JSON" in errors_of(response, 400)["message"]


@pytest.mark.parametrize("ending", ["%0A", "%0D", "%00", "%0A%0A", "%C2%85"])
async def test_a_path_with_a_control_character_is_nobodys(
    ending: str, tokenizer: Tokenizer, errors_of: Any
) -> None:
    """A route also fits what has a newline behind it; the door must not be passed so."""
    async with adapter_house(tokenizer) as house:
        body = {"lora_name": "sql", "lora_path": house.source("one")}
        for path in (LOAD, UNLOAD, "/admin/adapters", "/v1/models"):
            for headers in (USER, {}):
                response = await house.client.post(path + ending, json=body, headers=headers)
                assert errors_of(response, 404)["code"] == "not_found"
        assert "sql" not in [state.name for state in await house.adapters.list()]
