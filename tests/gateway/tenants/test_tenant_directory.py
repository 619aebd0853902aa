"""Who a request's headers are: real keys, no keys, and everything that a stranger can send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer, redis_server
from store_house import eventually
from tenant_house import TenantHouse, tenant_house

from branchline.gateway.errors import GatewayError
from branchline.gateway.tenants.keys import draw_key


@pytest.fixture
async def house() -> AsyncIterator[TenantHouse]:
    async with tenant_house() as made:
        yield made


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


async def test_only_a_bearer_or_an_api_key_header_counts(house: TenantHouse) -> None:
    await house.put("acme")
    key = (await house.new_key("acme"))["key"]
    good = [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer   {key} "},
        {"x-api-key": f" {key}"},
        {"authorization": "Basic eDp5", "x-api-key": key},
    ]
    for headers in good:
        assert house.directory.caller(headers).tenant == "acme"
    bad = [
        {},
        {"authorization": key},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {key[:-1]}"},
        {"authorization": f"Bearer {key}, Bearer {key}"},
        {"authorization": "Bearer wrong", "x-api-key": key},
        {"x-api-key": ""},
        {"cookie": key},
    ]
    for headers in bad:
        with pytest.raises(GatewayError) as caught:
            house.directory.caller(headers)
        assert caught.value.status == 401
        assert caught.value.headers == {"www-authenticate": "Bearer"}


async def test_anonymous_callers_only_where_they_are_allowed() -> None:
    async with tenant_house(allow_anonymous=True) as house:
        for headers in ({}, {"authorization": "Bearer EMPTY"}, {"x-api-key": "none"}):
            caller = house.directory.caller(headers)
            assert (caller.tenant, caller.models, caller.cache_group) == ("default", None, None)
        with pytest.raises(GatewayError):
            house.directory.caller({"authorization": f"Bearer {draw_key()}"})
        await house.put("default", models=["base"], priority=5)
        assert house.directory.caller({}).priority == 5
        await house.put("default", disabled=True)
        with pytest.raises(GatewayError):
            house.directory.caller({})


async def test_models_of_a_tenant(house: TenantHouse) -> None:
    key = ""
    for models, expected in (
        (None, None),
        (["*"], None),
        (["a", "*"], None),
        ([], {}),
        (["a", "b"], {"a": "a", "b": "b"}),
        ({"legal": "acme-legal"}, {"legal": "acme-legal"}),
    ):
        await house.put("acme", models=models)
        key = key or (await house.new_key("acme"))["key"]
        assert house.directory.caller({"x-api-key": key}).models == expected


async def test_what_can_not_be_read_lets_nobody_in(house: TenantHouse) -> None:
    await house.put("acme")
    key = (await house.new_key("acme"))["key"]
    for kind in ("tenant", "key"):
        name, document = next(iter(house.store.items(kind).items()))
        await house.store.change([(kind, name, b'{"tenant": 3}', None)])
        with pytest.raises(GatewayError) as caught:
            house.directory.caller({"x-api-key": key})
        assert caught.value.status == 401
        await house.store.change([(kind, name, document.data, None)])
    assert house.directory.caller({"x-api-key": key}).tenant == "acme"
    assert house.directory.record("nobody") is None


async def test_newer_fields_are_read_past(house: TenantHouse) -> None:
    await house.put("acme", priority=3)
    document = house.store.get("tenant", "acme")
    assert document is not None
    fields = msgspec.json.decode(document.data) | {"colour": "red"}
    await house.store.change([("tenant", "acme", msgspec.json.encode(fields), None)])
    record = house.directory.record("acme")
    assert record is not None
    assert record.priority == 3


_TEXTS = st.one_of(
    st.text(max_size=50),
    st.text(alphabet=st.characters(codec="latin-1"), max_size=50),
    st.binary(max_size=50).map(lambda raw: raw.decode("latin-1")),
    st.text(min_size=1, max_size=2).map(lambda text: text * 20_000),
    st.sampled_from(["bl-", "bl-*", "bl-\x00", "sha256:", "{branchline}", "'; DROP", "\udcff"]),
)
_HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "host"]),
    st.one_of(_TEXTS, _TEXTS.map(lambda text: f"Bearer {text}")),
)


def test_no_header_is_more_than_refused() -> None:
    async def directories() -> None:
        async with (
            tenant_house() as closed,
            tenant_house(allow_anonymous=True) as opened,
        ):
            await closed.put("acme")
            await closed.new_key("acme")

            @given(headers=_HEADERS)
            def refuse(headers: dict[str, str]) -> None:
                with pytest.raises(GatewayError) as caught:
                    closed.directory.caller(headers)
                assert caught.value.status == 401
                status = 401
                try:
                    assert opened.directory.caller(headers).tenant == "default"
                except GatewayError as error:
                    status = error.status
                assert status == 401

            refuse()

    asyncio.run(directories())


async def test_a_revoked_key_closes_at_every_gateway(redis: RedisServer) -> None:
    async with tenant_house(redis.url) as one, tenant_house(redis.url) as two:
        polling = asyncio.create_task(two.store.run())
        await one.put("acme")
        new = await one.new_key("acme")
        headers = {"x-api-key": new["key"]}

        def opens() -> bool:
            try:
                return two.directory.caller(headers).tenant == "acme"
            except GatewayError:
                return False

        await eventually(opens, 2)
        await one.call("DELETE", f"tenants/acme/keys/{new['id']}")
        await eventually(lambda: not opens(), 2)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
