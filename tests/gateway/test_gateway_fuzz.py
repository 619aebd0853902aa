"""Nothing that a client can send is a fault of ours, or reaches past its own names."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from gateway_house import gateway_house
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branchline.gateway import prepare
from branchline.gateway.endpoints import ENDPOINTS
from branchline.gateway.errors import GatewayError
from branchline.gateway.estimates import TokenEstimates
from branchline.gateway.prefix_keys import PrefixHasher, request_text
from branchline.gateway.proxy.header_rules import read_headers, to_replica
from branchline.gateway.types import Caller, Target

CALLER = Caller(tenant="mine", models={"base": "base"})
TARGET = Target(name="base", wire_name="base")
FIELDS = (
    *("model", "stream", "n", "max_tokens", "max_completion_tokens", "cache_salt", "user"),
    *("prompt_cache_key", "priority", "messages", "prompt", "add_special_tokens"),
    *("chat_template_kwargs", "stream_options", "unknown", "tools", "tool_choice", "best_of"),
    *("input", "instructions", "max_output_tokens", "text", "reasoning", "include", "tokens"),
    *("system", "thinking", "output_config", "metadata", "stop_sequences", "previous_response_id"),
)
NAMES_WITHIN = (
    *("role", "content", "name", "text", "type", "x", "tool_calls", "function", "arguments"),
    *("input", "output", "call_id", "id", "input_schema", "parameters", "effort", "user_id"),
)
KINDS = ("user", "assistant", "tool", "message", "function", "function_call", "tool_use", "text")

scalars = (
    st.sampled_from(KINDS)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES_WITHIN), inner)
    ),
    max_leaves=20,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values)


@given(st.binary(max_size=300))
@example(b"[" * 100_000)
@example(b'{"prompt":' + b'{"a":' * 50_000)
@example(b'{"n":' + b"9" * 5000 + b"}")
@example(b'{"n":1e999}')
def test_any_bytes(body: bytes) -> None:
    for endpoint in ENDPOINTS.values():
        with contextlib.suppress(GatewayError):
            endpoint.parse(body)


@given(bodies, st.sampled_from(sorted(ENDPOINTS)))
def test_any_json(fields: dict[str, Any], path: str) -> None:
    """Whatever parses can be sized, hashed, split and estimated."""
    body, endpoint = json.dumps(fields).encode(), ENDPOINTS[path]
    try:
        request = endpoint.parse(body)
    except GatewayError:
        return
    text = request_text(request.messages, request.prompt)
    size = prepare.prompt_size(request, text, body)
    namespace = prepare.prefix_namespace(CALLER, TARGET, request)
    assert PrefixHasher(bytes(32)).keys(namespace, text) is not None
    assert prepare.split_key(CALLER, {}, request, text)
    estimate = TokenEstimates().estimate("m", request, size, 4096, endpoint.charges)
    assert 0 <= estimate.num_input_tokens <= 4096 * request.num_prompts
    assert 0 <= estimate.num_output_tokens <= 4096 * 128 * 256


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=60)), max_size=8))
def test_any_headers(raw: list[tuple[bytes, bytes]]) -> None:
    headers = read_headers([(name.lower(), value) for name, value in raw])
    if headers is not None:
        for name, value in to_replica(headers).items():
            assert name in ("content-type", "accept", "user-agent", "traceparent", "tracestate")
            assert value.isprintable()


KEYS = [b'"model"', b'"mod\\u0065l"', b'"MODEL"', b'"model "', b'"x-branchline-model"']
NAMES = [
    b'"base"',
    b'"theirs"',
    b'"fleet/' + b"d" * 32 + b'"',
    b"null",
    b'["theirs"]',
    b'"\\u0000"',
]


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    pairs=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(NAMES)), max_size=4),
    header=st.sampled_from(["x-branchline-model", "x-branchline-tenant", "x-branchline-resume"]),
    value=st.sampled_from(["theirs", "fleet/" + "d" * 32, "5", ""]),
)
async def test_no_body_and_no_header_reaches_another_tenants_adapter(
    pairs: list[tuple[bytes, bytes]], header: str, value: str
) -> None:
    async with gateway_house(1) as house:
        house.adapters.adapters = {"theirs": "d" * 32}
        house.tenants.callers = {"k": CALLER}
        body = b"{" + b",".join(key + b":" + name for key, name in pairs) + b"}"
        headers = {
            "authorization": "Bearer k",
            "content-type": "application/json",
            header: value,
            "x-branchline-cache-group": "theirs",
        }
        async with house.post(data=body, headers=headers) as response:
            assert response.status < 500
        for head in house.replicas[0].headers:
            assert head["x-branchline-model"] == "base"
            assert head["x-branchline-tenant"] == "mine"
            assert "x-branchline-cache-group" not in head
            assert "x-branchline-resume" not in head
