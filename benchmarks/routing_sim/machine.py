"""What one replica's machine is taken to do; the numbers are a model's and say where from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A Llama-3.1-8B in bf16 on one H200.

    A step takes as long as its memory traffic or its arithmetic, whichever is longer: the weights
    and the keys and values of all that decode, over ``bytes_per_second``; ``flops_per_token``
    for each token, over ``flops_per_second``, of which prompts reach about 55% (both measured
    peaks are in the design: 4.3 TB/s and 790 TFLOP/s), plus ``overhead_seconds``. Attention's
    own arithmetic is left out. A block is the trace's, 512 tokens.
    """

    weight_bytes: float = 15.01e9
    token_bytes: float = 131_072.0
    bytes_per_second: float = 4.3e12
    flops_per_token: float = 16.1e9
    flops_per_second: float = 0.55 * 790e12
    overhead_seconds: float = 0.001
    token_budget: int = 2048
    max_num_seqs: int = 128
    num_blocks: int = 1640
    num_device_adapters: int = 32
    num_host_adapters: int = 32
    host_seconds: float = 0.005
    cold_seconds: float = 0.5

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second with nothing beside."""
        return self.token_budget / self.step_seconds(self.token_budget, 0)

    def step_seconds(self, num_tokens: int, num_held_tokens: int) -> float:
        """Of one step over so many tokens, with so many held by what decodes."""
        num_bytes = self.weight_bytes + self.token_bytes * num_held_tokens
        memory = num_bytes / self.bytes_per_second
        arithmetic = num_tokens * self.flops_per_token / self.flops_per_second
        return self.overhead_seconds + max(memory, arithmetic)
