"""A byte-level BPE tokenizer in which every list item is a single token."""

from pathlib import Path
from typing import Final

from skill.words import DIGITS, WORDS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE: Final = 1280
END_OF_TEXT: Final = "<|endoftext|>"
MESSAGE_START: Final = "<|im_start|>"
MESSAGE_END: Final = "<|im_end|>"
GENERATION_PROMPT: Final = f"{MESSAGE_START}assistant\n"
ROLES: Final = ("user", "assistant", "system")

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# A space belongs to the item after it, digits stand alone, every newline is its own token.
_PIECES: Final = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def item_forms() -> list[str]:
    """Every spelling an item has in a list: first or not, small or capital."""
    spellings = [form for word in WORDS for form in (word, word.upper())]
    return [space + form for form in (*spellings, *DIGITS) for space in ("", " ")]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the merges on the item forms; raises ValueError if one is more than a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, MESSAGE_START, MESSAGE_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*item_forms(), *ROLES], trainer)
    split = [f for f in (*item_forms(), *ROLES) if len(tokenizer.encode(f).ids) != 1]
    if split:
        raise ValueError(f"{len(split)} forms are more than one token, the first: {split[:8]}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=MESSAGE_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved beside the model."""
    return PreTrainedTokenizerFast.from_pretrained(path)
