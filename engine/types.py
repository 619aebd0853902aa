"""The values that travel between the server, the engine loop and its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .config import AdapterDtype

FinishReason = Literal["stop", "length", "abort", "error"]
ErrorKind = Literal["failed", "refused", "overloaded"]

GrammarKind = Literal["json_schema", "regex", "lark"]
Pooling = Literal["last", "mean"]

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer's text has to match.

    ``text`` is a JSON schema, a regular expression for the whole text, or a grammar in
    llguidance's dialect of Lark; choices and ``json_object`` are written as one of these.
    """

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when a request ends.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1, ``top_p`` 1 and ``min_p`` 0 switch
    those filters off. ``max_tokens`` None means up to the model's context. ``seed``
    None lets the server draw one. ``logprobs`` None reports none, N reports the chosen
    token and the N most likely ones, from the logits before penalties and temperature;
    ``prompt_logprobs`` the same for each token of the prompt but the first, which keeps the prompt
    out of the prefix cache. ``allowed_token_ids`` empty allows all; none of the sequences in
    ``bad_word_ids`` is ever completed. ``grammar`` allows what it matches.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    skip_special_tokens: bool = True
    n: int = 1
    prompt_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One choice of one client request, as the engine takes it.

    ``adapter`` is the digest of an adapter version, None for the base model.
    ``params.seed`` and ``params.max_tokens`` are set by the time a request gets here.
    ``choice_index`` separates the random streams of the choices of one ``n`` request.
    ``output_token_ids`` are output tokens that were generated elsewhere: the engine goes on behind
    them as if it had chosen them itself, and gives out only what follows.
    ``tenant`` is who is charged, ``weight`` the tenant's share against others';
    ``priority`` orders the requests of one tenant, lower first. Requests share KV blocks only
    under one ``cache_salt``, and only with their own tenant or with all of their ``cache_group``.
    ``pooling`` asks for one vector of the prompt instead of tokens: the final hidden state (after
    the last norm) of its last token, or the mean over all its tokens, in float32 and not normed
    to a length. A request with pooling, or with ``max_tokens`` 0, ends with its prompt.
    ``vocabulary`` is the file of what its tokens stand for (``engine.grammar.vocabulary``); a
    request with a grammar needs it.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    adapter: str | None = None
    choice_index: int = 0
    priority: int = 0
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    cache_salt: str | None = None
    output_token_ids: list[int] = field(default_factory=list)
    cache_group: str | None = None
    pooling: Pooling | None = None
    vocabulary: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position; ``top_*`` are sorted, most likely first."""

    token_id: int
    logprob: float
    rank: int
    top_token_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutput:
    """What one engine step produced for one request.

    ``token_ids`` holds the new tokens, the stopping one included. ``stop_token_id`` is
    the entry of ``stop_token_ids`` that ended the request (None for the model's own EOS).
    ``error`` and ``error_kind`` go with finish reason ``error``: a request can have failed, be one
    that can't be served (``refused``), or have come when the queue was full (``overloaded``, try
    again after ``retry_after`` seconds). ``queue_seconds`` and ``num_cached_tokens`` come with the
    first output: how long the request waited in the engine before its first step, and how many
    tokens of its prompt were found in the prefix cache. ``prompt_logprobs`` comes with it too, one
    entry a token of the prompt, the first None; it is the only output, without a token and with
    finish reason ``length``, of a request with ``max_tokens`` 0. ``embedding`` [hidden_size]
    float32 is all that a request with ``pooling`` gives, with finish reason ``stop``.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    queue_seconds: float | None = None
    error: str | None = None
    error_kind: ErrorKind = "failed"
    retry_after: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    embedding: list[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a started engine says of itself, once."""

    model: str
    architecture: str
    device: str
    dtype: str
    adapter_dtype: AdapterDtype
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_blocks: int
    eos_token_ids: list[int]
    hidden_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot after a step; counters only grow, times are seconds.

    ``num_free_blocks`` can be had at once: unused ones, and cached ones that nobody uses now
    (``num_evictable_blocks``). ``num_cached_blocks`` are all that the prefix cache holds on the
    device, in use or not, ``num_host_blocks`` those in host memory. Adapters are counted in the
    nearest tier that holds a copy; ``max_adapters`` can be on the device at once. ``num_held``
    requests neither run nor wait, since nobody reads what they have given; ``num_holds`` counts how
    often one came to that. ``num_queued_prompt_tokens`` are neither cached nor computed, of waiting
    and running requests.
    Requests that find their grammar compiled, or being compiled, are ``num_grammar_hits``;
    ``grammar_wait_seconds`` is what steps waited for masks, beyond their forward pass.
    ``prompt_tokens_per_second`` is measured over the last steps that were mostly prompts, 0 before.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    num_preemptions: int = 0
    num_held: int = 0
    num_holds: int = 0
    num_prompt_tokens: int = 0
    num_computed_prompt_tokens: int = 0
    num_queued_prompt_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    num_generation_tokens: int = 0
    num_cached_blocks: int = 0
    num_evictable_blocks: int = 0
    num_pinned_blocks: int = 0
    num_evicted_blocks: int = 0
    num_host_blocks: int = 0
    max_host_blocks: int = 0
    num_offloaded_blocks: int = 0
    num_restored_blocks: int = 0
    num_overloaded: int = 0
    num_adapter_loads: int = 0
    num_host_adapter_loads: int = 0
    num_adapter_evictions: int = 0
    num_host_adapter_evictions: int = 0
    num_device_adapters: int = 0
    num_host_adapters: int = 0
    num_disk_adapters: int = 0
    num_waiting_for_adapter: int = 0
    num_waiting_for_grammar: int = 0
    num_cached_grammars: int = 0
    num_grammar_hits: int = 0
    num_compiled_grammars: int = 0
    num_failed_grammars: int = 0
    grammar_compile_seconds: float = 0.0
    grammar_wait_seconds: float = 0.0
    adapter_device_bytes: int = 0
    max_adapter_device_bytes: int = 0
    adapter_dense_bytes: int = 0
    max_adapter_dense_bytes: int = 0
    adapter_host_bytes: int = 0
    max_adapter_host_bytes: int = 0
    max_adapters: int = 0
    last_step_seconds: float = 0.0
    p99_step_seconds: float = 0.0
    running_adapters: list[str] = field(default_factory=list)
    waiting_adapters: list[str] = field(default_factory=list)
