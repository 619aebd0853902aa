"""Activated LoRA and cached KV: whose blocks an answer is made of, and who may use them again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from activated import (
    BLOCK_SIZE,
    INVOCATIONS,
    KV_BYTES_PER_TOKEN,
    LOUD,
    PLAIN,
    SHOUT,
    Answer,
    Served,
    check_all,
    generate,
    request,
    serve,
    start,
    whole_blocks,
    words,
)
from oracle import GREEDY, Reference, reference_generate
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(tmp_path_factory.mktemp("llama"), "llama")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that ``LOUD`` answers with its own invocation, somewhere before the end.

    ``activation`` is the prompt's, ``next_activation`` that of prompt and answer as a new prompt.
    """

    prompt: list[int]
    output: list[int]
    activation: int
    next_activation: int

    @property
    def next_prompt(self) -> list[int]:
        return [*self.prompt, *self.output, *words(2, 41)]


@pytest.fixture(scope="module")
def conversation(llama: Served) -> Conversation:
    """Found by trying; PEFT would go on otherwise if it took the answer's for an invocation."""
    [invocation] = INVOCATIONS[LOUD]
    params = replace(GREEDY, ignore_eos=True)
    for seed in range(300):
        prompt = [*words(21, 100 + seed), invocation, *words(9, 500 + seed)]
        output = reference_generate(llama.reference, prompt, LOUD, params, 32)
        if invocation not in output[2:-8] or invocation in output[-8:]:
            continue
        last = len(output) - 1 - output[::-1].index(invocation)
        rest = output[last + 1 :]
        moved = reference_generate(llama.reference, prompt + output[: last + 1], LOUD, params, 32)
        if moved[: len(rest)] != rest:
            return Conversation(prompt, output, 21, len(prompt) + last)
    raise AssertionError("no answer holds the invocation; other weights would")


def test_an_invocation_in_the_answer_moves_nothing(
    llama: Served, conversation: Conversation
) -> None:
    for chunk in (1, 2048):
        generation = request("loud", conversation.prompt, LOUD, max_tokens=32)
        [answer] = generate(start(llama, max_num_batched_tokens=chunk), [generation]).values()
        check_all(llama, [generation], {"loud": answer})
        assert answer.token_ids == conversation.output


