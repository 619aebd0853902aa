"""The admin API of aliases over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fake_manager import CREATED

from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import adapter_house


async def test_aliases(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        await house.put("legal", "two")
        made = await house.put_alias("prod", {"adapter": "legal", "version": 1})
        assert made.status_code == 201, made.text
        assert made.json() == {
            "alias": "prod",
            "split": [{"adapter": "legal", "version": 1, "percent": 100.0}],
            "previous": None,
            "created": CREATED,
        }
        split = [
            {"adapter": "legal", "version": 1, "percent": 90},
            {"adapter": "legal", "version": 2, "percent": 10},
        ]
        moved = await house.put_alias("prod", {"split": split})
        assert (moved.status_code, moved.json()["split"]) == (200, split)
        assert moved.json()["previous"] == made.json()["split"]
        assert (await house.client.get("/admin/aliases")).json() == {"aliases": [moved.json()]}
        entry = (await house.client.get("/admin/adapters/legal")).json()
        assert entry["aliases"] == ["prod"]
        back = await house.client.post("/admin/aliases/prod/rollback")
        assert back.json()["split"] == made.json()["split"]
        removed = await house.client.delete("/admin/aliases/prod")
        assert removed.json() == {"alias": "prod", "removed": True}
        for response in (
            await house.client.delete("/admin/aliases/prod"),
            await house.client.post("/admin/aliases/prod/rollback"),
        ):
            assert errors_of(response, 404)["code"] == "alias_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"adapter": "gone"}, "adapter"),
        ({"adapter": "legal", "version": 7}, "version"),
        ({"split": [{"adapter": "legal", "version": 7, "percent": 100}]}, "split"),
    ],
)
async def test_what_is_not_there(
    tokenizer: Tokenizer, errors_of: Any, body: dict[str, Any], param: str
) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        error = errors_of(await house.put_alias("prod", body), 404)
        assert error["param"] == param
        assert "targets" not in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "adapter"),
        ({"adapter": "legal", "split": [{"adapter": "legal", "percent": 100}]}, "adapter"),
        ({"split": []}, "split"),
        ({"split": [{"adapter": "legal", "percent": 50}]}, "split"),
        ({"split": [{"adapter": "legal", "percent": 100}], "version": 1}, "version"),
        ({"split": [{"adapter": "legal", "percent": 101}]}, "split[0].percent"),
        ({"split": [{"adapter": "legal"}]}, "split[0].percent"),
        ({"split": [{"adapter": "legal", "percent": 100, "weight": 1}]}, "split[0].weight"),
        ({"adapter": "legal", "version": 0}, "version"),
        ({"adapter": "legal", "percent": 100}, "percent"),
    ],
)
async def test_what_no_alias_is(
    tokenizer: Tokenizer, errors_of: Any, body: dict[str, Any], param: str
) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        assert errors_of(await house.put_alias("prod", body), 400)["param"] == param
        assert (await house.client.get("/admin/aliases")).json() == {"aliases": []}
