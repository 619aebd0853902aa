"""One server, three adapters of PEFT's for it, and transformers + peft to say what is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from adapter_server import AdapterServer, Answer, Stream, parsed, serve_adapters
from oracle import GREEDY, MARGIN, Reference, check_generation
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

SOURCES = {"one": 4, "two": 8, "three": 20}
"""Adapters by name, with their ranks; all of them on all linears."""

TO_THE_END = replace(GREEDY, ignore_eos=True)
NOTHING = {"device": 0.0, "dense": 0.0, "host": 0.0}


@dataclass(frozen=True)
class VersionsHouse:
    """``sources`` are directories that the server may load, ``reference`` has the same names."""

    server: AdapterServer
    model: Path
    sources: dict[str, Path]
    reference: Reference

    def put(self, name: str, source: str, **fields: Any) -> dict[str, Any]:
        """Put one of the sources under a name."""
        return self.server.put(name, self.sources[source], **fields)

    def check(self, answer: Answer | Stream, source: str | None) -> None:
        """Assert that an answer is what peft gives with this source, None: without any."""
        check_generation(self.reference, answer.prompt, answer.output, source, TO_THE_END)

    def is_of(self, prompt: list[int], output: list[int], source: str | None) -> bool:
        """Whether peft could have chosen every token with this source."""
        logits = self.reference.next_logits(prompt + output[:-1], source)[len(prompt) - 1 :]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        return bool((logits.amax(-1) - chosen < MARGIN).all())

    def ask(self, model: str, source: str | None, prompt: str = "", **fields: Any) -> Answer:
        """The answer of ``model``, which has to be that of a source."""
        answer = self.server.complete(model, prompt or f"what {model} says", **fields)
        self.check(answer, source)
        return answer

    def clear(self) -> None:
        """Remove all names; all of their memory has to come back."""
        server = self.server
        for alias in parsed(server.http.get("/admin/aliases"))["aliases"]:
            parsed(server.http.delete(f"/admin/aliases/{alias['alias']}"))
        for name in server.names():
            server.delete(name)
        wait_for(lambda: server.used() == NOTHING, 10, lambda: str(server.used()))
        assert sum(server.tiers().values()) == 0
        assert server.models() == ["base"]


def make_sources(model: Path, root: Path) -> dict[str, Path]:
    """The adapters of ``SOURCES``."""
    return {
        name: make_adapter(model, root / name, rank, seed=rank) for name, rank in SOURCES.items()
    }


@contextmanager
def versions_house(directory: Path, *flags: str, **options: Any) -> Iterator[VersionsHouse]:
    """A house of files below ``directory``; ``flags`` and ``options`` are the server's."""
    directory = directory.resolve()
    model = make_tiny_model(directory / "model", "llama", max_position_embeddings=4096)
    sources = make_sources(model, directory / "root")
    with serve_adapters(model, *flags, roots=[directory / "root"], **options) as server:
        yield VersionsHouse(server, model, sources, Reference(model, sources))