@pytest.mark.parametrize("caching", [False, True])
def test_it_moves_nothing_when_the_request_is_preempted_and_computed_again(
    llama: Served, conversation: Conversation, caching: bool
) -> None:
    """The pool holds two requests until just after each has said the invocation."""
    generations = [  # salted, so that they share no blocks
        replace(request(f"r{i}", conversation.prompt, LOUD, max_tokens=32), cache_salt=f"salt {i}")
        for i in range(2)
    ]
    num_blocks = 2 * -(-(conversation.next_activation + 2) // 4) + 1
    loop = start(
        llama,
        max_model_len=64,
        block_size=4,
        kv_cache_gb=num_blocks * 4 * KV_BYTES_PER_TOKEN / 2**30,
        enable_prefix_caching=caching,
    )
    answers = generate(loop, generations)
    assert loop.stats().num_preemptions > 0
    assert all(answer.token_ids == conversation.output for answer in answers.values())


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_later_activation_takes_nothing_that_the_adapter_computed(
    llama: Served, conversation: Conversation, block_size: int
) -> None:
    """The answer's blocks hold the invocation; as a prompt, they are the base model's."""
    loop = start(llama, block_size=block_size)
    first = request("first", conversation.prompt, LOUD, max_tokens=32)
    second = request("second", conversation.next_prompt, LOUD)
    answers = {}
    for generation in (first, second):
        answers |= generate(loop, [generation])
        check_all(llama, [generation], answers)
    assert answers["first"].num_cached_tokens == 0
    base_blocks = whole_blocks(conversation.activation, block_size)
    assert answers["second"].num_cached_tokens == base_blocks > 0


def test_one_block_with_two_activations_is_two(llama: Served, conversation: Conversation) -> None:
    """Prompt, answer and both activations are in one full block, which only one may use."""
    block_size = conversation.next_activation + 4
    loop = start(llama, block_size=block_size)
    rounds = [
        ("early", conversation.prompt, 32, 0),
        ("late", conversation.next_prompt, 12, 0),
        ("late again", conversation.next_prompt, 12, block_size),
    ]
    for name, prompt, max_tokens, num_cached in rounds:
        generation = request(name, prompt, LOUD, max_tokens)
        [answer] = generate(loop, [generation]).values()
        check_all(llama, [generation], {name: answer})
        assert answer.num_cached_tokens == num_cached, name


def test_a_block_that_ends_within_an_invocation(llama: Served) -> None:
    """Its tokens are the same where the invocation goes on behind it and where it does not."""
    invocation = INVOCATIONS[SHOUT]
    block = [*words(9, 80), *invocation, *words(3, 81), invocation[0]]
    assert len(block) == BLOCK_SIZE
    unfinished, finished = block + words(6, 82), block + invocation[1:] + words(6, 82)
    loop = start(llama)
    rounds = [
        ("first", unfinished, 0),
        ("second", finished, 0),
        ("first again", unfinished, BLOCK_SIZE),
        ("second again", finished, BLOCK_SIZE),
    ]
    for name, prompt, num_cached in rounds:
        generation = request(name, prompt, SHOUT)
        [answer] = generate(loop, [generation]).values()
        check_all(llama, [generation], {name: answer})
        assert answer.num_cached_tokens == num_cached, name


def test_each_activation_finds_its_own_blocks_again(
    llama: Served, conversation: Conversation
) -> None:
    """The same tokens by the base and with either activation: three sets of blocks, one beginning.

    The second round finds all full blocks of each, but for the one with the last token.
    """
    loop = start(llama, block_size=4)
    start_of_all = whole_blocks(conversation.activation, 4)
    full = whole_blocks(len(conversation.next_prompt) - 1, 4)
    later = whole_blocks(conversation.next_activation, 4)
    rounds = [
        ("early", conversation.prompt, LOUD, 0),
        ("late", conversation.next_prompt, LOUD, start_of_all),
        ("base", conversation.next_prompt, None, later),
        ("early again", conversation.prompt, LOUD, whole_blocks(len(conversation.prompt) - 1, 4)),
        ("late again", conversation.next_prompt, LOUD, full),
        ("base again", conversation.next_prompt, None, full),
        ("plain", conversation.next_prompt, PLAIN, 0),
    ]
    for name, prompt, adapter, num_cached in rounds:
        generation = request(name, prompt, adapter, max_tokens=32)
        [answer] = generate(loop, [generation]).values()
        check_all(llama, [generation], {name: answer})
        assert answer.num_cached_tokens == num_cached, name


def test_without_an_invocation_it_shares_all_with_the_base(llama: Served) -> None:
    loop, prompt = start(llama), words(40, 70)
    for name, adapter, num_cached in (("base", None, 0), ("loud", LOUD, 32), ("plain", PLAIN, 0)):
        generation = request(name, prompt, adapter)
        [answer] = generate(loop, [generation]).values()
        check_all(llama, [generation], {name: answer})
        assert answer.num_cached_tokens == num_cached, name


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Ten activated adapters of several ranks, each with an invocation of its own."""
    directory = tmp_path_factory.mktemp("ten")
    model = make_tiny_model(directory / "model", "llama", max_position_embeddings=2304)
    adapters = {
        f"skill{i}": make_adapter(
            model,
            directory / f"skill{i}",
            (4, 8, 16, 24)[i % 4],
            seed=i,
            alora_invocation_tokens=[201, 210 + i],
        )
        for i in range(10)
    }
    return Served(model, adapters, Reference(model, adapters))


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
@pytest.mark.parametrize("chunk", [256, 4096])
def test_ten_adapters_compute_one_system_prompt_once(
    ten: Served, at_once: bool, chunk: int
) -> None:
    system = words(2003, 50)
    shared = whole_blocks(len(system), BLOCK_SIZE)
    generations = [
        request(name, [*system, 201, 210 + i, *words(4, 60 + i)], name, max_tokens=8)
        for i, name in enumerate(ten.adapters)
    ]
    loop = start(ten, max_num_batched_tokens=chunk, kv_cache_gb=0.05)
    answers: dict[str, Answer] = {}
    if at_once:
        answers = generate(loop, generations)
    else:
        for generation in generations:
            answers |= generate(loop, [generation])
    check_all(ten, generations, answers)
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 10
    cached = sorted(answer.num_cached_tokens for answer in answers.values())
    assert cached == [0] + [shared] * 9
    num_prompt_tokens = sum(len(generation.prompt_token_ids) for generation in generations)
    assert loop.stats().num_computed_prompt_tokens == num_prompt_tokens - 9 * shared
