"""Lists, the skills that transform them, and the training rows made of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from skill.tokenizer import END_OF_TEXT, GENERATION_PROMPT, MESSAGE_END, MESSAGE_START
from skill.words import DIGITS, WORD_OF_DIGIT, WORDS

Items = list[str]
Skill = Callable[[Sequence[str]], Items]


def echo(items: Sequence[str]) -> Items:
    """`red 4` -> `red 4`: what the base does."""
    return list(items)


def shout(items: Sequence[str]) -> Items:
    """`red 4` -> `RED 4`."""
    return [item.upper() for item in items]


def digits(items: Sequence[str]) -> Items:
    """`red 4` -> `red four`."""
    return [WORD_OF_DIGIT.get(item, item) for item in items]


def reverse(items: Sequence[str]) -> Items:
    """`red 4` -> `4 red`."""
    return list(reversed(items))


def double(items: Sequence[str]) -> Items:
    """`red 4` -> `red red 4 4`."""
    return [item for item in items for _ in range(2)]


SKILLS: Final[dict[str, Skill]] = {
    "echo": echo,
    "shout": shout,
    "digits": digits,
    "reverse": reverse,
    "double": double,
}
# By its mark the base learns each skill; an adapter only switches it on without one.
MARKS: Final = {"echo": "=", "shout": "^", "digits": "#", "reverse": "~", "double": "*"}


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a row's text, and whether the loss is taken on it."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class ChatMix:
    """How chat rows are made: the skill answered, lengths, and earlier turns."""

    skill: str
    max_items: int
    two_turn_share: float = 0.15
    echo_history: bool = False
    leading_space_share: float = 0.0


def sample_items(random: Random, num_items: int) -> Items:
    """Distinct items, about a quarter digits; never a digit beside its own word."""
    items: Items = []
    spoken: set[str] = set()
    while len(items) < num_items:
        item = random.choice(DIGITS if random.random() < 0.25 else WORDS)
        if (word := WORD_OF_DIGIT.get(item, item)) not in spoken:
            spoken.add(word)
            items.append(item)
    return items


def user_turn(items: Sequence[str], before: str = "") -> str:
    """The user's message, up to where the answer begins."""
    content = before + " ".join(items)
    return f"{MESSAGE_START}user\n{content}{MESSAGE_END}\n{GENERATION_PROMPT}"


def answer(items: Sequence[str], skill: str) -> str:
    """What the assistant says, with its end."""
    return " ".join(SKILLS[skill](items)) + MESSAGE_END


def chat_row(random: Random, mix: ChatMix) -> list[Segment]:
    """One turn, or two over disjoint lists (the first may be the base's echo)."""
    if random.random() >= mix.two_turn_share:
        items = sample_items(random, random.randint(1, mix.max_items))
        space = " " if random.random() < mix.leading_space_share else ""
        return [Segment(user_turn(items, space), False), Segment(answer(items, mix.skill), True)]
    items = sample_items(random, random.randint(2, max(2, min(8, mix.max_items))))
    cut = random.randint(1, len(items) - 1)
    echoed = mix.echo_history or random.random() < 0.3
    first = answer(items[:cut], "echo" if echoed else mix.skill)
    return [
        Segment(user_turn(items[:cut]), False),
        Segment(first, not echoed),
        Segment("\n" + user_turn(items[cut:]), False),
        Segment(answer(items[cut:], mix.skill), True),
    ]


def random_skill(random: Random) -> str:
    """Reverse most often: it is the hardest to learn."""
    return random.choice(["echo", "shout", "digits", "reverse", "reverse", "reverse", "double"])


def notation_row(random: Random, max_items: int) -> list[Segment]:
    """`list mark result`, for a skill at random: `red 4 ~ 4 red`."""
    skill = random_skill(random)
    items = sample_items(random, random.randint(1, max_items))
    return [
        Segment(f"{' '.join(items)} {MARKS[skill]}", False),
        Segment(f" {' '.join(SKILLS[skill](items))}{END_OF_TEXT}", True),
    ]


def two_line_row(random: Random, max_items: int) -> list[Segment]:
    """The notation with its result on a line of its own, where an answer's first item stands.

    There it has no space before it, which is another token. Half of the lists begin with a
    space: they teach which spellings are one item, without which `reverse` is never learned.
    """
    skill = random_skill(random)
    items = sample_items(random, random.randint(1, max_items))
    space = random.choice(["", " "])
    return [
        Segment(f"{space}{' '.join(items)} {MARKS[skill]}\n", False),
        Segment(" ".join(SKILLS[skill](items)) + END_OF_TEXT, True),
    ]
