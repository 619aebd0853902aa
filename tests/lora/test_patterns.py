"""Patterns from strangers: bounded where they are read and where they match, and read as PEFT's."""

from __future__ import annotations

import re
import time

import pytest

from branchline.lora.errors import AdapterError
from branchline.lora.patterns import BoundedMatcher, PatternChecker, key_expression

MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10, 11)
    for module in ("self_attn.q_proj", "self_attn.qkv_proj", "mlp.down_proj", "input_layernorm")
] + ["model.embed_tokens", "lm_head", "model.norm"]

# As people write them, and as PEFT, unsloth and EVA do.
WRITTEN = [
    "q_proj",
    "layers.1.self_attn.q_proj",
    r"layers\.(?:1|10)\..*",
    r"^model\.layers\.\d+\.mlp\.down_proj$",
    r".*\.(self_attn|mlp)\.(q|down)_proj",
    r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|mlp).*?(?:q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))",
    r"(?!.*embed).*(?<!down)_proj",
    r"(?:(?:(?:model)\.)*layers\.)?1?[01]?.*",
    r".*layers\.1{1,2}\..*",
    r"(.*\.)?lm_head|^model\.embed_tokens$",
    "[qk]_proj|.*norm",
    "",
]


@pytest.mark.parametrize("pattern", WRITTEN)
def test_what_people_write_matches_as_re_has_it(pattern: str) -> None:
    PatternChecker().check("rank_pattern", pattern, key_expression(pattern))
    bounded = BoundedMatcher()
    found = 0
    for module in MODULES:
        for expression in (pattern, key_expression(pattern)):
            expected = re.match(expression, module)
            match = bounded.match("rank_pattern", expression, module)
            assert (match and match.span()) == (expected and expected.span())
            whole = bounded.fullmatch("rank_pattern", expression, module)
            assert whole is (re.fullmatch(expression, module) is not None)
            found += expected is not None
    assert found or pattern == "[qk]_proj|.*norm"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "not a regular expression"),
        ("*", "not a regular expression"),
        ("(" * 20_000, "not a regular expression"),
        ("(?:" * 50 + "ab" + ")+" * 50, "repeats too much"),
        ("(?:a{1000}){1000}", "repeats too much"),
        ("(?:" + "x" * 500 + "){1000}", "repeats too much"),
        ("a.*" * 20_000, "over 32768 characters"),
        ("(?:q_proj){e<=1}", "fuzzy"),
        ("[[:alpha:]]*_proj", "fuzzy matches and"),
    ],
)
def test_refuses_patterns_as_they_are_read(pattern: str, said: str) -> None:
    start = time.process_time()
    with pytest.raises(AdapterError, match=said) as caught:
        PatternChecker().check("target_modules", pattern, pattern)
    assert caught.value.field == "target_modules"
    assert len(caught.value.message) < 300
    assert time.process_time() - start < 1


def test_the_bound_is_for_all_patterns_together_and_names_are_free() -> None:
    checker = PatternChecker()
    for layer in range(2000):
        name = f"model.layers.{layer}.self_attn.q_proj"
        checker.check("rank_pattern", name, key_expression(name))
    for i in range(16):
        checker.check("rank_pattern", "a*" * 1000, f"{i}")
    with pytest.raises(AdapterError, match="over 32768"):
        checker.check("rank_pattern", "a*" * 1000, "16")


@pytest.mark.parametrize(
    "pattern", [".*(a*)(.*)(a*)(.*)\\1\\2\\3\\4d?c", "(.*)(.*)(.*)(.*)(.*)\\5\\4\\3\\2\\1c"]
)
def test_a_match_that_takes_too_long_is_given_up(pattern: str) -> None:
    """Patterns that ``re`` would be at for hours."""
    PatternChecker().check("target_modules", pattern, pattern)
    bounded = BoundedMatcher(seconds=0.2)
    start = time.process_time()
    with pytest.raises(AdapterError, match=r"more than 0\.2 s") as caught:
        bounded.fullmatch("target_modules", pattern, "model." + "a" * 200 + "bcd")
    assert caught.value.field == "target_modules"
    assert time.process_time() - start < 2
    with pytest.raises(AdapterError, match="more than"):
        bounded.match("alpha_pattern", "q_proj", "q_proj")
