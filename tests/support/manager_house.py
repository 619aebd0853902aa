"""A real adapter manager over a fake engine and a fake formatting process, on a directory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from branchline.engine.adapter_format import AdapterFacts, CheckJob, FormatJob, formatted_path
from branchline.lora.adapter import digest_adapter
from branchline.lora.errors import AdapterError
from branchline.server.adapters.manager import AdapterManager
from branchline.server.adapters.parts import AdapterParts, build_manager
from branchline.server.adapters.sources import AdapterSource, SourcePolicy
from branchline.server.adapters.state import StateDirectory
from branchline.server.adapters.text import TextStore
from branchline.server.catalog import Catalog
from branchline.server.errors import ApiError
from branchline.server.metrics import ServerMetrics
from branchline.server.supervisor import EngineSupervisor
from branchline.server.text.tokenizer import Tokenizer

BASE = "base"


def write_adapter(directory: Path, content: str, template: str | None = None) -> Path:
    """What looks like an adapter; ``content`` stands for its weights, ``bad`` for broken ones.

    A file that says so already is left alone: somebody may be reading it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    files = {"adapter_config.json": json.dumps(config), "adapter_model.safetensors": content}
    if template is not None:
        files["chat_template.jinja"] = template
    for name, text in files.items():
        file = directory / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
    return directory


class FakeLoader:
    """Formats by copying, with the dtype in front. Jobs wait while ``go`` is cleared."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.jobs: list[FormatJob | CheckJob] = []

    @property
    def num_formatted(self) -> int:
        return sum(isinstance(job, FormatJob) for job in self.jobs)

    async def format(self, job: FormatJob | CheckJob, timeout: float) -> AdapterFacts:
        self.jobs.append(job)
        await self.go.wait()
        return _check(job) if isinstance(job, CheckJob) else _format(job)

    async def close(self) -> None:
        """Nothing to end."""


def _format(job: FormatJob) -> AdapterFacts:
    content = Path(job.directory, "adapter_model.safetensors").read_text()
    if content == "bad":
        raise AdapterError("adapter_model.safetensors", "is bad")
    digest = digest_adapter(job.directory)
    file = formatted_path(job.target, digest)
    file.write_text(f"{job.dtype}\n{content}")
    return _facts(digest, file)


def _check(job: CheckJob) -> AdapterFacts:
    file = Path(job.path)
    if not file.exists() or not file.read_text().startswith(f"{job.dtype}\n"):
        raise AdapterError("path", "is not for this base")
    return _facts(file.stem, file)


def _facts(digest: str, file: Path) -> AdapterFacts:
    return AdapterFacts(
        digest=digest,
        rank=8,
        modules=("q_proj",),
        device_bytes=2000,
        file_bytes=file.stat().st_size,
    )


@dataclass
class ManagerHouse:
    """One server's adapters, and the engine that has them."""

    root: Path
    state: StateDirectory
    engine: FakeEngine
    supervisor: EngineSupervisor
    catalog: Catalog
    loader: FakeLoader
    manager: AdapterManager
    failures: dict[str, str] = field(default_factory=dict)

    def source(self, content: str, template: str | None = None) -> AdapterSource:
        """A directory with an adapter of that content."""
        directory = self.root / "sources" / f"{content}{'-t' if template else ''}"
        return AdapterSource("directory", str(write_adapter(directory, content, template)))

    async def put(self, name: str, content: str, **options: Any) -> Any:
        return await self.manager.put(name, self.source(content), **options)

    async def upload(self, name: str, content: str) -> Any:
        with self.manager.staging() as staging:
            staged = write_adapter(staging / "adapter", content)
            return await self.manager.put(name, AdapterSource("upload", "x.zip"), staged=staged)

    def content(self, name: str, key: str = "") -> str:
        """What the engine would answer ``name`` with: the content of the file it was given."""
        digest = self.catalog.resolve(name, key).digest
        assert digest in self.engine.adapters.reports, "the engine has what is answered with"
        return Path(self.engine.adapters.paths[digest]).read_text().partition("\n")[2]

    @property
    def loaded(self) -> set[str]:
        """Contents of all versions in the engine."""
        paths = self.engine.adapters.paths
        reports = self.engine.adapters.reports
        return {Path(paths[digest]).read_text().partition("\n")[2] for digest in reports}

    def files(self) -> set[str]:
        """Everything in the state directory but the registry and the lock."""
        found = (
            Path(folder, name) for folder, _, names in os.walk(self.state.path) for name in names
        )
        return {str(p.relative_to(self.state.path)) for p in found} - {"registry.json", "lock"}

    def contents(self) -> set[str]:
        """Contents of the formatted files, and the names of all that is there beside them."""
        versions = self.state.adapters.iterdir()
        contents = {path.read_text().partition("\n")[2] for path in versions}
        return contents | {name for name in self.files() if not name.startswith("adapters/")}


@asynccontextmanager
async def manager_house(
    root: Path, tokenizer: Tokenizer, *, max_older: int = 4, **info: Any
) -> AsyncIterator[ManagerHouse]:
    """A manager as a server starts it; again on the same ``root``, it finds what it had."""
    root = root.resolve()
    (root / "sources").mkdir(parents=True, exist_ok=True)
    engine = FakeEngine()
    engine.info = replace(engine.info, **info)
    supervisor = EngineSupervisor(engine)
    state = StateDirectory(root / "state")
    catalog = Catalog("/models/base", [BASE])
    loader = FakeLoader()
    parts = AdapterParts(state, loader, TextStore("/models/base", tokenizer))  # type: ignore[arg-type]
    metrics = ServerMetrics(catalog, lambda: supervisor.stats)
    policy = SourcePolicy(roots=(str(root / "sources"),))
    manager = build_manager(parts, catalog, supervisor, metrics, policy, max_older)
    house = ManagerHouse(root, state, engine, supervisor, catalog, loader, manager)
    try:
        house.failures = await manager.restore(state.read())
        yield house
    finally:
        await supervisor.stop()
        await manager.close()
        state.close()


async def refused(code: str, call: Coroutine[Any, Any, object], status: int = 409) -> str:
    """Insists on an ApiError of that code and status; its message."""
    with pytest.raises(ApiError) as caught:
        await call
    assert (caught.value.status, caught.value.code) == (status, code), caught.value
    return caught.value.message
