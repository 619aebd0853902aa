"""``--tenants FILE.yaml``: what it makes, what it leaves, and one line for what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer, redis_server
from store_house import gateway_store, revisions
from tenant_house import TenantHouse, tenant_house

from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.store.documents import Entry, StoreDown
from branchline.gateway.store.remote import RemoteStore
from branchline.gateway.store.store import Store
from branchline.gateway.tenants.declared import Declaration, read_tenants_file
from branchline.gateway.tenants.directory import TenantDirectory

KEY = "a-key-of-an-operator"
DIGEST = digest_key("another-long-enough-key").hex()
ENVIRONMENT = {"ACME_KEY": KEY, "SHORT": "x"}
GOOD = f"""
tenants:
  acme:
    models: {{legal: acme-legal}}
    weight: 2
    priority: -1
    group: ten
    limits: {{requests_per_minute: 60}}
    keys: ["sha256:{DIGEST}", env:ACME_KEY]
  beta:
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def declare(tmp_path: Path, text: str) -> Declaration:
    path = tmp_path / "tenants.yaml"
    path.write_text(text)
    return read_tenants_file(path, ENVIRONMENT)


async def test_tenants_and_keys_of_the_file_are_there(tmp_path: Path) -> None:
    async with gateway_store(None, declare=declare(tmp_path, GOOD)) as store:
        directory = TenantDirectory(store)
        for key in (KEY, "another-long-enough-key"):
            caller = directory.caller({"authorization": f"Bearer {key}"})
            assert (caller.tenant, caller.weight, caller.priority) == ("acme", 2.0, -1)
            assert caller.models == {"legal": "acme-legal"}
        record = directory.record("acme")
        assert record is not None
        assert record.limits.requests_per_minute == 60
        assert set(store.items("tenant")) == {"acme", "beta"}


async def test_applied_again_it_changes_nothing(tmp_path: Path, redis: RedisServer) -> None:
    declaration = declare(tmp_path, GOOD)
    async with gateway_store(redis.url, declare=declaration) as store:
        before = revisions(store)
        assert len(before) == 4
        async with gateway_store(redis.url, declare=declaration) as other:
            assert revisions(other) == before


@pytest.mark.parametrize("prune", [False, True])
async def test_others_are_left_unless_it_prunes(tmp_path: Path, prune: bool) -> None:
    state = tmp_path / "state"
    async with gateway_store(None, state, declare=declare(tmp_path, GOOD)) as store:
        await store.change([("tenant", "other", b"{}", 0), ("key", "k", b"{}", 0)])
    text = f"prune: {str(prune).lower()}\ntenants:\n  acme: {{weight: 3}}\n"
    async with gateway_store(None, state, declare=declare(tmp_path, text)) as store:
        assert set(store.items("tenant")) == ({"acme"} if prune else {"acme", "beta", "other"})
        assert len(store.items("key")) == (0 if prune else 3)
        record = TenantDirectory(store).record("acme")
        assert record is not None
        assert (record.weight, record.group) == (3.0, None)


