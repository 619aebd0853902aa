"""The catalog: what a name answers with, who holds it, and what an unknown name hears."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from branchline.server.aliases import AliasTarget
from branchline.server.catalog import Catalog, ServedModel
from branchline.server.errors import ApiError
from branchline.server.text.tokenizer import Tokenizer


def version(name: str, number: int, digest: str) -> ServedModel:
    return ServedModel(name, f"/adapters/{name}", digest, version=number)


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog("/models/base", ["base", "second"])
    catalog.put("a", {1: version("a", 1, "da1"), 2: version("a", 2, "da2")}, 2)
    catalog.put("b", {1: version("b", 1, "db1")}, 1)
    return catalog


def test_what_names_answer_with(catalog: Catalog) -> None:
    assert catalog.resolve("base") == catalog.base
    assert catalog.resolve("second").digest is None
    assert catalog.resolve("second").name == "second"
    assert catalog.resolve("a").digest == "da2"
    catalog.put("a", {1: version("a", 1, "da1")}, 1)
    assert catalog.resolve("a").digest == "da1"
    catalog.remove("a")
    with pytest.raises(ApiError) as caught:
        catalog.resolve("a")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_an_alias_answers_under_its_own_name(catalog: Catalog) -> None:
    catalog.put_alias("live", [AliasTarget("a")], 7)
    assert catalog.resolve("live") == ServedModel(
        "live", "/adapters/a", "da2", version=2, created=7
    )
    catalog.put("a", {1: version("a", 1, "da1")}, 1)
    assert catalog.resolve("live").digest == "da1", "it follows the current version"
    catalog.put_alias("live", [AliasTarget("b", 1)])
    assert catalog.resolve("live").digest == "db1"


def test_a_split_alias_goes_by_the_key(catalog: Catalog) -> None:
    catalog.put_alias("canary", [AliasTarget("a", 1, 50), AliasTarget("a", 2, 50)])
    by_key = {f"k{n}": catalog.resolve("canary", f"k{n}").digest for n in range(50)}
    assert set(by_key.values()) == {"da1", "da2"}
    assert all(catalog.resolve("canary", key).digest == digest for key, digest in by_key.items())
    assert catalog.is_alias("canary")
    assert not catalog.is_alias("a")


def test_models_in_the_order_they_came(catalog: Catalog) -> None:
    catalog.put_alias("z", [AliasTarget("a", 1, 90), AliasTarget("b", None, 10)])
    catalog.put("c", {1: version("c", 1, "dc1")}, 1)
    catalog.put("a", {3: version("a", 3, "da3"), 1: version("a", 1, "da1")}, 3)
    assert [model.name for model in catalog.models()] == ["base", "second", "a", "b", "c", "z"]
    assert catalog.models()[-1].digest == "da1", "a split shows its larger part"


def test_a_name_that_fails_says_so_and_is_not_listed(catalog: Catalog) -> None:
    catalog.put_alias("live", [AliasTarget("a", None, 100)])
    catalog.fail("a", {1: version("a", 1, "da1")})
    for name in ("a", "live"):
        with pytest.raises(ApiError, match="administers this server can see why") as caught:
            catalog.resolve(name)
        assert (caught.value.status, caught.value.code) == (404, "model_not_available")
    assert [model.name for model in catalog.models()] == ["base", "second", "b"]
    catalog.put_alias("old", [AliasTarget("a", 1)])
    assert catalog.resolve("old").digest == "da1", "another version of it can be had"


def test_names_of_a_version(catalog: Catalog) -> None:
    catalog.put("twin", {1: version("twin", 1, "da2")}, 1)
    catalog.put_alias("live", [AliasTarget("a", 1, 50), AliasTarget("a", None, 50)])
    assert catalog.names_of(None) == ["base", "second"]
    assert catalog.names_of("da2") == ["a", "twin", "live"]
    assert catalog.names_of("da1") == ["live"]
    lease = catalog.lease(catalog.resolve("b"))
    catalog.remove("b")
    assert catalog.names_of("db1") == ["b"], "a request still answers under it"
    lease.release()
    assert catalog.names_of("db1") == []


async def test_leases_are_counted_until_the_last_one_ends(catalog: Catalog) -> None:
    model = catalog.resolve("a")
    leases = [catalog.lease(model), catalog.lease(model)]
    catalog.lease(catalog.base).release()
    assert catalog.leases.count("da2") == 2
    idle = asyncio.create_task(catalog.leases.wait_idle("da2"))
    leases[0].release()
    await asyncio.sleep(0)
    assert not idle.done()
    leases[1].release()
    await asyncio.wait_for(idle, 5)
    assert catalog.leases.count("da2") == 0
    with pytest.raises(AssertionError):
        leases[1].release()
    await asyncio.wait_for(catalog.leases.wait_idle("da2"), 5)


def test_a_preview_has_the_tokenizer_of_an_older_version(
    catalog: Catalog, tokenizer: Tokenizer
) -> None:
    own = replace(version("a", 1, "da1"), tokenizer=tokenizer)
    catalog.put("a", {1: own, 2: version("a", 2, "da2")}, 2)
    catalog.put_alias("old", [AliasTarget("a", 1)])
    assert catalog.tokenizer_of("da1") is tokenizer
    assert catalog.tokenizer_of("da2") is None
    assert catalog.names_of("da1") == ["old"]


def test_an_unknown_name_hears_of_close_ones(catalog: Catalog) -> None:
    catalog.put("legal-assistant", {1: version("legal-assistant", 1, "dl")}, 1)
    with pytest.raises(ApiError, match="Did you mean 'legal-assistant'"):
        catalog.resolve("legal-asistant")
    with pytest.raises(ApiError) as caught:
        catalog.resolve(None)
    assert (caught.value.status, caught.value.param) == (400, "model")


def test_an_unknown_name_among_thousands_is_answered_at_once() -> None:
    catalog = Catalog("/models/base", ["base"])
    for number in range(10_000):
        name = f"customer-{number:04}-" + "x" * 100
        catalog.put(name, {1: version(name, 1, f"d{number}")}, 1)
    since = time.perf_counter()
    with pytest.raises(ApiError, match="Did you mean 'customer-0042"):
        catalog.resolve("customer-0042-" + "x" * 99)
    with pytest.raises(ApiError):
        catalog.resolve("x" * 10_000)
    for number in range(100):
        with pytest.raises(ApiError):
            catalog.resolve(f"customer-{number}" + "y" * 100)
    assert time.perf_counter() - since < 2, "some are compared, not all"
