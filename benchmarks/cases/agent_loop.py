"""An agent's loop: every turn sends the whole conversation again, the model's answers too.

The ideal is what a cache of full blocks can hold of one turn for the next. After turn t the KV of
prompt_t and of its answer is there, all but the answer's last token (sampled, never computed), so

    ideal[t + 1] = full blocks of min(common, len(prompt_t) + len(answer_t) - 1)

where ``common`` is how far prompt_t+1 begins with prompt_t + answer_t. An activated LoRA computed
its answer with weights that the next turn, in which that answer is history, does not use: its ideal
ends where its invocation began, ``min(common, activation_t)``. The first turn has nothing to find.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Final

import click

from branchline.lora.activation import find_activation
from branchline.server.bench.workload import WORDS

from .client import Answer, Client
from .ttft import random_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """A conversation: ``first_tokens``, then ``turn_tokens`` more before each answer."""

    num_turns: int
    first_tokens: int
    turn_tokens: int
    answer_tokens: int
    vocab_size: int
    block_size: int
    generation_prompt: list[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """Prompt tokens of one turn: all, those that the server had, those it could have had.

    ``ideal_as_sent`` is the ideal had the answer come back as the ids that were generated.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    ideal: int
    ideal_as_sent: int


async def run_token_ids(
    client: Client, model: str, plan: AgentPlan, invocation: list[int] | None
) -> list[Turn]:
    """The loop over /v1/completions with token ids: answers come back as they were generated."""
    salt = f"{model} token ids"  # nothing is left of other conversations
    generator = random.Random(salt)
    prompt = random_tokens(generator, plan.first_tokens, plan.vocab_size)
    answers: list[Answer] = []
    for _ in range(plan.num_turns):
        news = random_tokens(generator, plan.turn_tokens, plan.vocab_size)
        prompt = prompt + news + plan.generation_prompt
        answers.append(await client.complete(model, prompt, plan.answer_tokens, salt))
        prompt = prompt + answers[-1].token_ids
    return turns_of(answers, plan.block_size, invocation)


async def run_chat(
    client: Client, model: str, plan: AgentPlan, invocation: list[int] | None
) -> list[Turn]:
    """The loop as chats: answers come back as text, through the template and the tokenizer."""
    salt = f"{model} chat"
    generator = random.Random(salt)
    # A word is about one token and a half.
    system = _words(generator, plan.first_tokens * 2 // 3)
    messages = [{"role": "system", "content": f"You are an agent. {system}"}]
    answers: list[Answer] = []
    for _ in range(plan.num_turns):
        result = _words(generator, plan.turn_tokens * 2 // 3)
        messages.append({"role": "user", "content": f"The tool says: {result}. Go on."})
        answers.append(await client.chat(model, messages, plan.answer_tokens, salt))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return turns_of(answers, plan.block_size, invocation)


def _words(generator: random.Random, count: int) -> str:
    return " ".join(generator.choices(WORDS.split(), k=count))


def turns_of(
    answers: Sequence[Answer], block_size: int, invocation: list[int] | None
) -> list[Turn]:
    """Each turn beside its ideal, by the ids that the server says it was asked and gave."""
    turns = [_turn(answers[0], 0, 0)]
    for before, after in pairwise(answers):
        known = before.prompt_token_ids + before.token_ids[:-1]
        usable = len(known)
        if invocation is not None:
            activation = find_activation(before.prompt_token_ids, invocation)
            usable = usable if activation is None else activation
        common = min(usable, num_common(known, after.prompt_token_ids))
        turns.append(_turn(after, _full(common, block_size), _full(usable, block_size)))
    return turns


def _turn(answer: Answer, ideal: int, ideal_as_sent: int) -> Turn:
    return Turn(answer.num_prompt_tokens, answer.num_cached_tokens, ideal, ideal_as_sent)


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _full(num_tokens: int, block_size: int) -> int:
    return num_tokens // block_size * block_size


def summary(turns: Sequence[Turn]) -> dict[str, float]:
    """Tokens over the whole loop, and the shares that count.

    ``of_ideal`` is cached / ideal; ``of_prompts`` is cached / all prompt tokens;
    ``kept_by_text`` is the part of the ideal that survives the way through text and back.
    """
    cached = sum(turn.num_cached_tokens for turn in turns)
    ideal = sum(turn.ideal for turn in turns)
    as_sent = sum(turn.ideal_as_sent for turn in turns)
    prompts = sum(turn.num_prompt_tokens for turn in turns)
    return {
        "prompt_tokens": prompts,
        "cached_tokens": cached,
        "ideal_tokens": ideal,
        "of_ideal": cached / ideal if ideal else 0.0,
        "of_prompts": cached / prompts,
        "kept_by_text": ideal / as_sent if as_sent else 0.0,
    }


def echo(model: str, kind: str, turns: Sequence[Turn]) -> None:
    """One line for people."""
    figures = summary(turns)
    click.echo(
        f"{model:<10} {kind:<10} found {figures['cached_tokens']:6.0f} of "
        f"{figures['prompt_tokens']:6.0f} tokens, {figures['of_ideal']:6.1%} of the ideal"
        f"   (text keeps {figures['kept_by_text']:.1%})"
    )


Run = Callable[[Client, str, AgentPlan, list[int] | None], Awaitable[list[Turn]]]
KINDS: Final[dict[str, Run]] = {"token ids": run_token_ids, "chat": run_chat}