async def test_an_empty_redis_is_made_from_the_file(tmp_path: Path, redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()
    async with gateway_store(redis.url, declare=declare(tmp_path, GOOD)) as store:
        before = revisions(store)
        with redis.client() as client:
            client.flushall()
        await store.refresh()
        assert revisions(store) == before


async def test_a_start_without_redis_keeps_the_keys_that_are_out(
    tmp_path: Path, redis: RedisServer
) -> None:
    """A tenant made anew would be another one, for which they don't open."""
    text = "tenants: {acme: {weight: 3}, beta: {}}"
    redis.restart(empty=True)
    async with tenant_house(redis.url) as one:
        headers = await _acme_with_a_key(one)
        redis.stop()
        try:
            options = {"declare": declare(tmp_path, text), "clock": lambda: time.time() + 3600}
            starting = gateway_store(redis.url, timeout=0.3, **options)  # the store is an hour old
            two = await starting.__aenter__()
        finally:
            redis.cont()
        assert set(two.items("tenant")) == {"acme", "beta"}
        await _meet(two)
        await one.store.refresh()
        assert revisions(one.store) == revisions(two)
        for store in (one.store, two):
            caller = TenantDirectory(store).caller(headers)
            assert (caller.tenant, caller.weight) == ("acme", 3.0)
        await starting.__aexit__(None, None, None)


async def test_a_start_on_an_emptied_redis_keeps_the_keys_that_are_out(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Who knows them comes a little later."""
    async with tenant_house(redis.url) as one:
        headers = await _acme_with_a_key(one)
        redis.restart(empty=True)
        declaration = declare(tmp_path, "tenants: {acme: {weight: 3}, beta: {}}")
        async with gateway_store(redis.url, declare=declaration) as two:
            assert set(two.items("tenant")) == {"acme", "beta"}
            await _meet(one.store)
            await two.refresh()
            assert revisions(one.store) == revisions(two)
            assert TenantDirectory(two).caller(headers).tenant == "acme"
            assert one.directory.caller(headers).tenant == "acme"


async def test_an_empty_redis_in_the_middle_of_a_start_puts_the_file_off_not_aside(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.restart(empty=True)
    merge = RemoteStore.merge
    declaration = declare(tmp_path, "tenants: {acme: {weight: 3}, beta: {}}")

    async def emptied_first(self: RemoteStore, generation: str, entries: Iterable[Entry]) -> int:
        monkeypatch.setattr(RemoteStore, "merge", merge)
        with redis.client() as client:
            client.flushall()
        async with tenant_house(redis.url) as other:
            await other.put("acme")
        return await merge(self, generation, entries)

    monkeypatch.setattr(RemoteStore, "merge", emptied_first)
    async with gateway_store(redis.url, declare=declaration) as store:
        await store.refresh()
        record = TenantDirectory(store).record("acme")
        assert record is not None
        assert record.weight == 3.0
        assert set(store.items("tenant")) == {"acme", "beta"}


async def _acme_with_a_key(house: TenantHouse) -> dict[str, str]:
    await house.put("acme")
    return {"authorization": f"Bearer {(await house.new_key('acme'))['key']}"}


async def _meet(store: Store) -> None:
    """Poll until Redis answers again, and once more."""
    async with asyncio.timeout(10):
        for _ in range(2):
            while True:
                with suppress(StoreDown):
                    await store.refresh()
                    break
                await asyncio.sleep(0.02)


async def test_many_tenants(tmp_path: Path, redis: RedisServer) -> None:
    text = "tenants:\n" + "".join(f"  t{n}: {{priority: {n % 9}}}\n" for n in range(1200))
    async with gateway_store(redis.url, declare=declare(tmp_path, text)) as store:
        assert sum(name.startswith("t") for name in store.items("tenant")) == 1200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected `object`, got `null`"),
        ("tenants: [a]", "tenants: expected `object`"),
        ("tenents: {}", "tenents: there is no such field; there are: tenants, prune"),
        ("prune: maybe\ntenants: {}", "prune: expected `bool`"),
        ("tenants: {acme: {weigth: 1}}", "tenants.acme.weigth: there is no such field"),
        ("tenants: {acme: {limits: {rpm: 1}}}", "tenants.acme.limits.rpm: there is no such"),
        ("tenants: {acme: {weight: heavy}}", "tenants.acme.weight: expected `float`"),
        ("tenants: {acme: 3}", "tenants.acme: expected `object`"),
        ("tenants: {acme: {models: ['']}}", "tenants.acme.models[0]: expected"),
        ("tenants: {acme: {models: {'*': x}}}", "tenants.acme.models: '*' stands for all"),
        ("tenants: {7: {}}", "tenants.7: a name must be"),
        ("tenants: {'a/b': {}}", "tenants.a/b: a name must be"),
        ("tenants: {acme: {keys: secret-of-mine}}", "tenants.acme.keys: expected `array`"),
        ("tenants: {acme: {keys: [secret-of-mine]}}", "tenants.acme.keys[0]: must be sha256:"),
        ("tenants: {acme: {keys: ['sha256:secret-of-mine']}}", "keys[0]: must be sha256:"),
        ("tenants: {acme: {keys: [env:NONE]}}", "keys[0]: the variable NONE must hold"),
        ("tenants: {acme: {keys: [env:SHORT]}}", "keys[0]: the variable SHORT must hold"),
        (
            "tenants: {a: {keys: [env:ACME_KEY]}, b: {keys: [env:ACME_KEY]}}",
            "tenants.b.keys[0]: is a key of tenants.a too",
        ),
        ("tenants: {a: {}, a: {}}", "a: is there twice"),
        ("tenants: {a: {secret-of-mine", "is not valid YAML at line 1"),
        ("tenants: !!python/object:os.system {}", "is not valid YAML"),
        ("tenants: \x00", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"--tenants .*tenants\.yaml: ") as caught:
        declare(tmp_path, text)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "secret-of-mine" not in message


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_tenants_file(tmp_path / "none.yaml", {})
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.yaml"):
        read_tenants_file(path, {})


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    fields=st.dictionaries(
        st.sampled_from(["models", "weight", "priority", "group", "limits", "keys", "disabled"]),
        _VALUES,
    ),
    name=st.one_of(st.text(max_size=5), st.integers()),
)
def test_any_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict, name: object
) -> None:
    import yaml

    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"tenants": {name: fields}}), encoding="utf-8")
    message = "--tenants "
    try:
        read_tenants_file(path, {})
    except ValueError as error:
        message = str(error)
    assert message.startswith("--tenants ")
    assert "\n" not in message


def test_a_declaration_does_not_show_digests(tmp_path: Path) -> None:
    assert str(bytes.fromhex(DIGEST)) not in repr(declare(tmp_path, GOOD))
