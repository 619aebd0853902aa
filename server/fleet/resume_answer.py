"""An answer as it was opened elsewhere: whether it is the same one here, and where it goes on."""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import msgspec

from ...gateway.fleet.headers import RESUME
from ...gateway.fleet.resume import ResumedChoice, ResumeRecord, StreamOpening
from ..answer import Answer, Writer
from ..errors import ApiError, bad_field
from ..generation import ChoiceRequest
from ..text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from ...engine.types import FinishReason

DIGEST_BYTES = 16
SLICE_TOKENS = 512
"""Replayed at once; others' streams go on in between. It takes some microseconds a token."""

MAX_TOKEN_ID = 2**31 - 1
FINISH_REASONS = ("stop", "length")

_ENCODER = msgspec.json.Encoder()

NewDetokenizer = Callable[[ChoiceRequest], Detokenizer]


def opening_of(answer: Answer, fingerprint: str) -> StreamOpening:
    """What an answer begins with here.

    Its fingerprint is the replica's ``fingerprint``, a dot, and a digest of what else decides the
    tokens: the adapter and its text files, and every choice's parameters as this replica made
    them of the body and the model's defaults. Seeds are apart.
    """
    return StreamOpening(
        id=answer.id,
        created=answer.created,
        fingerprint=f"{fingerprint}.{_digest_terms(answer)}",
        prompt_digests=[_digest_ids(prompt.token_ids) for prompt in answer.prompts],
        seeds=[choice.generation.params.seed or 0 for choice in answer.choices],
    )


async def resume(
    writer: Writer, record: ResumeRecord, fingerprint: str, detokenizer: NewDetokenizer
) -> Mapping[int, Detokenizer]:
    """Put ``writer`` where ``record`` ends; returns the detokenizers of what goes on, by index.

    Raises ApiError 409 where this replica would not say the same, 400 for a record that makes no
    sense.
    """
    answer, given = writer.answer, record.opening
    here = opening_of(answer, fingerprint)
    if here.fingerprint != given.fingerprint:
        raise _mismatch("another model, adapter, text side or parameters answered it")
    if here.prompt_digests != given.prompt_digests or len(here.seeds) != len(given.seeds):
        raise _mismatch("its prompts are other tokens here")
    sent = _by_index(record.choices, len(answer.choices))
    choices = [_resumed(c, sent.get(c.index), given.seeds[c.index]) for c in answer.choices]
    answer = replace(
        answer,
        id=given.id,
        created=given.created,
        choices=choices,
        num_events_sent=record.num_events,
    )
    going_on = [c for c in choices if c.index in sent and not sent[c.index].finish_reason]
    replayed = {
        choice.index: await _replay(partial(detokenizer, choice), sent[choice.index])
        for choice in choices
        if choice.index in sent
    }
    texts = {index: text for index, (_, text) in replayed.items()}
    writer.resume(answer, record.choices, texts)
    return {choice.index: replayed[choice.index][0] for choice in going_on}


def unfinished(choices: Sequence[ChoiceRequest], record: ResumeRecord) -> list[ChoiceRequest]:
    """Those that still have something to say."""
    finished = {choice.index for choice in record.choices if choice.finish_reason}
    return [choice for choice in choices if choice.index not in finished]


def _by_index(choices: Sequence[ResumedChoice], num_choices: int) -> dict[int, ResumedChoice]:
    by_index = {choice.index: choice for choice in choices}
    if len(by_index) < len(choices) or not all(0 <= i < num_choices for i in by_index):
        raise bad_field(RESUME, f"choices must be different ones of 0 to {num_choices - 1}")
    for choice in choices:
        ids = choice.token_ids or (0,)
        if min(ids) < 0 or max(ids) > MAX_TOKEN_ID:
            raise bad_field(RESUME, "holds what is no token id")
        if choice.finish_reason not in (None, *FINISH_REASONS):
            raise bad_field(RESUME, "a choice's finish_reason must be stop or length")
    return by_index


def _resumed(choice: ChoiceRequest, sent: ResumedChoice | None, seed: int) -> ChoiceRequest:
    generation = choice.generation
    generation = replace(
        generation,
        params=replace(generation.params, seed=seed),
        output_token_ids=sent.token_ids if sent else [],
    )
    return replace(choice, generation=generation)


async def _replay(new: Callable[[], Detokenizer], sent: ResumedChoice) -> tuple[Detokenizer, str]:
    """A detokenizer behind the text that is out already, and that; raises ApiError 409 where it is
    another text here."""
    is_finished = sent.finish_reason is not None
    for reason in _endings(sent):
        detokenizer = new()
        text = await _replay_as(detokenizer, sent, reason)
        if detokenizer.finished == is_finished and len(text) == sent.num_characters:
            return detokenizer, text
    raise _mismatch("its tokens are another text here")


def _endings(sent: ResumedChoice) -> list[FinishReason | None]:
    """How the engine may have ended a choice; None: it did not.

    A stop string is found again, and so is where a parser had enough: then the last token is text,
    else it is none. That is not to be seen in the tokens, so the text's length has to tell.
    """
    reason = cast("FinishReason | None", sent.finish_reason)
    if reason is None or isinstance(sent.stop_reason, str):
        return [None]
    return [reason, None] if reason == "stop" and sent.stop_reason is None else [reason]


async def _replay_as(
    detokenizer: Detokenizer, sent: ResumedChoice, reason: FinishReason | None
) -> str:
    """The text where the engine ended the choice by ``reason``, if that is not None."""
    texts: list[str] = []
    for start in range(0, len(sent.token_ids), SLICE_TOKENS):
        if start:
            await asyncio.sleep(0)
        end = start + SLICE_TOKENS
        is_end = end >= len(sent.token_ids)
        texts.append(detokenizer.replay(sent.token_ids[start:end], reason if is_end else None))
        if detokenizer.finished:
            break
    return "".join(texts)


def _mismatch(why: str) -> ApiError:
    return ApiError(
        f"The stream can't be resumed here: {why}.",
        status=HTTPStatus.CONFLICT,
        code="resume_mismatch",
    )


def _digest_terms(answer: Answer) -> str:
    digest = _new_digest()
    params = [replace(choice.generation.params, seed=None) for choice in answer.choices]
    terms = [answer.model.digest, answer.model.text_digest, answer.reading, params]
    digest.update(_ENCODER.encode(terms))
    return digest.hexdigest()


def _digest_ids(token_ids: Sequence[int]) -> str:
    digest = _new_digest()
    digest.update(array("q", token_ids).tobytes())
    return digest.hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"branchline term")
