"""Counts by name: a bounded number of names, none that is gone."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from branchline.server.model_meter import ModelMeter


def scrape(meter: ModelMeter) -> str:
    registry = CollectorRegistry()
    registry.register(meter)
    return generate_latest(registry).decode()


def row(model: str, number: float) -> str:
    return f'branchline:model_generation_tokens_total{{model="{model}",model_name="base"}} {number}'


def count(meter: ModelMeter, name: str, number: int) -> None:
    meter.counts_of(name).num_generation_tokens += number


def test_names_past_the_limit_count_together() -> None:
    names = ["base", "alias", *(f"a{index}" for index in range(5))]
    meter = ModelMeter(["base", "alias"], lambda: names, max_labels=2)
    for index, name in enumerate(names):
        count(meter, name, 2**index)
    text = scrape(meter)
    for expected in (
        row("base", 1.0),
        row("alias", 2.0),
        row("a0", 4.0),
        row("a1", 8.0),
        row("other", 112.0),
    ):
        assert expected in text
    assert "a2" not in text


def test_a_removed_name_goes_and_makes_room() -> None:
    names = ["base", "one", "two"]
    meter = ModelMeter(["base"], lambda: names, max_labels=1)
    count(meter, "one", 1)
    count(meter, "two", 2)
    meter.counts_of("one").num_requests[200] += 1
    names.remove("one")
    assert '"one"' not in scrape(meter)
    count(meter, "two", 5)
    text = scrape(meter)
    assert row("two", 5.0) in text
    assert row("other", 2.0) in text
    count(meter, "one", 1)  # a request that ends after its adapter
    text = scrape(meter)
    assert row("other", 3.0) in text


def test_many_names_that_come_and_go_leave_nothing() -> None:
    names = ["base"]
    meter = ModelMeter(["base"], lambda: names)
    for index in range(5000):
        names[1:] = [f"name-{index}"]
        count(meter, names[1], 1)
        if index % 100 == 0:
            scrape(meter)
    text = scrape(meter)
    assert len(text) < 3000
    assert row("name-4999", 1.0) in text


def test_a_name_that_is_called_other() -> None:
    meter = ModelMeter(["base"], lambda: ["base", "other", "one"], max_labels=1)
    for name in ("other", "one", "two"):
        count(meter, name, 1)
    text = scrape(meter)
    assert row("other", 2.0) in text
    assert text.count(row("other", 2.0)[:70]) == 1
