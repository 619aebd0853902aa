"""Blocks and groups: whole ones reach the client, in any cutting; the record is what it has."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.fleet.resume import (
    COMMENT,
    KEEP_ALIVE,
    ChoiceProgress,
    Failure,
    ResumeRecord,
    StreamComment,
    StreamOpening,
)
from branchline.gateway.proxy.record import StreamRecord
from branchline.gateway.proxy.sse import DONE, BadStream, BlockReader

OPENING = StreamOpening("id", 1, "f", ["p"], [3])


def comment(value: StreamComment) -> bytes:
    return COMMENT + msgspec.json.encode(value) + b"\n\n"


def event(text: str) -> bytes:
    return b"data: " + msgspec.json.encode({"text": text}) + b"\n\n"


def take(record: StreamRecord, data: bytes) -> bytes:
    return record.take(BlockReader().feed(data))


def resumed(record: StreamRecord) -> ResumeRecord:
    return msgspec.json.decode(record.resume_bytes(), type=ResumeRecord)


@given(
    texts=st.lists(st.text(max_size=20), max_size=8),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
def test_any_cutting_gives_the_same_blocks(texts: list[str], cuts: list[int]) -> None:
    whole = b"".join(map(event, texts)) + DONE
    reader, blocks, begin = BlockReader(), [], 0
    for end in [*sorted(min(cut, len(whole)) for cut in cuts), len(whole)]:
        blocks += reader.feed(whole[begin:end])
        begin = end
    assert blocks == [*map(event, texts), DONE]
    assert reader.is_between_blocks


def test_a_block_without_end_is_refused() -> None:
    reader = BlockReader(max_block_bytes=100)
    reader.feed(b"x" * 90)
    with pytest.raises(BadStream):
        reader.feed(b"x" * 20)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    lost_at=st.integers(0, 4000),
)
def test_a_group_counts_only_when_it_is_whole(sizes: list[int], lost_at: int) -> None:
    """Wherever the connection breaks: the client's events and the record tell the same."""
    stream, events = comment(StreamComment(0, OPENING)), []
    for number, size in enumerate(sizes):
        progress = ChoiceProgress(0, [number], number + 1)
        stream += KEEP_ALIVE + comment(StreamComment(size, None, [progress]))
        events.append([event(f"{number}/{k}") for k in range(size)])
        stream += b"".join(events[-1])
    record = StreamRecord()
    sent = take(record, stream[:lost_at])
    num_groups = record.num_output_tokens
    assert sent == b"".join(b"".join(group) for group in events[:num_groups])
    assert record.can_resume == (lost_at >= len(comment(StreamComment(0, OPENING))))
    if record.can_resume and num_groups:
        (choice,) = resumed(record).choices
        assert (choice.token_ids, choice.num_characters) == (list(range(num_groups)), num_groups)


def test_progress_adds_up() -> None:
    record = StreamRecord()
    take(record, comment(StreamComment(0, OPENING, num_prompt_tokens=9)))
    for value in (
        StreamComment(0, None, [ChoiceProgress(1, [5, 6], 4)], 2),
        StreamComment(0, None, [ChoiceProgress(0, [7], 1), ChoiceProgress(1, [8], 9, "stop", 8)]),
        StreamComment(0, usage_sent=True),
    ):
        take(record, comment(value))
    done = resumed(record)
    assert [(c.index, c.token_ids, c.num_characters) for c in done.choices] == [
        (0, [7], 1),
        (1, [5, 6, 8], 9),
    ]
    assert (done.choices[1].finish_reason, done.choices[1].stop_reason) == ("stop", 8)
    assert (done.num_cached_tokens, done.usage_sent, done.opening) == (2, True, OPENING)
    usage = record.usage(100)
    assert (usage.num_input_tokens, usage.num_output_tokens, usage.num_cached_tokens) == (9, 4, 2)


def test_a_replicas_failure_is_kept_back_and_a_requests_is_passed() -> None:
    record = StreamRecord()
    first = comment(StreamComment(1, OPENING)) + event("a")
    failed = comment(StreamComment(1, failure=Failure(500, "x"))) + event("error")
    assert take(record, first + failed + DONE) == event("a")
    assert record.fault is not None
    record.restart()
    assert record.can_resume
    refused = comment(StreamComment(1, failure=Failure(400))) + event("error")
    assert take(record, refused + DONE) == event("error") + DONE
    assert record.is_done


def test_half_a_group_of_a_lost_replica_is_forgotten() -> None:
    record = StreamRecord()
    take(record, comment(StreamComment(1, OPENING)) + event("a"))
    assert (
        take(record, comment(StreamComment(2, None, [ChoiceProgress(0, [1], 1)])) + event("b"))
        == b""
    )
    record.restart()
    assert record.num_output_tokens == 0
    assert take(record, comment(StreamComment(1, None, [ChoiceProgress(0, [1], 1)])) + event("b"))


def test_bad_comments_are_faults() -> None:
    for bad in (COMMENT + b"{\n\n", COMMENT + b'{"events": "x"}\n\n'):
        record = StreamRecord()
        assert take(record, bad + event("a")) == b""
        assert record.fault is not None
    record = StreamRecord()
    take(record, comment(StreamComment(1, OPENING)) * 2)
    assert record.fault is not None


def test_what_has_no_state_cannot_be_resumed() -> None:
    record = StreamRecord()
    assert take(record, event("a")) == event("a")
    assert not record.can_resume
    record = StreamRecord()
    take(record, comment(StreamComment(1, OPENING)) + event("a") + event("b"))
    assert not record.can_resume


def test_a_record_is_bounded() -> None:
    record = StreamRecord(max_kept_tokens=10)
    take(record, comment(StreamComment(0, OPENING)))
    for number in range(20):
        take(record, comment(StreamComment(0, None, [ChoiceProgress(0, [number], number)])))
    assert not record.can_resume
    assert record.num_output_tokens == 20
    assert len(record._choices[0].token_ids) == 10
