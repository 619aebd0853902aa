"""What a reader has left unread, and when that is too much."""

from __future__ import annotations

from branchline.engine.types import TokenLogprobs, TokenOutput
from branchline.engine.unread import (
    MAX_ENTRIES_IN_ALL,
    MAX_UNREAD_ENTRIES,
    MIN_UNREAD_ENTRIES,
    UnreadOutputs,
    unread_bound,
)


def output(num_top: int | None = None, **fields) -> TokenOutput:
    logprobs = None
    if num_top is not None:
        top = list(range(num_top))
        logprobs = [TokenLogprobs(1, -1.0, 1, top, [-1.0] * num_top)]
    return TokenOutput(request_id="r", token_ids=[1], logprobs=logprobs, **fields)


async def test_a_reader_that_keeps_up_is_never_held_up() -> None:
    unread = UnreadOutputs()
    for _ in range(3 * MAX_UNREAD_ENTRIES):
        assert not unread.put(output(20))
        taken = await unread.get()
        assert taken is not None
        assert not unread.read(taken)


async def test_it_is_held_once_and_goes_on_once_at_a_quarter() -> None:
    unread = UnreadOutputs()
    held = [unread.put(output()) for _ in range(MAX_UNREAD_ENTRIES + 3)]
    assert [number for number, is_held in enumerate(held) if is_held] == [MAX_UNREAD_ENTRIES]
    goes_on = []
    for _ in held:
        taken = await unread.get()
        assert taken is not None
        goes_on.append(unread.read(taken))
    assert [number for number, goes in enumerate(goes_on) if goes] == [
        len(held) - 1 - MAX_UNREAD_ENTRIES // 4
    ]
    assert any(unread.put(output()) for _ in range(MAX_UNREAD_ENTRIES + 1)), "held again"


def test_logprobs_count() -> None:
    unread = UnreadOutputs()
    num_put = 1
    while not unread.put(output(20)):
        num_put += 1
    assert num_put == MAX_UNREAD_ENTRIES // 22 + 1


def test_a_request_that_has_ended_is_not_held() -> None:
    unread = UnreadOutputs()
    for _ in range(MAX_UNREAD_ENTRIES):
        assert not unread.put(output())
    assert not unread.put(output(finish_reason="length"))


def test_scores_of_a_long_prompt_do_not_hold_it() -> None:
    scores = [None, *(TokenLogprobs(1, -1.0, 1, [1, 2], [-1.0, -2.0]) for _ in range(5000))]
    assert not UnreadOutputs().put(output(prompt_logprobs=scores))


async def test_many_requests_share_a_bound() -> None:
    assert unread_bound(0) == unread_bound(256) == MAX_UNREAD_ENTRIES
    assert unread_bound(1024) == MAX_ENTRIES_IN_ALL // 1024 == 1024
    assert unread_bound(10**6) == MIN_UNREAD_ENTRIES
    unread = UnreadOutputs()
    assert [unread.put(output(), 100) for _ in range(101)] == [False] * 100 + [True]
    for left in range(100, -1, -1):
        taken = await unread.get()
        assert taken is not None
        assert unread.read(taken) == (left == 25)


async def test_the_end_comes_behind_what_is_unread() -> None:
    unread = UnreadOutputs()
    unread.put(output())
    unread.end()
    assert await unread.get() is not None
    assert await unread.get() is None
