"""The engine process's turn, with a loop and a socket that are told what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from branchline.engine.adapter_calls import AdapterAnswer
from branchline.engine.cache_types import PrefixTarget
from branchline.engine.errors import RequestError
from branchline.engine.messages import CallDone, FromEngine, PinPrefix, StepDone, ToEngine
from branchline.engine.process import EngineServer
from branchline.engine.types import EngineStats, TokenOutput
from branchline.lora.tier_events import TierEvent


@dataclass
class Socket:
    """Hands out what lies in ``inbox``, and keeps what is sent."""

    inbox: list[ToEngine] = field(default_factory=list)
    sent: list[FromEngine] = field(default_factory=list)

    def poll(self, timeout_ms: int) -> bool:
        return bool(self.inbox)

    def recv_multipart(self) -> list[bytes]:
        return [b"", msgspec.msgpack.encode(self.inbox.pop(0))]

    def send(self, payload: bytes) -> None:
        self.sent.append(msgspec.msgpack.decode(payload, type=FromEngine))


class Adapters:
    """No adapters, and nothing to say of them."""

    def events(self) -> list[TierEvent]:
        return []

    def answers(self) -> list[AdapterAnswer]:
        return []


@dataclass
class Loop:
    """Gives ``outputs`` in its next turn, without a step."""

    outputs: list[TokenOutput] = field(default_factory=list)
    num_steps: int = 0
    is_running: bool = False
    adapters: Adapters = field(default_factory=Adapters)

    @property
    def has_work(self) -> bool:
        return bool(self.outputs)

    def step(self) -> list[TokenOutput]:
        outputs, self.outputs = self.outputs, []
        return outputs

    def tend(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats()

    def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> None:
        raise RequestError("prompt", "is not in the prefix cache")


def test_what_ends_without_a_step_is_told():
    """As when an adapter can't be loaded and nothing else is to be done."""
    failed = TokenOutput(request_id="r", token_ids=[], finish_reason="error", error="no adapter")
    socket = Socket()
    EngineServer(socket, 0)._turn(Loop([failed]))
    [message] = socket.sent
    assert isinstance(message, StepDone)
    assert message.outputs == [failed]


def test_a_call_that_fails_is_answered_with_the_field():
    target = PrefixTarget(prompt_token_ids=[1])
    socket = Socket([PinPrefix("call", target, 1.0)])
    EngineServer(socket, 0)._turn(Loop())
    answer, _ = socket.sent
    assert answer == CallDone("call", error_field="prompt", error="is not in the prefix cache")
