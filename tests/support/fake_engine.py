"""An engine in memory with ``EngineClient``'s surface, that says what it is told to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from branchline.engine.adapter_types import (
    AdapterEvent,
    AdapterReport,
    FreedAdapter,
    PinTier,
)
from branchline.engine.cache_types import (
    BlockChanges,
    CacheReport,
    NamespaceReport,
    PinReport,
    PrefixReport,
    PrefixTarget,
)
from branchline.engine.errors import EngineDeadError, RequestError
from branchline.engine.types import (
    EngineInfo,
    EngineStats,
    ErrorKind,
    GenerationRequest,
    TokenLogprobs,
    TokenOutput,
)
from branchline.tests.support.fake_engine_adapters import EngineAdapters

Script = Callable[[GenerationRequest], Iterable[int]]


def engine_info(vocab_size: int = 260, max_model_len: int = 512) -> EngineInfo:
    """What a small engine says of itself."""
    return EngineInfo(
        model="tiny",
        architecture="LlamaForCausalLM",
        device="cpu",
        dtype="float32",
        adapter_dtype="auto",
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=256,
        block_size=16,
        num_blocks=100,
        eos_token_ids=[258],
        hidden_size=64,
    )


def say(text: str, eos: bool = True) -> Script:
    """A script that answers ``text`` (byte ids) and then the end token."""
    return lambda request: [*text.encode(), *([258] if eos else [])]


class FakeEngine:
    """Emits its script's tokens one a turn of the event loop, as the real client would.

    ``requests`` are all that were taken in, ``aborted`` the ids that were left early.
    Requests wait while ``go`` is cleared, and calls of the cache with them. ``num_cached`` says
    how much of a prompt was cached, with its first token as the real engine does. A request that
    brings output tokens goes on behind them. With ``error`` set, requests end with it where
    ``error_at`` says so.
    """

    def __init__(self, script: Script | None = None, info: EngineInfo | None = None) -> None:
        self.script = script or say("hello")
        self.info = info or engine_info()
        self.stats = EngineStats(num_blocks=100, num_free_blocks=100)
        self.dead = asyncio.Event()
        self.exit_reason: str | None = None
        self.pid = 0
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.running = 0
        self.num_outputs = 0
        self.go = asyncio.Event()
        self.go.set()
        self.fail_after: int | None = None
        self.error: str | None = None
        self.error_at: Callable[[GenerationRequest, int], bool] = lambda request, index: True
        self.error_kind: ErrorKind = "failed"
        self.retry_after: float | None = None
        self.num_cached: Callable[[GenerationRequest], int] = lambda request: 3
        self.cache = FakeCache(self)
        self.on_adapter_event: Callable[[AdapterEvent], None] = lambda event: None
        self.on_block_changes: Callable[[BlockChanges], None] = lambda changes: None
        self.adapters = EngineAdapters(lambda event: self.on_adapter_event(event))

    @property
    def calls(self) -> FakeEngine:
        """What it can be asked: itself."""
        return self

    async def add_adapter(self, digest: str, path: str) -> AdapterReport:
        """Add to ``adapters``; the file must be there."""
        await self._live()
        return await self.adapters.add(digest, path)

    async def remove_adapter(self, digest: str) -> FreedAdapter:
        """Remove from ``adapters``."""
        await self._live()
        return await self.adapters.remove(digest)

    async def load_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Load in ``adapters``."""
        await self._live()
        return await self.adapters.load(digest, tier)

    async def evict_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Evict in ``adapters``."""
        await self._live()
        return await self.adapters.evict(digest, tier)

    async def pin_adapter(self, digest: str, tier: PinTier | None) -> AdapterReport:
        """Pin in ``adapters``."""
        await self._live()
        return await self.adapters.pin(digest, tier)

    async def report_adapters(self, digests: list[str] | None = None) -> list[AdapterReport]:
        """The reports of ``adapters``."""
        await self._live()
        return await self.adapters.report(digests)

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The report of ``cache``."""
        await self._live()
        return self.cache.report(max_prefixes)

    async def reset_cache(self) -> int:
        """Forget what ``cache`` holds."""
        await self._live()
        return self.cache.reset()

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Pin in ``cache``."""
        await self._live()
        return self.cache.pin(target, ttl_seconds)

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin of ``cache``."""
        await self._live()
        return self.cache.pins.pop(pin_id, None) is not None

    async def _live(self) -> None:
        await self._wait()
        if self.dead.is_set():
            raise EngineDeadError(self.exit_reason or "gone")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        """The script's tokens, cut at ``max_tokens``."""
        if self.dead.is_set():
            raise EngineDeadError(self.exit_reason or "gone")
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            async for output in self._outputs(request):
                self.num_outputs += 1
                finished = output.finish_reason is not None
                yield output
        finally:
            self.running -= 1
            if not finished:
                self.abort(request.request_id)

    async def _outputs(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        params = request.params
        assert params.max_tokens is not None
        assert params.seed is not None
        given = request.output_token_ids
        if request.pooling is not None:
            await self._wait()
            yield self._pooled(request)
            return
        if params.max_tokens == 0:
            await self._wait()
            yield self._scored(request)
            return
        for index, token_id in enumerate(self.script(request)):
            if index < len(given):
                assert token_id == given[index], "the script says something else"
                continue
            await self._wait()
            if self.dead.is_set() or index == self.fail_after:
                raise EngineDeadError(self.exit_reason or "gone")
            if self.error is not None and self.error_at(request, index):
                yield TokenOutput(
                    request_id=request.request_id,
                    token_ids=[],
                    finish_reason="error",
                    error=self.error,
                    error_kind=self.error_kind,
                    retry_after=self.retry_after,
                )
                return
            stop = token_id in params.stop_token_ids
            eos = token_id in self.info.eos_token_ids and not params.ignore_eos
            last = index + 1 == params.max_tokens
            yield TokenOutput(
                request_id=request.request_id,
                token_ids=[token_id],
                logprobs=None
                if params.logprobs is None
                else [_logprobs(token_id, params.logprobs)],
                finish_reason="stop" if stop or eos else "length" if last else None,
                stop_token_id=token_id if stop else None,
                num_cached_tokens=self.num_cached(request) if index == len(given) else 0,
                queue_seconds=0.25 if index == len(given) else None,
                prompt_logprobs=_prompt_logprobs(request) if index == len(given) else None,
            )
            if stop or eos or last:
                return
        raise AssertionError("the script ran out before the request ended")

    def _scored(self, request: GenerationRequest) -> TokenOutput:
        return TokenOutput(
            request_id=request.request_id,
            token_ids=[],
            finish_reason="length",
            num_cached_tokens=self.num_cached(request),
            queue_seconds=0.25,
            prompt_logprobs=_prompt_logprobs(request),
        )

    def _pooled(self, request: GenerationRequest) -> TokenOutput:
        """A vector of the prompt's last token id, its length, and 0."""
        ids = request.prompt_token_ids
        last = ids[-1] if request.pooling == "last" else sum(ids) / len(ids)
        return TokenOutput(
            request_id=request.request_id,
            token_ids=[],
            finish_reason="stop",
            num_cached_tokens=self.num_cached(request),
            queue_seconds=0.25,
            embedding=[float(last), float(len(ids)), 0.0],
        )

    async def _wait(self) -> None:
        dead = asyncio.ensure_future(self.dead.wait())
        go = asyncio.ensure_future(self.go.wait())
        try:
            await asyncio.wait({dead, go}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            dead.cancel()
            go.cancel()
        await asyncio.sleep(0)

    def abort(self, request_id: str) -> None:
        """Note the abort."""
        self.aborted.append(request_id)

    def die(self, reason: str = "the engine exited with -9") -> None:
        """Go away, as a killed process would."""
        self.exit_reason = reason
        self.dead.set()

    async def stop(self) -> None:
        """Go away on request."""
        self.die("the engine was stopped")


class FakeCache:
    """A prefix cache that holds every prompt the engine was given, and can pin those."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._num_forgotten = 0
        self.pins: dict[str, PinReport] = {}
        self.targets: list[PrefixTarget] = []
        self.namespaces: list[NamespaceReport] = []
        self.prefixes: list[PrefixReport] = []

    @property
    def _held(self) -> list[GenerationRequest]:
        return self._engine.requests[self._num_forgotten :]

    @property
    def num_blocks(self) -> int:
        """Full blocks of all prompts held."""
        size = self._engine.info.block_size
        return sum(len(request.prompt_token_ids) // size for request in self._held)

    def report(self, max_prefixes: int) -> CacheReport:
        """Made-up counts, true pins."""
        return CacheReport(
            enabled=True,
            block_size=self._engine.info.block_size,
            num_blocks=100,
            num_free=60,
            num_cached=self.num_blocks,
            num_evictable=self.num_blocks,
            num_pinned=sum(pin.num_blocks for pin in self.pins.values()),
            num_host_blocks=0,
            max_host_blocks=0,
            num_query_tokens=200,
            num_hit_tokens=150,
            num_evicted=1,
            num_offloaded=2,
            num_restored=3,
            namespaces=self.namespaces,
            prefixes=self.prefixes[:max_prefixes],
            pins=list(self.pins.values()),
        )

    def reset(self) -> int:
        """Forget all prompts, and with them their pins."""
        num_blocks = self.num_blocks
        self._num_forgotten = len(self._engine.requests)
        self.pins.clear()
        return num_blocks

    def pin(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Pin a prompt that was computed under the same namespace."""
        self.targets.append(target)
        wanted = (target.prompt_token_ids, target.adapter, target.cache_salt)
        if not any((r.prompt_token_ids, r.adapter, r.cache_salt) == wanted for r in self._held):
            raise RequestError("prompt", "is not cached")
        num_blocks = len(target.prompt_token_ids) // self._engine.info.block_size
        pin = PinReport(
            pin_id=f"pin-{len(self.targets)}",
            num_tokens=num_blocks * self._engine.info.block_size,
            num_blocks=num_blocks,
            expires_in=ttl_seconds,
            adapter=target.adapter,
            tenant=target.tenant,
            salted=target.cache_salt is not None,
        )
        self.pins[pin.pin_id] = pin
        return pin


def _prompt_logprobs(request: GenerationRequest) -> list[TokenLogprobs | None] | None:
    num_top, [_, *rest] = request.params.prompt_logprobs, request.prompt_token_ids
    return None if num_top is None else [None, *(_logprobs(one, num_top) for one in rest)]


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = [token_id, *(i for i in range(97, 123) if i != token_id)][:num_top]
    return TokenLogprobs(
        token_id=token_id,
        logprob=-0.25,
        rank=1,
        top_token_ids=top,
        top_logprobs=[-0.25 - index for index in range(num_top)],
    )
