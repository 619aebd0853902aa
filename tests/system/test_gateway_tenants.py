"""Tenants of a real fleet: two gateways, two replicas, the command line and the OpenAI client."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import Fleet, fleet
from server_process import wait_for
from tenant_fleet import TenantFleet, cached, refusal, tenant_cli
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
SHORT: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 4}
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}

NUM_SHARING = 10
INVOCATION = [201, 202, 203]
SYSTEM_PROMPT = [17 * n % 97 for n in range(400)]
"""Token ids, of which the invocation has none."""


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two plain adapters, and an activated one for each of the tenants that share."""
    root = tmp_path_factory.mktemp("tenants")
    model = make_tiny_model(root / "model", "llama", max_position_embeddings=4096)
    plain = {name: make_adapter(model, root / name, 8, seed=n) for n, name in enumerate("ab")}
    activated = {
        f"task-{n}": make_adapter(
            model, root / f"task-{n}", 4, seed=10 + n, alora_invocation_tokens=INVOCATION
        )
        for n in range(NUM_SHARING + 1)
    }
    return {"": model, **plain, **activated}


@pytest.fixture(scope="module")
def house(lora: dict[str, Path]) -> Iterator[TenantFleet]:
    adapters = {name: path for name, path in lora.items() if name}
    with fleet(lora[""], gateways=2, lora=adapters, serve_flags=SERVE_FLAGS) as running:
        yield TenantFleet(running)


def test_a_tenant_sees_its_own_names_and_no_others(house: TenantFleet) -> None:
    house.tenant("acme", "--model", "legal=a", "--model", BASE)
    with house.connect("acme") as client:
        assert {model.id for model in client.models.list()} == {"legal", BASE}
        answer = client.chat.completions.create(model="legal", **SHORT)
        assert answer.model == "legal"
        with openai.OpenAI(base_url=house.fleet.gateway.api_url, api_key="any") as anybody:
            told = anybody.chat.completions.create(model="a", **SHORT)
        assert answer.choices[0].message.content == told.choices[0].message.content
        missing = []
        for name in ("b", "nosuch"):
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model=name, **SHORT)
            missing.append(str(refusal(caught.value)).replace(name, "NAME"))
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(name)
        assert missing[0] == missing[1]


def test_requests_a_minute_hold_over_both_gateways(house: TenantFleet) -> None:
    house.tenant("brisk", "--requests-per-minute", "5")
    clients = [house.connect("brisk", gateway) for gateway in (0, 1)]
    for number in range(5):
        raw = clients[number % 2].with_raw_response.chat.completions.create(model=BASE, **SHORT)
        assert raw.headers["x-ratelimit-limit-requests"] == "5"
        assert raw.headers["x-ratelimit-remaining-requests"] == str(4 - number)
    for client in clients:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=BASE, **SHORT)
        headers = caught.value.response.headers
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(headers["retry-after"]) <= 61
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"]


def test_a_budget_ends_and_is_not_overdrawn(house: TenantFleet) -> None:
    house.tenant("thrifty", "--budget-tokens-per-day", "400")
    spent = []

    def spend(client: openai.OpenAI) -> None:
        while len(spent) < 100:
            usage = client.chat.completions.create(model=BASE, **SHORT).usage
            assert usage is not None
            spent.append(usage.total_tokens)

    for gateway in (0, 1, 0, 1):  # what was reserved beyond need comes back a moment later
        with house.connect("thrifty", gateway) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                spend(client)
            assert caught.value.code == "insufficient_quota"
    assert len(spent) >= 2
    assert sum(spent) <= 400


def test_in_flight_is_counted_over_both_gateways(house: TenantFleet) -> None:
    house.tenant("narrow", "--max-in-flight", "2")
    clients = [house.connect("narrow", gateway) for gateway in (0, 1)]
    streams = [
        client.chat.completions.create(model=BASE, stream=True, **LONG) for client in clients
    ]
    for stream in streams:
        next(iter(stream))
    for client in clients:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=BASE, **SHORT)
    for stream in streams:
        stream.response.close()

    def is_let_in() -> bool:
        try:
            return bool(clients[0].chat.completions.create(model=BASE, **SHORT).choices)
        except openai.RateLimitError:
            return False

    wait_for(is_let_in, 10, house.fleet.output)


