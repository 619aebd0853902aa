"""Tenants take turns at having their grammars checked, and none can fill the line."""

from __future__ import annotations

import asyncio

import pytest

from branchline.engine.types import Grammar
from branchline.server.errors import ApiError
from branchline.server.structured.checks import MAX_OF_TENANT, GrammarChecks
from branchline.server.structured.read import FieldGrammar
from branchline.server.structured.turns import Turns


def wanted(text: str) -> FieldGrammar:
    return FieldGrammar("guided_regex", Grammar("regex", text))


async def test_a_tenant_with_many_grammars_keeps_nobody_waiting() -> None:
    checks = GrammarChecks("branchline.tests.support.structured_cases:slow")
    try:
        await checks.checked(wanted("x"), "a")
        many = [
            asyncio.create_task(checks.checked(wanted(f"{i}"), "a"))
            for i in range(MAX_OF_TENANT + 6)
        ]
        await asyncio.sleep(0)
        assert await checks.checked(wanted("x"), "b")
        assert await checks.checked(wanted("y"), "b")
        assert sum(task.done() and not task.exception() for task in many) < MAX_OF_TENANT // 2
        ends = await asyncio.gather(*many, return_exceptions=True)
    finally:
        await checks.close()
    refused = [end for end in ends if isinstance(end, ApiError)]
    assert [(end.status, "of this tenant" in end.message) for end in refused] == [(429, True)] * 6
    assert sum(isinstance(end, Grammar) for end in ends) == MAX_OF_TENANT


async def test_the_same_grammar_many_times_is_one_check() -> None:
    checks = GrammarChecks("branchline.tests.support.structured_cases:slow")
    try:
        alike = [checks.checked(wanted("x"), "a") for _ in range(MAX_OF_TENANT * 3)]
        async with asyncio.timeout(MAX_OF_TENANT * 0.05 + 30):
            found = await asyncio.gather(*alike)
    finally:
        await checks.close()
    assert len({id(grammar) for grammar in found}) == 1


async def test_a_line_that_was_left_is_free_again() -> None:
    turns = Turns(1, 2)

    async def wait() -> None:
        async with turns.take("a"):
            await asyncio.sleep(3600)

    waiting = [asyncio.create_task(wait()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="2 grammars of this tenant"):
        async with turns.take("a"):
            pass
    async with turns.take("b"):
        pass
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with turns.take("a"), turns.take("b"):
        pass
