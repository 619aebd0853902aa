"""What a body holds is counted right, whatever its strings look like."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.body import parse_body
from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet import nesting

VALUES = st.recursive(
    st.text('"\\{[:\n ab', max_size=6) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('"\\{[:a', max_size=3), inner, max_size=4)
    ),
)


def count(value: object) -> tuple[int, int]:
    if not isinstance(value, dict | list):
        return 0, 0
    below = [count(item) for item in (value.values() if isinstance(value, dict) else value)]
    num_fields = len(value) if isinstance(value, dict) else 0
    return 1 + sum(nested for nested, _ in below), num_fields + sum(some for _, some in below)


@given(VALUES)
def test_every_object_list_and_field_counts_and_no_text(value: object) -> None:
    num_nested, num_fields = count(value)
    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "MAX_NESTED", num_nested)
        patch.setattr(nesting, "MAX_FIELDS", num_fields)
        assert nesting.too_many(body) is None
        patch.setattr(nesting, "MAX_FIELDS", num_fields - 1)
        assert nesting.too_many(body) == f"more than {num_fields - 1} fields"
        patch.setattr(nesting, "MAX_NESTED", num_nested - 1)
        assert nesting.too_many(body) == f"more than {num_nested - 1} objects and lists"


def test_a_gateway_takes_a_long_program_and_no_heap_of_lists() -> None:
    program = json.dumps({"model": "a", "prompt": 'f({"a": [{"b": "c\\n"}]});' * 70_000})
    assert parse_body(program.encode()).num_prompts == 1
    with pytest.raises(GatewayError, match="more than 131072 objects and lists"):
        parse_body(b'{"model": "a", "prompt": "x", "logit_bias": [' + b"[]," * 140_000 + b"[]]}")
