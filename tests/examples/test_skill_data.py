"""The lists, the skills and the rows made of them."""

from collections.abc import Callable
from random import Random

import pytest
from skill.data import SKILLS, ChatMix, Segment, chat_row, notation_row, sample_items, two_line_row
from skill.exactness import held_out_lists
from skill.tokenizer import GENERATION_PROMPT, build_tokenizer, item_forms
from skill.training import IGNORED, encode_rows
from skill.words import WORD_OF_DIGIT


@pytest.mark.parametrize(
    ("skill", "answer"),
    [
        ("echo", "red 4 cat 7"),
        ("shout", "RED 4 CAT 7"),
        ("digits", "red four cat seven"),
        ("reverse", "7 cat 4 red"),
        ("double", "red red 4 4 cat cat 7 7"),
    ],
)
def test_skill_transforms_the_list(skill: str, answer: str) -> None:
    assert " ".join(SKILLS[skill](["red", "4", "cat", "7"])) == answer


def test_sampled_items_are_distinct_also_when_spoken() -> None:
    random = Random(0)
    for _ in range(500):
        spoken = [WORD_OF_DIGIT.get(item, item) for item in sample_items(random, 8)]
        assert len(set(spoken)) == 8


def test_held_out_lists_show_every_skill() -> None:
    for items in held_out_lists(seed=3, num_lists=200):
        answers = {" ".join(skill(items)) for skill in SKILLS.values()}
        assert len(answers) == len(SKILLS)


def test_every_item_is_one_token_and_text_survives() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer.encode(form, add_special_tokens=False)) == 1 for form in item_forms())
    text = "red 42 naïve\n\n  RED?! é 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": "red 4"}]
    assert (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        == f"<|im_start|>user\nred 4<|im_end|>\n{GENERATION_PROMPT}"
    )


def test_only_the_skill_s_own_answers_are_trained() -> None:
    tokenizer = build_tokenizer()
    random = Random(1)
    mix = ChatMix("shout", max_items=4, two_turn_share=1.0, echo_history=True)
    for _ in range(20):
        row = chat_row(random, mix)
        ids, labels = encode_rows([row], tokenizer)
        trained = tokenizer.decode(ids[labels != IGNORED])
        assert trained == row[-1].text
        assert trained == trained.upper().replace("IM_END", "im_end")
        whole = tokenizer.encode("".join(s.text for s in row), add_special_tokens=False)
        assert ids[0].tolist() == whole


@pytest.mark.parametrize("make_row", [notation_row, two_line_row])
def test_notation_rows_tokenize_as_one_text(
    make_row: Callable[[Random, int], list[Segment]],
) -> None:
    tokenizer = build_tokenizer()
    random = Random(2)
    for _ in range(20):
        row = make_row(random, 5)
        ids, labels = encode_rows([row], tokenizer)
        whole = tokenizer.encode("".join(s.text for s in row), add_special_tokens=False)
        assert ids[0].tolist() == whole
        assert tokenizer.decode(ids[labels != IGNORED]) == row[1].text


def test_rows_are_padded_on_the_right_and_padding_is_not_trained() -> None:
    tokenizer = build_tokenizer()
    random = Random(3)
    rows = [chat_row(random, ChatMix("echo", n, two_turn_share=0.0)) for n in (1, 8)]
    lengths = [len(encode_rows([row], tokenizer)[0][0]) for row in rows]
    ids, labels = encode_rows(rows, tokenizer)
    assert ids.shape == labels.shape == (2, max(lengths))
    for row, length in enumerate(lengths):
        assert (ids[row, length:] == tokenizer.pad_token_id).all()
        assert (labels[row, length:] == IGNORED).all()
        assert labels[row, length - 1] == tokenizer.eos_token_id
