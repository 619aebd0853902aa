"""``/v1/models``: names, what is behind them, pages."""

from __future__ import annotations

from typing import Any

from branchline.server.catalog import AliasTarget, ServedModel
from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import USER, AdapterHouse, adapter_house


async def cards(house: AdapterHouse, query: str = "") -> dict[str, Any]:
    response = await house.client.get(f"/v1/models{query}", headers=USER)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def ids(page: dict[str, Any]) -> list[str]:
    return [card["id"] for card in page["data"]]


def clear(house: AdapterHouse) -> None:
    """Leave only the base, whatever else the application came with."""
    for name in house.services.catalog.adapter_names:
        house.services.catalog.remove(name)


async def test_adapters_have_a_parent_and_a_root(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        clear(house)
        await house.put("legal", "one")
        await house.put_alias("prod", {"adapter": "legal"})
        base, legal, prod = (await cards(house))["data"]
        assert base == {
            "id": "base",
            "object": "model",
            "created": house.services.created,
            "owned_by": "branchline",
            "root": "/models/base",
            "parent": None,
            "max_model_len": 512,
        }
        assert (legal["root"], legal["parent"]) == (house.source("one"), "base")
        assert legal["created"] == 1_700_000_000
        assert (prod["id"], prod["root"], prod["parent"]) == ("prod", legal["root"], "base")
        for card in (base, legal, prod):
            one = await house.client.get(f"/v1/models/{card['id']}", headers=USER)
            assert one.json() == card


async def test_pages_make_the_whole_list(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        clear(house)
        for name in ("m/z", "b", "zz", "a", "m/a"):
            await house.put(name, "one")
        whole = await cards(house)
        assert ids(whole) == ["base", "a", "b", "m/a", "m/z", "zz"], "the base leads"
        assert whole.keys() == {"object", "data"}, "as every client knows it"
        found: list[str] = []
        page = await cards(house, "?limit=2")
        while page["has_more"]:
            assert (page["first_id"], page["last_id"]) == (ids(page)[0], ids(page)[-1])
            found += ids(page)
            page = await cards(house, f"?limit=2&after={page['last_id']}")
        assert found + ids(page) == ids(whole)
        await house.client.delete("/admin/adapters/b")
        assert ids(await cards(house, "?limit=2&after=b")) == ["m/a", "m/z"], "b is gone, no matter"
        assert ids(await cards(house, "?after=base")) == ["a", "m/a", "m/z", "zz"]
        empty = await cards(house, "?after=zzz")
        assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)
        for query in ("limit=0", "limit=1.5", "limit=5000"):
            response = await house.client.get(f"/v1/models?{query}", headers=USER)
            assert errors_of(response, 400)["param"] == "limit"


async def test_a_signed_address_keeps_its_secret(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        root = "https://bucket.example/x.tar?X-Signature=secret"
        house.services.catalog.put("signed", {1: ServedModel("signed", root, "d")}, 1)
        card = (await house.client.get("/v1/models/signed", headers=USER)).json()
        assert card["root"] == "https://bucket.example/x.tar"
        assert "secret" not in str(await cards(house))


async def test_a_split_alias_is_one_name(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        clear(house)
        await house.put("legal", "one")
        await house.put("legal", "two")
        targets = [AliasTarget("legal", 1, 80), AliasTarget("legal", 2, 20)]
        await house.adapters.put_alias("prod", targets)
        assert ids(await cards(house)) == ["base", "legal", "prod"]
        one = (await house.client.get("/v1/models/prod", headers=USER)).json()
        assert one["root"] == house.source("one"), "what most of its requests get"


async def test_an_unknown_name_is_a_404(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        response = await house.client.get("/v1/models/no/such", headers=USER)
        assert errors_of(response, 404)["param"] == "model"