def test_usage_is_what_the_clients_saw(house: TenantFleet) -> None:
    house.tenant("counted")
    seen: dict[str, Counter[str]] = {"base": Counter(), "a": Counter(), "b": Counter()}
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    for number in range(12):
        model = (BASE, "a", "b")[number % 3]
        with house.connect("counted", number % 2) as client:
            if number < 6:
                usage = client.chat.completions.create(model=model, n=2, **SHORT).usage
            else:
                chunks = client.chat.completions.create(model=model, **options, **SHORT)
                usage = list(chunks)[-1].usage
        seen[model].update(
            num_requests=1,
            num_input_tokens=usage.prompt_tokens,
            num_output_tokens=usage.completion_tokens,
            num_cached_tokens=usage.prompt_tokens_details.cached_tokens,
        )

    def counted() -> dict[str, dict[str, int]]:
        rows = house.usage("counted")
        return {label: {name: rows[label][name] for name in seen["a"]} for label in rows}

    wanted = {label: dict(counts) for label, counts in seen.items()}
    wait_for(lambda: counted() == wanted, 20, lambda: f"{counted()} is not {wanted}")
    table = house.run("usage", "counted")
    assert "complete until" in table
    assert all(f"{counts['num_input_tokens']}" in table for counts in wanted.values())


def test_ten_tenants_of_a_group_share_one_system_prompt(house: TenantFleet) -> None:
    """Each has an activated adapter of its own; who is in no group shares nothing."""
    names = [f"member-{n}" for n in range(NUM_SHARING)]
    for n, name in enumerate(names):
        house.tenant(name, "--model", f"mine=task-{n}", "--group", "house")
    house.tenant("outsider", "--model", f"mine=task-{NUM_SHARING}")

    def ask(name: str, question: int) -> Any:
        prompt = [*SYSTEM_PROMPT, *([100 + question] * 20), *INVOCATION]
        with house.connect(name) as client:
            return client.completions.create(
                model="mine", prompt=[prompt], max_tokens=4, temperature=0
            )

    first = ask(names[0], 0)
    assert cached(first) == 0
    others = [cached(ask(name, 1 + n)) for n, name in enumerate(names[1:])]
    assert min(others) >= len(SYSTEM_PROMPT) // 16 * 16
    assert cached(ask("outsider", 50)) == 0
    assert cached(ask("outsider", 51)) > 0
    with house.connect(names[1]) as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="task-0", prompt="not mine", max_tokens=1)


def test_a_revoked_key_opens_nowhere_within_a_second(house: TenantFleet) -> None:
    key = house.tenant("leaving")
    for gateway in (0, 1):
        wait_for(lambda n=gateway: house.status(key, n) == 200, 5)  # type: ignore[misc]
    (line,) = [line for line in house.run("key", "list", "leaving").splitlines() if "…" in line]
    assert key not in line
    house.run("key", "revoke", "leaving", line.split()[0])
    revoked = time.monotonic()
    assert house.status(key, 0) == 401
    wait_for(lambda: house.status(key, 1) == 401, 1)
    assert time.monotonic() - revoked < 1.5


def test_a_new_key_and_a_new_name_count_at_the_other_gateway_at_once(house: TenantFleet) -> None:
    """Made by one request at one gateway, used by the very next at the other."""
    one, two = (gateway.base_url for gateway in house.fleet.gateways)
    chat = {"model": "short-0", **SHORT}
    with httpx.Client(timeout=30) as client:
        for number in range(4):
            path = f"{one}/admin/tenants/new-{number}"
            models = {f"short-{n}": "a" for n in range(number + 1)}
            client.put(path, json={"models": models}).raise_for_status()
            key = client.post(f"{path}/keys").raise_for_status().json()["key"]
            headers = {"authorization": f"Bearer {key}"}
            answer = client.get(f"{two}/v1/models", headers=headers)
            assert answer.status_code == 200, answer.text
            client.put(path, json={"models": {"later": "a"}}).raise_for_status()
            later = chat | {"model": "later"}
            answer = client.post(f"{two}/v1/chat/completions", json=later, headers=headers)
            assert answer.status_code == 200, answer.text


def test_admins_need_their_key_where_there_is_one(house: TenantFleet) -> None:
    running: Fleet = house.fleet
    flags, running.gateway_flags = running.gateway_flags, ()
    gateway = running.start_gateway("--admin-key", "k-of-admins")
    running.gateway_flags = flags
    try:
        gateway.wait_until_ready(60)
        url = gateway.base_url
        for given in ("", "wrong", house.tenant("nosy")):
            refused = tenant_cli(url, "list", admin_key=given)
            assert refused.returncode != 0
            assert "A valid admin key is needed" in refused.stderr
        bodiless = httpx.put(f"{url}/admin/tenants/evil", json={"models": ["*"]})
        assert bodiless.status_code == 401
        assert httpx.get(f"{url}/v1/models").status_code == 401  # nor is anybody anonymous here
        listed = tenant_cli(url, "list", admin_key="k-of-admins")
        assert "nosy" in listed.stdout
        assert "evil" not in listed.stdout
    finally:
        gateway.terminate()
        gateway.wait()
        running.gateways.remove(gateway)
