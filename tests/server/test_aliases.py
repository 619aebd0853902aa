"""Splits of an alias: even, stable, and moved by no more keys than have to."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.server.aliases import AliasTarget, check_targets, pick_target
from branchline.server.errors import ApiError

KEYS = [f"user-{n}" for n in range(5000)]


def split(percent: float) -> list[AliasTarget]:
    """``percent`` to version 2, the rest to version 1."""
    return [AliasTarget("a", 2, percent), AliasTarget("a", 1, 100 - percent)]


def keys_of(version: int, targets: list[AliasTarget], alias: str = "canary") -> set[str]:
    return {key for key in KEYS if pick_target(alias, targets, key).version == version}


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99.5, 100])
def test_a_share_is_that_share_of_the_keys(percent: float) -> None:
    share = 100 * len(keys_of(2, split(percent))) / len(KEYS)
    assert share == pytest.approx(percent, abs=0 if percent in (0, 100) else 2)


def test_the_order_in_which_targets_are_given_plays_no_part() -> None:
    assert keys_of(2, split(10)) == keys_of(2, split(10)[::-1])


def test_a_share_that_grows_takes_keys_and_gives_none_back() -> None:
    shares = [keys_of(2, split(percent)) for percent in (0, 10, 20, 21, 80, 100)]
    for smaller, larger in pairwise(shares):
        assert smaller < larger


def test_aliases_split_the_same_keys_differently() -> None:
    one, other = keys_of(2, split(50), "one"), keys_of(2, split(50), "other")
    assert 0.2 < len(one & other) / len(KEYS) < 0.3


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=16),
    st.text(max_size=20),
)
def test_every_key_has_a_target(weights: list[int], key: str) -> None:
    targets = [
        AliasTarget(f"a{index}", None, 100 * weight / sum(weights))
        for index, weight in enumerate(weights)
    ]
    check_targets(targets)
    assert pick_target("alias", targets, key) in targets


def test_a_lone_surrogate_is_a_key() -> None:
    assert pick_target("alias", [AliasTarget("a")], "\ud800").adapter == "a"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "must be 1 to 16"),
        ([AliasTarget(f"a{n}", None, 100 / 17) for n in range(17)], "not 17"),
        ([AliasTarget("a", None, 50)], "sum to 50, not to 100"),
        ([AliasTarget("a", 1, 60), AliasTarget("b", 1, 60)], "sum to 120"),
        ([AliasTarget("a", 1, 50), AliasTarget("a", 1, 50)], "twice"),
        ([AliasTarget("a", 1, 150), AliasTarget("b", 1, -50)], "between 0 and 100"),
        ([AliasTarget("a", 1, float("nan"))], "between 0 and 100"),
    ],
)
def test_bad_splits_are_refused(targets: list[AliasTarget], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        check_targets(targets)
    assert (caught.value.status, caught.value.param) == (400, "targets")
