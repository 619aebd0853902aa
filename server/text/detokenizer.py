"""One choice's tokens to text as they come: whole characters, stop strings, min_tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream

from ...engine.types import FinishReason, SamplingParams, TokenLogprobs, TokenOutput
from .stop_strings import StopScanner
from .tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_PRIMING_TOKENS = 16

Watch = Callable[[str], bool]
"""Told a choice's text piece by piece, says whether the choice is over with it."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one engine output adds to a choice.

    ``token_ids`` ends with the token that stopped the choice, ``text`` before it.
    ``stop_reason`` is the stop string or the stop token id, None for the model's own end.
    ``prompt_logprobs`` and ``embedding`` are ``TokenOutput``'s.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    num_cached_tokens: int
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    embedding: list[float] | None = None


class TextStream:
    """Token ids to text, token by token; a character comes once its last byte is there.

    Primed with the end of the prompt, so that a decoder that strips a leading space does
    so at the prompt's start and not at the answer's. ``shown_ids`` are special tokens that are not
    left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        skip_special_tokens: bool,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._shown_ids = shown_ids if skip_special_tokens else frozenset()
        self._context = _priming(tokenizer, prompt_token_ids, skip_special_tokens)
        self._pending: list[int] = []
        self._stream = self._new_stream()

    def push(self, token_id: int) -> str:
        """The text that became whole with this token, often of this token alone."""
        if token_id in self._shown_ids:
            shown = self.flush() + self._tokenizer.token_bytes(token_id).decode()
            self._start_afresh()
            return shown
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer.backend, token_id)
        except Exception as error:  # the library raises plain Exception
            if not str(error).startswith("Invalid prefix"):
                raise
            # A decoder whose output shrank: give out what there is and start afresh.
            text = self._undecoded()
            self._start_afresh()
        if text:
            self._context, self._pending = self._pending, []
        return text or ""

    def flush(self) -> str:
        """The unfinished rest, bytes that never became a character as U+FFFD."""
        return self._undecoded() if self._pending else ""

    def _start_afresh(self) -> None:
        self._context, self._pending = [], []
        self._stream = self._new_stream()

    def _undecoded(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skip_special_tokens)

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=list(self._context), skip_special_tokens=self._skip_special_tokens)


class Detokenizer:
    """Turns one request's ``TokenOutput`` into ``TextDelta``; ``finished`` once it has ended.

    A stop string ends the choice here, before the engine knows, and so does ``watch``, whatever
    ``min_tokens`` says: the caller then aborts the engine's request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        params: SamplingParams,
        shown_ids: frozenset[int] = frozenset(),
        watch: Watch | None = None,
    ) -> None:
        self._params = params
        self._watch = watch
        self._end_token_ids = frozenset() if params.ignore_eos else tokenizer.end_token_ids
        self._text = TextStream(tokenizer, prompt_token_ids, params.skip_special_tokens, shown_ids)
        self._stop = StopScanner(params.stop, params.include_stop_str_in_output)
        self._num_tokens = 0
        self.finished = False

    def push(self, output: TokenOutput) -> TextDelta:
        """Take in one engine output."""
        text: list[str] = []
        for position, token_id in enumerate(output.token_ids):
            self._num_tokens += 1
            if self._is_unspoken(output, position):
                continue
            shown, stop = self._scan(self._text.push(token_id))
            text.append(shown)
            if stop is not None or self._is_over(shown):
                return self._stopped(output, position + 1, "".join(text), stop)
        if output.finish_reason is not None:
            shown, stop = self._scan(self._text.flush())
            text.append(shown)
            if stop is not None:
                return self._stopped(output, len(output.token_ids), "".join(text), stop)
            text.append(self._stop.flush())
            self.finished = True
        return TextDelta(
            "".join(text),
            output.token_ids,
            output.logprobs,
            output.finish_reason,
            None if output.stop_token_id in self._end_token_ids else output.stop_token_id,
            output.num_cached_tokens,
            output.prompt_logprobs,
            output.embedding,
        )

    def replay(self, token_ids: list[int], finish_reason: FinishReason | None = None) -> str:
        """Take in tokens whose text is out already; returns that.

        ``finish_reason`` is how the engine ended the choice, if it did with the last of them.
        ``finished`` afterwards without one: a stop string is among them, or the watch's end.
        """
        output = TokenOutput(request_id="", token_ids=token_ids, finish_reason=finish_reason)
        return self.push(output).text

    def _is_over(self, text: str) -> bool:
        return bool(text) and self._watch is not None and self._watch(text)

    def _scan(self, text: str) -> tuple[str, str | None]:
        return self._stop.push(text, armed=self._num_tokens >= self._params.min_tokens)

    def _is_unspoken(self, output: TokenOutput, position: int) -> bool:
        """The token that ended the choice is not part of its text, unless asked for."""
        return (
            output.finish_reason == "stop"
            and position == len(output.token_ids) - 1
            and not self._params.include_stop_str_in_output
        )

    def _stopped(
        self, output: TokenOutput, num_tokens: int, text: str, stop: str | None
    ) -> TextDelta:
        self.finished = True
        logprobs = None if output.logprobs is None else output.logprobs[:num_tokens]
        return TextDelta(
            text,
            output.token_ids[:num_tokens],
            logprobs,
            "stop",
            stop,
            output.num_cached_tokens,
            output.prompt_logprobs,
        )


def _priming(
    tokenizer: Tokenizer, prompt_token_ids: list[int], skip_special_tokens: bool
) -> list[int]:
    """The shortest end of the prompt, 4 tokens or more, that is whole characters."""
    longest = min(len(prompt_token_ids), MAX_PRIMING_TOKENS)
    for length in range(min(4, longest), longest + 1):
        ids = prompt_token_ids[-length:] if length else []
        if REPLACEMENT not in tokenizer.decode(ids, skip_special_tokens):
            return list(ids)
    return []
