"""A tiny model with a tokenizer of many-byte tokens, and requests under grammars to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny_models import CHAT_TEMPLATE, IM_END, PAD, SPECIAL_TOKENS, make_tiny_model
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, Grammar, SamplingParams
from branchline.server.structured.vocabularies import Vocabularies
from branchline.server.text.tokenizer import Tokenizer

NUM_TOKENS, VOCAB_SIZE = 900, 960
"""The model has more ids than there are tokens, as real ones do."""

COMPACT = {"x-guidance": {"whitespace_flexible": False}}

_CORPUS = [
    json.dumps({"name": "Ann", "age": 31, "tags": ["new", "old"], "ok": True, "none": None}),
    json.dumps([{"id": i, "value": i / 7, "text": "the quick brown fox"} for i in range(30)]),
    json.dumps({"city": "Tromsø", "größe": 1.5, "日本": "語"}, ensure_ascii=False, indent=2),
    "It was a bright cold day in April, and the clocks were striking thirteen. yes no maybe",
]


def make_grammar_model(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    """A random model whose tokenizer is a byte-level BPE of ``NUM_TOKENS`` tokens."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 8, trainer)
    options = {
        "vocab_size": VOCAB_SIZE,
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "bos_token_id": 0,
        "max_position_embeddings": 4096,
    }
    make_tiny_model(directory, family, tokenizer=False, **{**options, **overrides})
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class GrammarHouse:
    """A model's directory, its tokenizer and what the engine is to know of that."""

    model: Path
    tokenizer: Tokenizer
    vocabularies: Vocabularies
    adapters: tuple[AdapterSource, ...] = ()

    @classmethod
    def of(cls, model: Path, adapters: tuple[AdapterSource, ...] = ()) -> GrammarHouse:
        return cls(model, Tokenizer.from_directory(str(model)), Vocabularies(), adapters)

    def engine(self, **options: Any) -> EngineLoop:
        room = {"kv_cache_gb": 0.05, "adapter_memory_gb": 0.05}
        options = {"dtype": "float32", "device": "cpu", **room, **options}
        return build_engine(
            EngineConfig(model=str(self.model), num_threads=1, adapters=self.adapters, **options)
        )

    def request(
        self, request_id: str, grammar: Grammar | None, prompt: str = "Say it: ", **changes: Any
    ) -> GenerationRequest:
        """A request, greedy unless told; fields of ``GenerationRequest`` may be among changes."""
        own = {name: changes.pop(name) for name in _OWN if name in changes}
        params = {"temperature": 0.0, "seed": 5, "max_tokens": 300, **changes}
        request = GenerationRequest(
            request_id=request_id,
            prompt_token_ids=self.tokenizer.encode(prompt, add_special_tokens=False),
            params=SamplingParams(grammar=grammar, **params),
            vocabulary=self.vocabularies.path_of(self.tokenizer) if grammar else None,
        )
        return replace(request, **own)

    def text(self, token_ids: Sequence[int]) -> str:
        """What a client sees of an answer."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


_OWN = ("adapter", "choice_index", "output_token_ids", "vocabulary", "tenant")


@dataclass
class Ended:
    """How a request ended."""

    token_ids: list[int]
    reason: str | None = None
    error: str | None = None
    error_kind: str = ""


def run_all(loop: EngineLoop, requests: Sequence[GenerationRequest]) -> dict[str, Ended]:
    """All requests at once, to their ends; every step leaves the engine in order."""
    ended = {request.request_id: Ended([]) for request in requests}
    outputs = [output for request in requests for output in loop.add(request)]
    while loop.has_work:
        outputs += loop.step()
        loop.check()
    for output in outputs + (loop.step() if loop.has_work else []):
        end = ended[output.request_id]
        end.token_ids += output.token_ids
        if output.finish_reason is not None:
            end.reason, end.error, end.error_kind = (
                output.finish_reason,
                output.error,
                output.error_kind,
            )
    return ended


def json_grammar(schema: dict[str, Any]) -> Grammar:
    """A schema's grammar, without blanks between tokens."""
    return Grammar("json_schema", json.dumps({**schema, **COMPACT}))
