"""Who goes first: recency, weighed with the cost of coming back."""

from __future__ import annotations

from branchline.lora.greedy_dual import GreedyDual


def test_with_equal_costs_the_least_recently_used_goes_first() -> None:
    uses = GreedyDual()
    for key in "abcab":
        uses.use(key)
    assert uses.order("abc", lambda key: 1.0) == ["c", "a", "b"]


def test_what_costs_more_to_restore_stays_longer_but_not_for_ever() -> None:
    uses = GreedyDual()
    costs = {"dear": 5.0, "cheap": 1.0}
    uses.use("dear")
    uses.use("cheap")
    order = uses.order(costs, costs.__getitem__)
    assert order == ["cheap", "dear"]
    for _ in range(3):  # one comes, one goes, and the clock moves on
        uses.gone("cheap", costs["cheap"])
        uses.use("cheap")
        assert uses.order(costs, costs.__getitem__) == ["cheap", "dear"]
    uses.gone("cheap", costs["cheap"])
    uses.use("cheap")
    assert uses.order(costs, costs.__getitem__) == ["dear", "cheap"]


def test_a_key_that_is_forgotten_starts_anew() -> None:
    uses = GreedyDual()
    uses.use("a")
    uses.use("b")
    uses.use("a")
    uses.forget("a")
    assert uses.order("ba", lambda key: 1.0) == ["a", "b"], "never used comes before used"
