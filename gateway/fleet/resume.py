"""What lets another replica continue a stream: comments in it, and the record made of them.

Behind a gateway a replica writes ``: branchline {...}`` (a comment of the event stream, see the
WHATWG HTML specification, 9.2) before events. ``events`` says how many follow that belong to it:
they and the comment are taken together or not at all.
"""

from __future__ import annotations

import msgspec

COMMENT = b": branchline "
KEEP_ALIVE = b": branchline\n\n"
"""Sent once a second while there is nothing else to send, so that silence is a dead path."""


class StreamOpening(msgspec.Struct, frozen=True):
    """What does not change over a stream.

    ``prompt_digests`` are one a prompt, of its token ids; ``seeds`` one a choice.
    """

    id: str
    created: int
    fingerprint: str
    prompt_digests: list[str]
    seeds: list[int]


class ChoiceProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the events add to one choice.

    ``token_ids`` are new ones; ``num_characters`` of text are sent in all after these events.
    """

    index: int
    token_ids: list[int] = []
    num_characters: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Failure(msgspec.Struct, frozen=True):
    """The event that follows is an error; from 500 on it is the replica's and not the request's."""

    status: int
    code: str | None = None


class StreamComment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One comment.

    ``num_cached_tokens`` is the usage's, once it is known; ``num_prompt_tokens`` too, over all
    prompts, said once, so that a gateway can count what a client did not ask to see.
    """

    events: int = 0
    opening: StreamOpening | None = None
    choices: list[ChoiceProgress] = []
    num_cached_tokens: int | None = None
    num_prompt_tokens: int | None = None
    usage_sent: bool = False
    failure: Failure | None = None


class ResumedChoice(msgspec.Struct, omit_defaults=True):
    """One choice as far as its client has it."""

    index: int
    token_ids: list[int] = []
    num_characters: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ResumeRecord(msgspec.Struct, omit_defaults=True):
    """All that a client has of a stream; goes before the original body (``headers.RESUME``).

    ``num_events`` it has in all, for streams that number their events.
    """

    opening: StreamOpening
    choices: list[ResumedChoice] = []
    num_cached_tokens: int | None = None
    usage_sent: bool = False
    num_events: int = 0
