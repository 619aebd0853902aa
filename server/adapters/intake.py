"""From a source to what a version is made of: fetched, read, checked and formatted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...engine.adapter_format import (
    AdapterFacts,
    CheckJob,
    FileSignature,
    FormatJob,
    directory_signature,
    formatted_path,
)
from ...engine.config import AdapterDtype
from ...lora.adapter import digest_adapter
from ...lora.errors import AdapterError
from .fetch import fetch
from .files import is_kept
from .loader import AdapterLoader
from .metrics import AdapterMetrics
from .sources import AdapterSource, SourcePolicy
from .text import AdapterText, TextStore, check_vocabulary, copy_text

FORMAT_SECONDS, FORMAT_BYTES_PER_SECOND = 60.0, 20e6
"""What formatting may take, and more for its bytes: a file may keep a parser busy for ever."""

IsKnown = Callable[[str, str | None], bool]
"""Of a digest and a text digest: whether nothing has to be made of these bytes."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What adapters are formatted for; dtypes and ``vocab_size`` as ``EngineInfo`` has them.

    ``max_device_bytes`` is what the pages of all adapters may take.
    """

    directory: str
    dtype: str
    vocab_size: int
    max_device_bytes: int | None = None
    adapter_dtype: AdapterDtype = "auto"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a version needs, still in the workroom; ``original`` are the files of an upload."""

    facts: AdapterFacts
    file: Path
    text: AdapterText | None
    text_files: Path
    original: Path | None

    @property
    def text_digest(self) -> str | None:
        """Of the text files, None without."""
        return None if self.text is None else self.text.text_digest


@dataclass(frozen=True, slots=True)
class AdapterIntake:
    """Makes versions of sources. Nothing here blocks the event loop."""

    base: BaseModel
    loader: AdapterLoader
    texts: TextStore
    policy: SourcePolicy
    metrics: AdapterMetrics

    async def prepare(
        self,
        source: AdapterSource,
        work: Path,
        *,
        staged: Path | None = None,
        by_operator: bool = False,
        is_known: IsKnown | None = None,
    ) -> Prepared | None:
        """Everything for a version, below ``work``; None for bytes that are known.

        ``staged`` are the files of an upload; what the operator named is fetched from anywhere.
        Raises AdapterError for what is refused, ApiError where too much is in progress.
        """
        since = time.perf_counter()
        policy = self.policy.for_operator(source) if by_operator else self.policy
        try:
            directory = staged or await fetch(source, policy, work)
            if is_known is not None and await self._knows(directory, is_known):
                return None
            prepared = await self._make(directory, work, staged)
        except AdapterError:
            self.metrics.count_failed_fetch()
            raise
        self.metrics.observe_fetch(source.kind, time.perf_counter() - since)
        return prepared

    async def _knows(self, directory: Path, is_known: IsKnown) -> bool:
        digest = await asyncio.to_thread(digest_adapter, directory)
        text = await asyncio.to_thread(self.texts.read, directory)
        return is_known(digest, None if text is None else text.text_digest)

    async def _make(self, directory: Path, work: Path, original: Path | None) -> Prepared:
        """All from one moment of the directory: its owner may write to it meanwhile."""
        before = await asyncio.to_thread(_files_of, directory)
        text_files, target = work / "text", work / "formatted"
        await asyncio.to_thread(copy_text, directory, text_files)
        text = await self.read_text(text_files)
        target.mkdir()
        job = FormatJob(
            self.base.directory,
            self.base.dtype,
            str(directory),
            str(target),
            self.base.max_device_bytes,
            self.base.adapter_dtype,
        )
        seconds = FORMAT_SECONDS + sum(file.size for file in before) / FORMAT_BYTES_PER_SECOND
        facts = await self.loader.format(job, seconds)
        check_vocabulary(text, facts.vocab_size or self.base.vocab_size)
        if await asyncio.to_thread(_files_of, directory) != before:
            raise AdapterError("path", "the adapter's files changed while they were read")
        return Prepared(facts, formatted_path(target, facts.digest), text, text_files, original)

    async def check(self, file: Path) -> AdapterFacts:
        """What a formatted file holds; raises AdapterError unless it is whole and for this base."""
        base = self.base
        job = CheckJob(str(file), base.directory, base.dtype, base.adapter_dtype)
        return await self.loader.format(job, FORMAT_SECONDS)

    async def read_text(self, directory: Path) -> AdapterText | None:
        """What copied text files say; raises AdapterError."""
        return await asyncio.to_thread(self.texts.read, directory)


def _files_of(directory: Path) -> list[FileSignature]:
    """Those that belong to an adapter: a trainer may go on writing its log beside them."""
    return [file for file in directory_signature(directory) if is_kept(file.name)]
