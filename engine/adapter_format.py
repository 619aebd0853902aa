"""From an adapter's directory to its formatted file: the work of a process beside the engine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..lora.errors import AdapterError
from .config import AdapterDtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..lora.loader import BaseTensors

FORMAT = 1
SUFFIX = ".adapter"


@dataclass(frozen=True, slots=True)
class FormatJob:
    """Read the adapter in ``directory`` for the base in ``model`` and write it below ``target``.

    ``dtype`` is that of ``EngineInfo``: what the engine computes in; ``adapter_dtype`` too, which
    says what pages are kept in. ``max_device_bytes`` is all that its pages may take there.
    """

    model: str
    dtype: str
    directory: str
    target: str
    max_device_bytes: int | None = None
    adapter_dtype: AdapterDtype = "auto"


@dataclass(frozen=True, slots=True)
class CheckJob:
    """Say what the formatted file ``path`` holds, if it is for this base and these dtypes."""

    path: str
    model: str
    dtype: str
    adapter_dtype: AdapterDtype = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """What a formatted file holds.

    ``rank`` is the highest of any module. ``device_bytes`` is what it takes on the device, in
    whole pages, ``file_bytes`` its file, and about what it takes in host memory. ``vocab_size`` is
    None where it has the base's tokens, ``invocation_tokens`` how many make an activated LoRA of
    it, 0 for none. ``is_dense``: it brings more than low-rank pairs.
    """

    digest: str
    rank: int
    modules: tuple[str, ...]
    device_bytes: int
    file_bytes: int
    vocab_size: int | None = None
    invocation_tokens: int = 0
    is_dense: bool = False

    @property
    def uses_base_prefix(self) -> bool:
        """Whether prompts begin in the base's KV; what is dense applies before the invocation."""
        return self.invocation_tokens > 0 and not self.is_dense


class FileSignature(NamedTuple):
    """What changes when a file does."""

    name: str
    inode: int
    size: int
    mtime_ns: int


def formatted_path(target: str | Path, digest: str) -> Path:
    """Where the formatted file of a version lies."""
    return Path(target, digest + SUFFIX)


def run_job(job: FormatJob | CheckJob) -> AdapterFacts:
    """What the process beside the engine is asked to do; raises AdapterError."""
    if isinstance(job, CheckJob):
        return check_formatted(job.path, job.model, job.dtype, job.adapter_dtype)
    return format_adapter(job)


def format_adapter(job: FormatJob) -> AdapterFacts:
    """Check, digest and format an adapter; its file is there whole, or not at all.

    Raises AdapterError that names the field, file, tensor or module at fault, and for files that
    change while they are read.
    """
    from ..lora.activation import require_in_vocabulary
    from ..lora.adapter import AdapterConfig, digest_adapter
    from ..lora.formatted import write_formatted
    from ..lora.fp8_pages import choose_page_dtype, to_pages
    from ..lora.loader import changed_modules, load_adapter
    from .models.config import ModelConfig
    from .module_shapes import module_shapes

    before = directory_signature(job.directory)
    config = AdapterConfig.from_directory(job.directory)
    model = ModelConfig.from_directory(job.model)
    dtype = _dtype(job.dtype)
    page_dtype = choose_page_dtype(job.adapter_dtype, dtype)
    with _base_tensors(job, model.tie_word_embeddings) as (base, tied):
        shapes = replace(module_shapes(model), tied=tied)
        limit = job.max_device_bytes
        most = None if limit is None else limit // page_dtype.itemsize
        loaded = load_adapter(job.directory, config, shapes, base, most)
        weights = to_pages(loaded, shapes, dtype, page_dtype)
    if not weights.groups and weights.dense is None:
        raise AdapterError("target_modules", "the adapter changes nothing of the base model")
    tokens = config.invocation_tokens
    if tokens is not None:
        require_in_vocabulary(tokens, weights.vocab_size or model.vocab_size)
    digest = digest_adapter(job.directory)
    facts = AdapterFacts(
        digest=digest,
        rank=config.max_rank,
        modules=changed_modules(job.directory),
        device_bytes=weights.num_bytes,
        file_bytes=0,
        vocab_size=weights.vocab_size,
        invocation_tokens=0 if tokens is None else len(tokens),
        is_dense=weights.dense is not None,
    )
    if directory_signature(job.directory) != before:
        raise AdapterError("path", "the adapter's files changed while they were read")
    about = {"digest": digest, "base": _fingerprint(job), "facts": json.dumps(asdict(facts))}
    path = formatted_path(job.target, digest)
    write_formatted(path, weights, tokens, about)
    return _with_size(facts, path)


def check_formatted(
    path: str | Path, model: str, dtype: str, adapter_dtype: AdapterDtype = "auto"
) -> AdapterFacts:
    """What a formatted file holds; raises AdapterError unless it is whole and for this base."""
    from ..lora.formatted import read_header

    header = read_header(path)
    job = FormatJob(model, dtype, "", "", adapter_dtype=adapter_dtype)
    if header.about.get("base") != _fingerprint(job):
        raise AdapterError("path", "was formatted for another base model, dtype or version")
    try:
        fields = json.loads(header.about["facts"])
        facts = AdapterFacts(**{**fields, "modules": tuple(fields["modules"])})
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError("path", f"is no formatted adapter: {error}") from None
    return _with_size(facts, path)


def _with_size(facts: AdapterFacts, path: str | Path) -> AdapterFacts:
    return AdapterFacts(**{**asdict(facts), "file_bytes": os.stat(path).st_size})


def directory_signature(directory: str | Path) -> list[FileSignature]:
    """One entry of each file in a directory, by name; raises AdapterError."""
    try:
        stats = [(entry.name, entry.stat()) for entry in os.scandir(directory)]
    except OSError as error:
        raise AdapterError("path", f"can't be read: {error.strerror or error}") from None
    return sorted(
        FileSignature(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats
    )


def _fingerprint(job: FormatJob) -> str:
    """Of what a formatted file is made for: our format, the dtypes, the base's config and files."""
    root = Path(job.model)
    pages = "" if job.adapter_dtype == "auto" else f" {job.adapter_dtype}"
    digest = hashlib.sha256(f"{FORMAT} {job.dtype}{pages}\n".encode())
    digest.update((root / "config.json").read_bytes())
    for file in sorted(root.glob("*.safetensors")):
        stat = file.stat()
        digest.update(f"\n{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextmanager
def _base_tensors(job: FormatJob, may_be_tied: bool) -> Iterator[tuple[BaseTensors, bool]]:
    """The base's weights by name, mapped from its checkpoint, in the dtype that is served.

    And whether embedding and output layer are one matrix.
    """
    from .models.checkpoint import open_checkpoint
    from .weights import EMBEDDING, LM_HEAD, tie

    dtype = _dtype(job.dtype)
    with ExitStack() as stack:
        stored = open_checkpoint(Path(job.model), stack)
        tied = may_be_tied and tie(stored)

        def read(name: str) -> Tensor | None:
            if tied and name == LM_HEAD:
                name = EMBEDDING
            return stored[name].read().to(dtype) if name in stored else None

        yield read, tied


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
