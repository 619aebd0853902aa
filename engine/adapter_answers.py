"""The engine process's side of the calls about adapters."""

from __future__ import annotations

import logging

from ..lora.errors import AdapterError
from .adapter_types import AdapterEvent, AdapterReport
from .adapters import EngineAdapters
from .errors import RequestError
from .loop import EngineLoop
from .messages import (
    AdapterCall,
    AddAdapter,
    CallDone,
    EvictAdapter,
    LoadAdapter,
    PinAdapter,
    RemoveAdapter,
    ReportAdapters,
)

logger = logging.getLogger(__name__)


def answer_adapter_call(loop: EngineLoop, message: AdapterCall) -> CallDone | None:
    """Do what is asked; what takes time is answered later, by ``ended_calls``."""
    try:
        reports = _act(loop, message)
    except (AdapterError, RequestError) as error:
        return CallDone(message.call_id, error_field=error.field, error=error.message)
    except Exception as error:  # a call must not be the end of everybody's streams
        logger.exception("a call about adapters failed")
        return CallDone(message.call_id, error_field="adapter", error=f"failed: {error!r}")
    return None if reports is None else CallDone(message.call_id, adapters=reports)


def _act(loop: EngineLoop, message: AdapterCall) -> list[AdapterReport] | None:
    adapters, users = loop.adapters, loop.adapter_users
    match message:
        case AddAdapter():
            return [adapters.add(message.digest, message.path)]
        case RemoveAdapter():
            adapters.remove(message.call_id, message.digest)
        case LoadAdapter():
            adapters.load(message.call_id, message.digest, message.tier)
        case PinAdapter():
            adapters.pin(message.call_id, message.digest, message.tier)
        case EvictAdapter():
            return [adapters.evict(message.digest, message.tier, users)]
        case ReportAdapters():
            return adapters.reports(users, message.digests)
    return None


def ended_calls(adapters: EngineAdapters) -> list[CallDone]:
    """The answers to calls that have ended since this was asked last."""
    return [
        CallDone(
            answer.call_id,
            adapters=[] if answer.report is None else [answer.report],
            freed=answer.freed,
            error_field=None if answer.error is None else "adapter",
            error=answer.error,
        )
        for answer in adapters.answers()
    ]


def news_of(adapters: EngineAdapters) -> list[AdapterEvent]:
    """What came to a tier or left it since this was asked last."""
    return [
        AdapterEvent(
            digest=event.digest,
            tier=event.tier,
            kind=event.kind,
            num_bytes=event.num_bytes,
            seconds=event.seconds,
        )
        for event in adapters.events()
    ]
