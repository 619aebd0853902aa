"""The recorded conversations as prompts, and the simulated caches that they are held against."""

from __future__ import annotations

from itertools import combinations

import pytest

from branchline.benchmarks.cases import conversation
from branchline.benchmarks.cases.agent_loop import num_common
from branchline.benchmarks.cases.conversation import TracedRequest, simulate


def test_the_head_is_small_and_whole() -> None:
    assert conversation.TRACE.stat().st_size < 200_000
    requests = conversation.read_trace(conversation.TRACE, 10_000)
    assert len(requests) == 400
    assert [request.timestamp for request in requests] == sorted(r.timestamp for r in requests)
    for request in requests:
        assert len(request.hash_ids) == -(-request.input_length // conversation.TRACED_BLOCK)
    assert conversation.read_trace(conversation.TRACE, 7) == requests[:7]


def test_prompts_share_tokens_exactly_where_their_ids_agree() -> None:
    requests = conversation.read_trace(conversation.TRACE, 60)
    prompts = conversation.prompts_of(requests, 8, 9_000)
    assert prompts == conversation.prompts_of(requests, 8, 9_000)
    shared = 0
    for (one, first), (other, second) in combinations(zip(requests, prompts, strict=True), 2):
        common = 8 * num_common(one.hash_ids, other.hash_ids)
        shared += common
        assert num_common(first, second) == min(common, len(first), len(second))
    assert shared > 0
    assert all(300 <= token < 9_000 for prompt in prompts for token in prompt)


@pytest.mark.parametrize(("length", "tokens"), [(1024, 32), (513, 17), (768, 24), (544, 17)])
def test_the_last_block_is_as_full_as_it_was(length: int, tokens: int) -> None:
    request = TracedRequest(0, length, 5, [0, 1])
    assert len(conversation.prompts_of([request], 16, 9_000)[0]) == tokens


A, B, C, D = ([n] * 4 for n in (1, 2, 3, 4))


def test_an_endless_cache_finds_the_longest_beginning_in_full_blocks() -> None:
    assert simulate([A + B + [9], A + B + [9]], 4) == [0, 8]
    # The last token is computed even where all is there.
    assert simulate([A + B, A + B], 4) == [0, 4]
    # A block is the same only after the same beginning.
    assert simulate([A + B, C + B + [9]], 4) == [0, 0]
    assert simulate([[*A, 2, 2], [*A, 2, 2, 3]], 4) == [0, 4]


def test_a_small_cache_drops_the_oldest_and_of_a_prompt_its_tail() -> None:
    full = [A + B + [9], C + D + [9], A + B + [9]]
    assert simulate(full, 4, max_blocks=4) == [0, 0, 8]
    assert simulate(full, 4, max_blocks=3) == [0, 0, 4]
    assert simulate(full, 4, max_blocks=2) == [0, 0, 0]
    # Use keeps: A B is newer than C D when room is needed.
    used = [A + B + [9], C + D + [9], A + B + [9], C + C + [9], A + B + [9], C + D + [9]]
    assert simulate(used, 4, max_blocks=4)[4:] == [8, 4]


def test_distinct_blocks_are_counted_once() -> None:
    assert conversation.num_distinct_blocks([A + B, A + C + [9], A], 4) == 3
